"""The real compiler on small programs, by the command line, for a slice that is not here."""

import importlib.machinery
import json
import os
import subprocess
import sys

import pytest

from famjax.cli.main import main
from famjax.config import MemoryConfig, ModelConfig
from famjax.plan import report, search
from tests.plan.test_summary import CONTRACT

TINY = (
    "--gin_file", "gin/models/fam_tiny.gin", "--gin.ModelConfig.num_layers=2", "--gin.ModelConfig.scan_layers=True",
    "--gin.ModelConfig.d_model=128", "--gin.ModelConfig.head_dim=64", "--gin.BLOCK_SIZE=128",
    "--gin.MESH={'fsdp': 4}", "--gin.TASK_FEATURE_LENGTHS={'targets': 384}",
)  # fmt: skip


def plan(tmp_path, *words, topology="v5e:2x2"):
    path = tmp_path / "plan.json"
    assert main(["plan", "--topology", topology, "--json", str(path), *TINY, *words]) == 0
    return json.loads(path.read_text())


def test_a_training_step(tmp_path, capfd):
    """The contract's keys; the loop over 2 layers gathers weights as often as there are layers; nothing but the plan
    and its progress is said. Data need not be there (packed.gin asks for SOURCES)."""
    found = plan(tmp_path, "--gin_file", "gin/data/packed.gin")
    assert set(CONTRACT) <= set(found)
    assert found["fits"] is True
    assert found["held_per_device"]["weights"] < found["peak_bytes_per_device"] < found["hbm_bytes_per_device"]
    assert found["memory_per_device"]["argument"] >= sum(found["held_per_device"].values())
    # Without remat, each weight of the feed-forward layers has 6 operations for each token, and for each of the 8
    # feedback activations beside the 128 tokens of a block.
    rows = 8 * 384 * (128 + 8) // 128
    assert found["compiler_flops_by_part"]["feed-forward"] == 6 * found["parameters"]["feed_forward"] * rows
    assert found["compiler_flops_per_step"] >= found["flops_per_step"]
    assert found["collective_bytes"] > 0
    assert {"projections", "feed-forward", "block attention", "FAM recurrence", "loss", "optimizer"} <= set(
        found["cycles"]
    )
    gathers = [one for one in found["largest_collectives"] if one["kind"] == "all-gather" and one["runs"] == 2]
    assert gathers
    out, err = capfd.readouterr()
    assert "fits" in out and "estimate" in out
    assert all(line.startswith("compiling ") for line in err.splitlines())


