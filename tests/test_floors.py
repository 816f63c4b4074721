"""Import rules: a file imports from lower floors or from its own folder (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "famjax"
FLOORS = {
    "config": 0, "dims": 0,
    "attention": 1, "process": 1,
    "nn": 2, "data": 2, "storage": 2, "mesh": 2, "jobs": 2, "pretrained": 2,
    "train": 3, "infer": 3,
    "evals": 4, "plan": 4, "bench": 4, "launch": 4, "serve": 4,
    "cli": 5,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
# The package itself and `python -m famjax` are outside the floors; they have rules of their own below.
ROOMS = [path for path in FILES if path.parent != PACKAGE or path.stem in FLOORS]


def imported(path: Path) -> set[str]:
    """Returns the full names of all modules that a file imports, anywhere in the file, with relative ones resolved.

    `from famjax.nn import model` counts as `famjax.nn.model`, so that no folder hides behind its parent.
    """
    package = ["famjax", *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    """Returns the folder, or the single module, of famjax that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def forbidden(own: str, names: set[str]) -> list[str]:
    """Returns the imports that a file of room `own` may not have."""
    bad = []
    for name in sorted(names):
        parts = name.split(".")
        if parts[0] != "famjax" or len(parts) < 2:
            continue
        other = parts[1]
        if other in FLOORS and other != own and FLOORS[other] >= FLOORS[own]:
            bad.append(name)
    return bad


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_has_a_floor(path: Path) -> None:
    """A new folder of famjax needs a floor here and in docs/architecture.md."""
    assert room(path) in {*FLOORS, "__init__", "__main__"}


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    """A file imports from lower floors, or from its own folder."""
    assert forbidden(room(path), imported(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_where_they_belong(path: Path) -> None:
    """Only cli imports gin; configuration and the package itself do not import jax; the pure core does not import
    flax."""
    libraries = {name.split(".")[0] for name in imported(path)}
    if room(path) != "cli":
        assert "gin" not in libraries
    if room(path) in ("config", "__init__", "__main__"):
        assert not libraries & {"jax", "jaxlib", "flax", "optax", "orbax", "numpy", "tensorflow", "seqio"}
    if room(path) == "attention":
        assert "flax" not in libraries


@pytest.mark.parametrize(
    ("own", "line", "allowed"),
    [
        ("nn", "from famjax.attention import rope", True),
        ("nn", "from famjax.nn.layer import Layer", True),
        ("nn", "from famjax.data import batch", False),
        ("nn", "from ..data import batch", False),
        ("nn", "from famjax import data", False),
        ("train", "from famjax import infer", False),
        ("infer", "def f():\n    import famjax.train.loop", False),
        ("train", "import famjax.storage.checkpoint", True),
        ("attention", "from famjax.nn import layer", False),
        ("evals", "from famjax.cli import main", False),
        ("cli", "from famjax.evals import run", True),
    ],
)
def test_the_rule_itself(own: str, line: str, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The import parser handles every form of import, also inside a function."""
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / own).mkdir()
    path = tmp_path / own / "some.py"
    path.write_text(line)
    assert (forbidden(room(path), imported(path)) == []) == allowed
