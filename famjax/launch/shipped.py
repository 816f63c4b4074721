"""Files beside the package that launching needs: scripts, templates, pinned requirements, gin files.

They lie at the top of a checkout, and in `share/famjax` of an installation (setup.py puts them there).
"""

import sys
from pathlib import Path

import famjax

PACKAGE = Path(famjax.__file__).resolve().parent


def find(name: str) -> Path:
    """A file or folder by its path from the top of a checkout: `launch/tpu_vm/worker.sh`.

    Raises:
      FileNotFoundError: it is nowhere.
    """
    for root in (PACKAGE.parent, Path(sys.prefix) / "share" / "famjax"):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(2, "comes with famjax, but is not in this installation; install famjax again", name)
