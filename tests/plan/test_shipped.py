"""The shipped configurations, and the script that compiles them."""

import shlex

import pytest

from famjax.cli import plan
from famjax.cli.main import parse
from famjax.plan import topology
from tests.studies import script

plan_all = script("plan_all")


def test_every_size_is_shipped_for_its_chips():
    """The paper's three runs at their chips, without FAM, with all weights, from random weights, and serving."""
    commands = "\n".join(plan_all.shipped())
    for size, slice_ in (("1b", "v5p:2x2x4"), ("8b", "v5p:2x4x4"), ("24b", "v5p:4x4x4")):
        lora = f"--gin_file gin/experiments/finetune_{size}.gin --topology {slice_}"
        for words in (lora, f"{lora} --gin.FAM_LENGTH=0", f"{lora} --gin.LORA_RANK=0", f"pretrain_{size}.gin",
                      f"fam_{size}.gin"):  # fmt: skip
            assert words in commands
    assert "long_1b.gin --topology v5e:4x4" in commands


@pytest.mark.parametrize("command", plan_all.shipped())
def test_settings_of_shipped_plans(command):
    """Topology, mesh and all settings pass; what is left is the compiler's to say."""
    args = parse(plan, shlex.split(command))
    there = topology.planned(args.topology, args.num_slices)
    config = plan._config(args, args.gin_bindings)
    topology.check_mesh(config.mesh, there, config.batch_size, config.microbatches)
    config.validate()


def test_the_table():
    """One line a result: finished, quick, too large, failed."""
    found = {
        "name": "LoRA", "compiled": "2026-01-02", "program": "train", "topology": "v5e:2x2", "fits": True,
        "mesh": {"data": 1, "fsdp": 4, "tensor": 1}, "batch_size": 8, "sequence_length": 1024, "microbatches": 2,
        "peak_bytes_per_device": 3 * 2**30, "hbm_bytes_per_device": 4 * 2**30, "collective_bytes": 5e9,
        "cycles": {"loss": 3e9}, "estimated_step_seconds": 2.0, "estimated_tokens_per_second": 4096,
        "estimated_mfu": 0.25, "least_step_seconds": 1.5,
    }  # fmt: skip
    results = {
        "--gin_file gin/a.gin --topology v5e:2x2": found,
        "--gin_file gin/b.gin": found | {"cycles": None},
        "--gin_file gin/c.gin": found | {"cycles": None, "fits": False, "program": "decode"},
        "--gin_file gin/d.gin": {"name": "LoRA", "compiled": "2026-01-02", "error": "it failed"},
    }
    _, _, *lines = plan_all.table(results)
    assert lines[0] == (
        "| `a`, LoRA | v5e:2x2 | 1,4,1; 8 x 1,024, 2 microbatches | 3.0 of 4.0 | 5.0 | 3.00 | 2 | 4,096 | 25% "
        "| 2026-01-02 |"
    )
    assert "> 1.5" in lines[1] and lines[1].endswith("2026-01-02, quick |")
    assert "**does not fit**: 3.0 of 4.0" in lines[2] and "8 rows, decode" in lines[2]
    assert "it failed" in lines[3] and len(lines) == 4


def test_results_are_kept_and_gone_on_with(tmp_path, monkeypatch, capsys):
    """What is there is not compiled again, unless it was quick and shall be finished; what fails leaves exit code 1."""
    commands = {"--gin_file gin/a.gin": "A", "--gin_file gin/b.gin": "B"}
    page = plan_all.PAGE._replace(path=tmp_path / "plans.md", results=tmp_path / "plans.json", tables={})
    page.path.write_text("<!-- plans -->\n<!-- end of plans -->")
    asked = []

    def compile_one(command, quick):
        asked.append((command[-5:], quick))
        fine = {"cycles": None if quick else {}, "fits": True, "compiled": "today"}
        return fine if "a.gin" in command else {"error": "no", "compiled": "today"}

    monkeypatch.setattr(plan_all, "compile_one", compile_one)
    monkeypatch.setattr(plan_all, "shipped", lambda: commands)
    monkeypatch.setattr(plan_all, "PAGE", page)
    run = lambda *words: (monkeypatch.setattr("sys.argv", ["plan_all.py", *words]), plan_all.main())[1]
    assert run("--quick") == 1
    assert run("--quick", "--only", "a.gin") == 0
    assert run("--only", "a.gin") == 0
    assert run("--only", "a.gin") == 0
    assert asked == [("a.gin", True), ("b.gin", True), ("a.gin", False)]
    assert page.read()["--gin_file gin/a.gin"]["name"] == "A"