@pytest.mark.slow
def test_too_large_is_a_result(tmp_path, capsys):
    """Logits of 300,000 tokens and words at once: exit code 0, the same keys, what is largest, what would help."""
    found = plan(
        tmp_path, "--gin.BATCH_SIZE=1024", "--gin.TrainConfig.loss_chunk=0", "--gin.ModelConfig.vocab_size=500000",
        "--gin.MIXTURE_OR_TASK_NAME='text'",
    )  # fmt: skip
    assert found["fits"] is False
    assert found["peak_bytes_per_device"] > found["hbm_bytes_per_device"]
    assert found["largest_tensors"][0]["part"] == "loss"
    assert found["advice"]
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "part"), [("prefill", "block attention"), ("decode", "FAM recurrence"), ("eval", "FAM recurrence")]
)
def test_serving(program, part, tmp_path):
    """The programs of serving compile; every part that runs has cycles. Whole blocks have no FAM update of its own."""
    found = plan(tmp_path, "--program", program)
    assert found["fits"] is True
    assert {"projections", "feed-forward", part} <= set(found["cycles"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no topology: add --topology NAME. Known: v5e"),
        (("--topology", "v5e:3x3", *TINY), "there is no v5e slice of 3x3 chips"),
        (("--topology", "v5e:4x4", *TINY), "is 4 devices, but v5e:4x4 has 16 devices"),
        (("--topology", "v5e:2x2"), "no settings: add --gin_file"),
        (("--topology", "v5e:2x2", *TINY, "--gin.BATCH_SIZE=6"), "BATCH_SIZE 6 does not divide"),
        (("--topology", "v5e:4x4", *TINY, "--gin.MICROBATCHES=0"), "MICROBATCHES is 0; it must be at least 1"),
        (("--topology", "v5e:2x2", *TINY, "--gin.MESH=4"), "TrainConfig.mesh is 4; it must be of type dict"),
        (("--topology", "v5e:2x2", *TINY, "--gin.MESH={'data': '4'}"), "MESH axis data is '4'; it must be a number"),
        (
            ("--topology", "v5e:2x2", "--gin_file", "gin/models/fam_1b.gin", "--search", "--gin.BATCH_SIZE=0"),
            "BATCH_SIZE is 0; it must be at least 1",
        ),
        (
            ("--topology", "v5e:2x2", "--gin_file", "gin/models/fam_1b.gin", "--search", "--gin.BATCH_SIZE='8'"),
            "TrainConfig.batch_size is '8'; it must be of type int",
        ),
        (("--topology", "v5e:2x2", *TINY, "--lengths", "8q"), "'8q' is not a length"),
        (("--topology", "v5e:2x2", *TINY, "--lengths", "1k,1km"), "'1km' is not a length"),
        (
            ("--topology", "v5e:2x2", *TINY, "--lengths", "0"),
            "--lengths 0 is not a positive multiple of block_size 128",
        ),
        (("--topology", "v5e:2x2", *TINY, "--lengths=-1k"), "--lengths -1024 is not a positive multiple"),
        (("--topology", "v5e:2x2", *TINY, "--lengths", "1k", "--dump", "d"), "--dump has no effect with --lengths"),
        (
            ("--topology", "v5e:2x2", *TINY, "--search", "--dump", "d"),
            "--dump has no effect with --lengths or --search",
        ),
        (("--topology", "v5e:2x2", *TINY, "--tries", "3"), "--tries has no effect without --search"),
        (("--topology", "v5e:2x2", *TINY, "--lengths", "400"), "not a positive multiple of block_size 128"),
        (
            ("--topology", "v5e:2x2", *TINY, "--json", "setup.py/plan.json"),
            "--json setup.py/plan.json cannot",
        ),
        (("--topology", "v5e:2x2", *TINY, "--lengths", "1k", "--search"), "choose one"),
        (
            ("--topology", "v5e:2x2", "--gin_file", "gin/runs/finetune_imported.gin"),
            "is taken from INITIAL_CHECKPOINT_PATH",
        ),
        (("--topology", "v5e:2x2", *TINY, "--search", "--program", "decode"), "are for training steps"),
        (("--topology", "v5e:2x2", *TINY, "--search", "--tries", "0"), "it must be at least 1"),
        (("--topology", "v5e:2x2", *TINY, "--search"), "--gin.MESH has no effect with --search, which tries several"),
    ],
)
def test_mistakes(words, message, capsys):
    """One line and exit code 2, before anything is compiled."""
    assert main(["plan", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_search_for_an_imported_model(tmp_path, monkeypatch):
    """The model is that of a directory, so its remat policy is a setting of `model_of_checkpoint`: each one is tried,
    and the setting that is printed is one that `famjax train` takes. Other changes of the model stay."""
    (tmp_path / "model.json").write_text(ModelConfig(remat="none", memory=MemoryConfig(8, 1, 2)).to_json())
    tried = {}

    def plan(self, bindings, keep=None, quick=False):
        model = self.configured(bindings).model
        assert model.dtype == "float32"
        tried[bindings[2]] = model.remat
        return {"settings": bindings, "fits": True, "least_step_seconds": 1.0, "peak_bytes_per_device": 1}

    monkeypatch.setattr(search.Job, "plan", plan)
    monkeypatch.setattr(report, "comparison", lambda plans: "")
    words = ["--gin_file", "gin/runs/finetune_imported.gin", f"--gin.INITIAL_CHECKPOINT_PATH='{tmp_path}'"]
    words += ["--gin.model_of_checkpoint.changes={'dtype': 'float32'}"]
    assert main(["plan", "--topology", "v5e:2x2", "--search", "--quick", *words]) == 0
    assert tried == {f"model_of_checkpoint.remat='{policy}'": policy for policy in ("full", "minimal", "none")}


def test_without_libtpu(monkeypatch, capsys):
    """One line with the command that installs it."""
    find = importlib.machinery.PathFinder.find_spec
    without = lambda name, *where: None if name == "libtpu" else find(name, *where)
    monkeypatch.setattr("importlib.machinery.PathFinder.find_spec", without)
    assert main(["plan", "--topology", "v5e:2x2", *TINY]) == 2
    assert "pip install libtpu==" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["import jax; {}", "{}; import jax"])
def test_libtpu_does_not_disturb_a_machine_without_tpu(order):
    """jax uses the CPU and prints nothing, though libtpu is installed."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "TPU_LIBRARY_PATH")
    }
    found = "import importlib.util; assert importlib.util.find_spec('libtpu')"
    begun = "from famjax.cli.main import main; assert main(['score', '--help']) == 0"
    program = f"{found}; {order.format(begun)}; print(jax.devices()[0].platform)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout.splitlines()[-1], done.stderr, done.returncode) == ("cpu", "", 0)
