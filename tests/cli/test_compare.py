"""`famjax compare`: equal conditions, one report, resumed where it stopped."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from famjax.cli import compare, side_by_side
from famjax.cli.gin_config import load_train_config
from famjax.cli.main import main, parse
from famjax.evals import memories
from famjax.nn.weights import create, parameters
from famjax.train.start import make_task

SHIPPED = sorted(path.stem for path in Path("gin/memories").glob("*.gin"))
SMALL = ["--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=2", "--gin.BLOCK_SIZE=64", "--gin.LOG_PERIOD=1"]


def config_of(memory: str, *bindings: str) -> Any:
    """The settings of a training of the comparison."""
    files = [compare.TASK, f"gin/memories/{memory}.gin"]
    config, _ = load_train_config(files, (), ["MODEL_DIR='none'", *bindings])
    config.validate()
    return config


def test_every_memory_begins_with_the_same_weights_and_reads_the_same_batches() -> None:
    """All weights but a memory's own are bit for bit equal; a batch does not depend on what was answered before."""
    configs = {name: config_of(name) for name in SHIPPED}
    first = parameters(create(configs["bswa"].model, 5))
    for config in configs.values():
        params = parameters(create(config.model, 5))
        params.pop("fam", None)
        params.pop("memory", None)
        params["layers"].pop("memory", None)
        jax.tree.map(np.testing.assert_array_equal, params, first)
    batches = []
    for name, right in (("bswa", False), ("fam", True)):
        task = make_task(configs[name], np.arange(configs[name].batch_size))
        progress = task.start()
        for step in range(3):
            batch, progress = task.batch(step, progress)
            progress = task.observe(progress, batch, np.full(batch.targets.shape, right))
        batches.append(batch)
    jax.tree.map(np.testing.assert_array_equal, *batches)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memories", "fam,smal"], "gin/memories/smal.gin"),
        (["--memories", ""], "--memories is empty"),
        (["--memories", "fam,fam"], "fam is there twice"),
        (["--tokens", "10"], "--tokens 10 is less than a step's 8 rows of 448 tokens; give at least 3584"),
        (["--tokens", "many"], "is not a number of tokens"),
        (["--seeds", "0,0"], "write numbers, each once"),
        (["--at-once", "0"], "--at-once is 0"),
        (["--keys", "0"], "keys is 0"),
        (["--output", __file__], "is a file"),
        (["--gin.PassKeyConfig.stages=(1, 2)"], "with one stage and a stream_share of 0"),
        (["--gin.PassKeyConfig.stream_share=1.0"], "with one stage and a stream_share of 0"),
        (["--gin.MemoryConfig.kind='infini'"], "fam_length 8 with kind 'infini'"),
    ],
)
def test_mistakes_are_one_line_before_any_training(tmp_path: Path, words: list[str], said: str, capfd: Any) -> None:
    """Exit code 2, one line, nothing written."""
    assert main(["compare", "--output", str(tmp_path / "out"), *words]) == 2
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FAM_LENGTH = 0\nLEARNING_RATE = 1.0", "wrong.gin changes optimizer, not the memory alone"),
        ("FAM_LENGTH = 0\nModelConfig.num_layers = 4", "wrong.gin changes model, not the memory alone"),
        ("FAM_LENGTH = 0\nBLOCK_SIZE = 32", "wrong.gin has block_size 32, gin/memories/fam.gin 64"),
    ],
)
def test_a_memory_changes_nothing_else(tmp_path: Path, text: str, said: str, capfd: Any) -> None:
    """A gin file of a memory that sets something of the task is refused."""
    wrong = tmp_path / "wrong.gin"
    wrong.write_text(text + "\n")
    assert main(["compare", "--output", str(tmp_path / "out"), "--memories", f"fam,{wrong}"]) == 2
    assert said in capfd.readouterr().err


def subjects(tmp_path: Path, *words: str) -> list[compare.Subject]:
    return compare._subjects(parse(compare, ["--output", str(tmp_path), *words]), tmp_path)


