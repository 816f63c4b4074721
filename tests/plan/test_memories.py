"""Plans of every shipped memory: the bytes of its state are those of the real one, and its step compiles."""

import json
from pathlib import Path

import jax
import pytest

from famjax.cli.gin_config import load_train_config
from famjax.cli.main import main
from famjax.config import TrainConfig
from famjax.infer.session import start
from famjax.mesh.devices import make_mesh
from famjax.nn.weights import create, unstacked
from famjax.plan import child, compile, programs, search
from famjax.plan.summary import summarise
from famjax.plan.topology import planned
from famjax.train import optim
from famjax.train import state as states
from tests.plan.test_summary import raw

ROOT = Path(__file__).parents[2]
MEMORIES = sorted(path.stem for path in (ROOT / "gin/memories").glob("*.gin"))
SIZES = ("ModelConfig.num_layers=2", "ModelConfig.d_model=16", "ModelConfig.d_ff=16", "ModelConfig.head_dim=8",
         "BLOCK_SIZE=16", "BATCH_SIZE=3", "TASK_FEATURE_LENGTHS={'targets': 1024}", "MODEL_DIR='none'",
         "MIXTURE_OR_TASK_NAME='passkey'", "PassKeyConfig.stages=(1,)", "PassKeyConfig.stream_share=0.5")  # fmt: skip


def config_of(memory: str) -> TrainConfig:
    """Returns a training whose documents continue across steps, so that its state has a memory for each row."""
    files = ("gin/models/fam_tiny.gin", "gin/runs/pretrain.gin", f"gin/memories/{memory}.gin")
    config, _ = load_train_config([str(ROOT / file) for file in files], (), SIZES)
    config.validate()
    return config


def size(tree: object) -> int:
    """Bytes of real arrays."""
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_state_has_the_planned_bytes(memory: str) -> None:
    """Of a training state and of a batch of sessions, as they are created; in training all layers have full rings."""
    config, mesh = config_of(memory), make_mesh()
    tx = optim.optimizer(config.optimizer, config.steps)
    held = programs.held_by_training(states.abstract(config, tx, mesh))
    real = states.create(config, tx, mesh)
    assert held["memories"] == size((real.passed_fam, real.memory)) > 0
    assert held["weights"] == size(real.params) and held["optimizer"] == size(real.opt_state)
    served = programs.served(config.model, config.batch_size, mesh)[3]
    model = unstacked(create(programs.served_model(config.model)))
    assert served["memories"] == size(start(model, config.batch_size).memory) > 0


def test_memories_that_keep_more_plan_more() -> None:
    """By hand: beside a ring of one block of 16 keys and values [2 heads, 8], in float32, for each of 3 rows and 2
    layers; positions and counts have 4 bytes each."""
    mesh = make_mesh()
    held = {name: programs.served(config_of(name).model, 3, mesh)[3]["memories"] for name in MEMORIES}
    layer = lambda numbers: 3 * 2 * 4 * numbers  # rows, layers, bytes of a float32
    block = 2 * 2 * 16 * 8
    bswa = layer(block) + 3 * (4 + 4)
    assert held["bswa"] == bswa
    assert held["bswa_1"] == bswa + layer(block)
    assert held["fm"] == held["bswa_1"] + layer(block)  # the outputs of the block in progress
    fam = layer(8 * 16 + 2 * 2 * 8 * 8)
    assert held["fam"] == held["fam_gated"] == bswa + fam
    assert held["sum"] == bswa + fam + layer(8 * 16)  # the prompt
    assert held["retrieval"] >= bswa + layer(64 * block)


def test_serving_counts_the_operations_of_a_memory() -> None:
    """By hand, of decoding one token with a matrix [2 heads, 8, 8] in 2 layers: two projections [16, 2], two numbers a
    head and a gate a head; recall for two query heads, recall and update for two key heads."""
    plain, delta = (compile._counts(config_of(name), "decode", 1)["flops_per_step"] for name in ("bswa", "deltanet"))
    layer = 2 * (4 * 16 * 2 * 8 + 3 * 16 * 16)
    assert plain == 2 * layer + 2 * 256 * 16
    assert delta - plain == 2 * (2 * (2 * 16 * 2 + 2 * 2 + 2) + 2 * 8 * 8 * (2 + 2 * 2))


@pytest.mark.parametrize("task", ["babi", "passkey"])
def test_a_plan_of_babi_says_whose_rows_it_has(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One line, and in the JSON; nothing of the pass key. No memory is carried, whatever the pass key's settings."""
    asked: list[TrainConfig] = []

    def plan(self, bindings, *rest):
        asked.append(self.configured(bindings))
        return summarise(raw(), asked[0], "train", planned("v5e:2x2"))

    monkeypatch.setattr(search.Job, "plan", plan)
    monkeypatch.setattr(child, "library", lambda: "libtpu.so")
    words = ["plan", "--topology", "v5e:2x2", "--json", str(tmp_path / "plan.json")]
    words += ["--gin_file", str(ROOT / "gin/models/fam_tiny.gin"), "--gin.MESH={'fsdp': 4}", "--gin.BATCH_SIZE=4"]
    words += [f"--gin.MIXTURE_OR_TASK_NAME='{task}'", "--gin.PassKeyConfig.stream_share=0.5"]
    assert main([*words, "--gin.BabiConfig.folder='no'", "--gin.BabiConfig.books=('no',)"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    found = json.loads((tmp_path / "plan.json").read_text())
    if task == "passkey":
        assert not notes and found["notes"] == [] and asked[0].carries_memory
    else:
        assert notes == [f"note: {found['notes'][0]}"] and "task 'babi'" in notes[0] and "pass key's rows" in notes[0]
        assert not asked[0].carries_memory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "program"),
    [("armt", "train"), ("armt", "decode"), ("autocompressor", "train"), ("deltanet", "train"), ("retrieval", "train"),
     ("retrieval", "decode"), ("fam_gated", "train"), ("fm", "train")],
)  # fmt: skip
def test_its_programs_compile(memory: str, program: str, tmp_path: Path) -> None:
    """For a slice of four chips, each with the bytes of its three rows. (Those of the other memories are like them.)"""
    path = tmp_path / "plan.json"
    words = ["plan", "--quick", "--topology", "v5e:2x2", "--program", program, "--json", str(path)]
    files = [str(ROOT / file) for file in ("gin/models/fam_tiny.gin", f"gin/memories/{memory}.gin")]
    words += [word for file in files for word in ("--gin_file", file)]
    small = ("ModelConfig.num_layers=2", "TASK_FEATURE_LENGTHS={'targets': 448}", "MIXTURE_OR_TASK_NAME='passkey'",
             "PassKeyConfig.stages=(1,)", "BATCH_SIZE=12", "MESH={'fsdp': 4}")  # fmt: skip
    words += [f"--gin.{one}" for one in small]
    assert main(words) == 0
    found = json.loads(path.read_text())
    assert found["fits"] is True and found["notes"] == []
    if program == "decode":
        config, _ = load_train_config(["gin/runs/pretrain.gin", *files], (), [*small, "MODEL_DIR='none'"])
        held = programs.served(config.model, 3, make_mesh())[3]["memories"]
        assert found["held_per_device"]["memories"] == held
