"""Hides libtpu from JAX on machines without a TPU, where it is installed as the compiler of `famjax plan`."""

import glob
import os
import sys

# Variables that TPU VMs and GKE set on machines with chips.
_TPU_VARIABLES = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE")


def may_have_tpu() -> bool:
    """Whether JAX is configured to use a TPU, or the machine seems to have one."""
    asked = "tpu" in os.environ.get("JAX_PLATFORMS", "") or any(name in os.environ for name in _TPU_VARIABLES)
    return asked or os.path.exists("/dev/vfio") or bool(glob.glob("/dev/accel*"))


def hide_without_tpu() -> None:
    """Prevents JAX from starting libtpu on a machine without a TPU, where it would print errors about TPU VM settings.

    This changes the whole process, so only entry points call it (the command line, tests), before JAX uses a device;
    `import famjax` does not.
    """
    if may_have_tpu():
        return
    if sys.modules.get("libtpu"):  # JAX was imported before, and libtpu has set its path
        os.environ.pop("TPU_LIBRARY_PATH", None)
    sys.modules["libtpu"] = None  # type: ignore[assignment]