def test_what_diverges_is_kept_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A non-finite loss ends one training, not the comparison, and is not tried again; another failure ends it."""
    tmp_path.mkdir(exist_ok=True)
    code = {
        "fam": "import sys; sys.exit('famjax train: FloatingPointError: step 3: the loss is nan')",
        "bswa": "import json,os; os.makedirs(%r); open(%r,'w').write(json.dumps({'step': 1500, 'loss': 1.0}))",
        "sinks": "import sys; sys.exit('famjax train: no space left')",
    }
    found = []
    for one in subjects(tmp_path, "--memories", "fam,bswa,sinks"):
        folder = one.job.config.model_dir
        text = code[one.memory] % (folder, f"{folder}/metrics.jsonl") if one.memory == "bswa" else code[one.memory]
        found.append(one._replace(job=one.job._replace(command=[sys.executable, "-c", text])))
    diverged = compare.train(found[:2], tmp_path, 1)
    assert list(diverged) == ["fam_seed0"] and "the loss is nan" in diverged["fam_seed0"]
    monkeypatch.setattr(side_by_side, "train", lambda jobs, at_once: [job.name for job in jobs])
    assert compare.train(found[:2], tmp_path, 1) == diverged
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="no space left"):
        compare.train(found[2:], tmp_path, 1)


def test_summary_and_page(tmp_path: Path) -> None:
    """Counts are pooled over seeds; intervals are Wilson's for one seed and over seeds for two; a memory that diverged
    in one seed has the other's numbers, one that diverged in all has none; texts are escaped."""
    row = lambda blocks, hits: {"filler_blocks": blocks, "filler_tokens": 64 * blocks + 31.5, "fam_updates": blocks + 1,
                                "documents": 10, "exact_match": hits / 10}  # fmt: skip
    (tmp_path / "a").mkdir()
    logged = [{"step": step, "loss": 5.0 / step, "exact_match": 0.1} for step in range(1, 101)]
    (tmp_path / "a" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    fam, infini = config_of("fam"), config_of("infini")
    object.__setattr__(fam, "model_dir", str(tmp_path / "a"))
    runs = [
        memories.Run("fam", "fam.gin", 0, fam, [row(1, 10), row(4, 9)]),
        memories.Run("fam", "fam.gin", 1, fam, [row(1, 8), row(4, 0)]),
        memories.Run("infini", "infini.gin", 0, infini, [row(1, 5), row(4, 1)]),
        memories.Run("infini", "infini.gin", 1, infini, [], "the loss is nan"),
        memories.Run("<b>", "b.gin", 0, infini, [], "it broke"),
    ]
    found = memories.summarize(runs)
    assert found["budget"] == {"steps": 1500, "tokens": 1500 * 8 * 448} and found["seeds"] == [0, 1]
    one, two, three = found["memories"]
    assert [length["exact_match"] for length in one["lengths"]] == [0.9, 0.45]
    assert one["lengths"][0]["by_seed"] == {"0": 1.0, "1": 0.8}
    assert (one["lengths"][1]["low"], one["lengths"][1]["high"]) == (0.0, 0.9)  # over two seeds
    assert two["lengths"][0]["documents"] == 10 and two["lengths"][0]["low"] == pytest.approx(0.2366, abs=1e-3)
    assert two["diverged"] == [{"seed": 1, "said": "the loss is nan"}] and three["lengths"] == []
    assert one["added_weights"] == 8 * 64 and two["added_weights"] == 3 * 2
    # A ring of one block; FAM in float32 with keys and values, or a matrix and its normaliser.
    ring = 3 * 2 * 64 * 64 * 4
    assert one["state_bytes"] == ring + 3 * 3 * 8 * 64 * 4 + 8
    assert two["state_bytes"] == ring + 3 * 2 * (32 * 32 + 32) * 4 + 8
    points = one["curves"][0]["points"]
    assert points[-1] == {"tokens": 100 * 8 * 448, "loss": 0.05, "exact_match": 0.1} and len(points) <= 40
    _, page = memories.write(tmp_path, found)
    text = page.read_text()
    assert "<b>" not in text and "&lt;b&gt;" in text and "seed 1: the loss is nan" in text
    assert json.loads((tmp_path / memories.COMPARISON_JSON).read_text()) == found


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path: Path, capfd: Any) -> None:
    """Four memories train and are evaluated; a second run trains nothing and finds the same."""
    words = ["compare", "--output", str(tmp_path), "--memories", "fam,bswa,sinks,infini", *SMALL]
    words += ["--filler-blocks", "1,4", "--alignments", "4"]
    assert main(words) == 0
    first = json.loads((tmp_path / memories.COMPARISON_JSON).read_text())
    assert [one["name"] for one in first["memories"]] == ["fam", "bswa", "sinks", "infini"]
    assert all(len(one["lengths"]) == 2 and one["curves"][0]["points"] for one in first["memories"])
    lines = [(tmp_path / f"{one}_seed0" / "metrics.jsonl").read_text() for one in ("fam", "infini")]
    assert main(words) == 0
    assert json.loads((tmp_path / memories.COMPARISON_JSON).read_text()) == first
    assert lines == [(tmp_path / f"{one}_seed0" / "metrics.jsonl").read_text() for one in ("fam", "infini")]
    assert (tmp_path / memories.COMPARISON_HTML).is_file()
