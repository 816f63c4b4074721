"""famjax: language models with a working memory (TransformerFAM, arXiv 2404.09173), in JAX.

Importing this package imports nothing heavy; jax is loaded by the modules that compute.
"""

import glob
import os
import sys

__version__ = "0.1.0"

# Variables that TPU VMs and GKE set where there are chips.
_TPU_VARIABLES = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE")


def _may_have_tpu() -> bool:
    asked = "tpu" in os.environ.get("JAX_PLATFORMS", "") or any(name in os.environ for name in _TPU_VARIABLES)
    return asked or os.path.exists("/dev/vfio") or bool(glob.glob("/dev/accel*"))


# libtpu is also what compiles for TPUs on a machine that has none (`famjax plan`). There jax would still start it as a
# backend at its first use of any device, and libtpu would complain of all that a TPU VM has and this machine has not.
if not _may_have_tpu():
    if sys.modules.get("libtpu"):  # jax was imported before famjax, and libtpu has told where it is
        os.environ.pop("TPU_LIBRARY_PATH", None)
    sys.modules["libtpu"] = None  # type: ignore[assignment]
