"""A model on a mesh of eight devices reads and writes what it does on one.

`sharded_runs.py` computes on eight simulated devices in a process of its own; here its numbers are compared.
"""

import pickle
from pathlib import Path
from typing import Any

import pytest

from famjax.config import ConfigError
from famjax.infer.load import load
from famjax.storage.checkpoint import save_model
from tests import eight_devices, tiny
from tests.infer.sharded_runs import CASES, MODELS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    for name, config in MODELS.items():
        save_model(folder / name, config, tiny.parameters(config))
    errors = eight_devices.run("tests.infer.sharded_runs", folder)
    assert "donated buffers were not usable" not in errors
    return pickle.loads((folder / "results.pickle").read_bytes())


@pytest.mark.parametrize("case", [i for i, (_, mesh) in enumerate(CASES) if mesh])
def test_a_mesh_makes_what_one_device_makes(results: list[dict[str, Any]], case: int) -> None:
    """Log probabilities of whole and streamed texts to float32 rounding; the same tokens, drawn for rows of unequal
    lengths, and by a session that one device wrote; LoRA merged."""
    name, _ = CASES[case]
    actual, desired = results[case], results[CASES.index((name, {}))]
    assert actual.keys() == desired.keys()
    for what in actual.keys() - {"parts"}:
        if what in ("made", "alone"):
            assert actual[what] == desired[what]
        else:
            tiny.assert_close(actual[what], desired[what])


def test_each_device_holds_its_part(results: list[dict[str, Any]]) -> None:
    """Of a matrix [16, 32]: fsdp cuts its rows, tensor its columns, data nothing."""
    assert [result["parts"] for result in results] == [{(16, 32)}, {(8, 16)}, {(16, 32)}, {(8, 8)}]


def test_more_devices_than_there_are(tmp_path: Path) -> None:
    config = tiny.config()
    save_model(tmp_path, config, tiny.parameters(config))
    with pytest.raises(ConfigError, match="asks for 512 devices"):
        load(tmp_path, {"fsdp": 512})
