"""Scripts of launch/studies/ as modules."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

STUDIES = Path(__file__).parents[1] / "launch" / "studies"


def script(name: str) -> ModuleType:
    """Returns a script as a module; it finds its neighbours, as when it is run."""
    if str(STUDIES) not in sys.path:
        sys.path.append(str(STUDIES))
    return importlib.import_module(name)
