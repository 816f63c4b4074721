"""The notebook docs/tour.ipynb runs from its first cell to its last, and shows what it says."""

import contextlib
import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def cells() -> list[str]:
    """The code of the notebook."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_has_ten_cells_that_compile() -> None:
    """Ten cells, each of which says in its first line what it does; nothing in it names a machine."""
    notebook = NOTEBOOK.read_text(encoding="utf-8")
    assert len(json.loads(notebook)["cells"]) == 10
    for code in cells():
        compile(code, NOTEBOOK.name, "exec")
        assert code.startswith("# ")
    assert "/tmp/" not in notebook and "/home/" not in notebook and "/root/" not in notebook


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    """Every cell, in order, in one namespace: the shipped model recalls the key with FAM and not without it."""
    matplotlib.use("agg")
    names: dict = {}
    with contextlib.chdir(tmp_path):
        for code in cells():
            exec(compile(code, NOTEBOOK.name, "exec"), names)
    assert names["position"] == len(names["book"]) - 1
    assert names["answer"].text == names["KEY"]
    with_fam, without = (names["scores"][name].logprobs[-5:].sum() for name in ("with FAM", "without"))
    assert with_fam > without
    assert len(names["figure"].axes) == 2
