"""The notebook docs/tour.ipynb runs from its first cell to its last, on a tiny model."""

import contextlib
import json
from pathlib import Path

import matplotlib
import pytest

from famjax.storage import checkpoint
from tests import tiny

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def cells() -> list[str]:
    """Returns the source of the code cells."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_has_ten_cells_that_compile() -> None:
    """Ten cells, each with a first line that says what it does, and without paths of a machine."""
    notebook = NOTEBOOK.read_text(encoding="utf-8")
    assert len(json.loads(notebook)["cells"]) == 10
    for code in cells():
        compile(code, NOTEBOOK.name, "exec")
        assert code.startswith("# ")
    assert "/tmp/" not in notebook and "/home/" not in notebook


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs, in order, in one namespace; the session loaded from a file continues as the text in one piece
    does."""
    matplotlib.use("agg")
    config = tiny.config(vocab_size=256, block_size=64)
    checkpoint.save_model(tmp_path / "model", config, tiny.parameters(config))
    monkeypatch.setenv("FAMJAX_TOUR_MODEL", str(tmp_path / "model"))
    names: dict = {}
    with contextlib.chdir(tmp_path):
        for code in cells():
            exec(compile(code, NOTEBOOK.name, "exec"), names)
    assert names["position"] == len(names["book"]) - 1
    whole = names["famjax"].generate(names["model"], names["book"] + names["QUESTION"], max_tokens=5)
    assert names["answer"].tokens == whole.tokens
    assert len(names["figure"].axes) == 2
