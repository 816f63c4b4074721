"""A machine without a TPU may have libtpu all the same: it is the compiler that `famjax plan` uses."""

import glob
import os
import sys

# Variables that TPU VMs and GKE set where there are chips.
_TPU_VARIABLES = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE")


def may_have_tpu() -> bool:
    """Whether jax is asked for a TPU, or the machine shows signs of one."""
    asked = "tpu" in os.environ.get("JAX_PLATFORMS", "") or any(name in os.environ for name in _TPU_VARIABLES)
    return asked or os.path.exists("/dev/vfio") or bool(glob.glob("/dev/accel*"))


def hide_without_tpu() -> None:
    """Keeps jax from starting libtpu on a machine without a TPU, which prints errors about what a TPU VM has.

    This changes the whole process, so only entry points call it (the command line, tests), before jax uses a
    device; `import famjax` does not.
    """
    if may_have_tpu():
        return
    if sys.modules.get("libtpu"):  # jax was imported before, and libtpu has told it where it is
        os.environ.pop("TPU_LIBRARY_PATH", None)
    sys.modules["libtpu"] = None  # type: ignore[assignment]
