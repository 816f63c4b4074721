"""famjax: language models with a working memory (TransformerFAM, arXiv 2404.09173), in JAX.

Importing this package imports nothing heavy; jax is loaded by the modules that compute.
"""

import os
import sys

__version__ = "0.1.0"

# libtpu is also what compiles for TPUs on a machine that has none (`famjax plan`). There jax would still start it as a
# backend at its first use of any device, and libtpu would complain of all that a TPU VM has and this machine has not.
if "tpu" not in os.environ.get("JAX_PLATFORMS", "") and not any(map(os.path.exists, ("/dev/accel0", "/dev/vfio"))):
    if sys.modules.get("libtpu"):  # jax was imported before famjax, and libtpu has told where it is
        os.environ.pop("TPU_LIBRARY_PATH", None)
    sys.modules["libtpu"] = None  # type: ignore[assignment]
