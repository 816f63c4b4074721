"""Finds files outside the package that launching needs: scripts, templates, pinned requirements, gin files.

They are at the top of a checkout, and in `share/famjax` of an installation (setup.py installs them).
"""

import sys
from pathlib import Path

import famjax

PACKAGE = Path(famjax.__file__).resolve().parent
ROOTS = (PACKAGE.parent, Path(sys.prefix) / "share" / "famjax")


def find(name: str) -> Path:
    """Returns a file or folder by its path from the top of a checkout: `launch/tpu_vm/worker.sh`. Raises
    `FileNotFoundError` if it is in neither place."""
    for root in ROOTS:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(2, "missing from this installation of famjax; install famjax again", name)
