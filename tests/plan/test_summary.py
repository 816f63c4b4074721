"""From the compiler's numbers to a plan: by hand."""

import pytest

from famjax.config import MemoryConfig, ModelConfig, TrainConfig
from famjax.plan import report, search
from famjax.plan.summary import summarise
from famjax.plan.topology import planned

GIB = 2**30
CONTRACT = (
    "fits", "peak_bytes_per_device", "hbm_bytes_per_device", "flops_per_step", "collective_bytes",
    "estimated_step_seconds", "compile_seconds",
)  # fmt: skip
COLLECTIVE = {
    "kind": "all-gather", "runs": 10, "payload": 10**9, "devices": 4, "part": "other", "path": "", "bytes": 10**10,
    "sent": 9 * 10**9,
}  # fmt: skip


TENSOR = {"bytes": 5, "shape": "f32[1]", "part": "loss", "path": "", "count": 1}


def config(**fields) -> TrainConfig:
    memory = MemoryConfig(block_size=8, memory_segments=1, fam_length=2)
    mesh = {"data": 1, "fsdp": 4, "tensor": 1}
    run = {"sequence_length": 64, "batch_size": 16, "mesh": mesh, "steps": 100} | fields
    return TrainConfig(model_dir="x", model=ModelConfig(remat="none", memory=memory), **run)


def raw(peak: int = 10 * GIB, **fields):
    memory = {"argument": 4, "output": 3, "alias": 2, "temp": peak - 6, "generated_code": 1}
    return {
        "tokens": 1000, "held": {"weights": 2 * GIB, "optimizer": GIB}, "lower_seconds": 1.25, "compile_seconds": 2.25,
        "peak_flops_per_chip": 197e12, "versions": {"libtpu": "0"}, "parameters": {"fam": 7}, "trained_parameters": 7,
        "flops_per_step": 197e12, "products": {"loss": 3e12}, "memory": memory, "cycles": {"loss": 3e9, "other": 1.5e9},
        "collectives": [COLLECTIVE], "tensors": [TENSOR],
        "kernels": [{"name": "k", "runs": 10, "flops": 1e12, "bytes_accessed": 1, "part": "block attention"}],
    } | fields  # fmt: skip


def test_the_estimate_by_hand():
    """v5e: 4.5e9 cycles at 1.5 GHz, kernels at half of 197 TFLOP/s, 9 GB over 90 GB/s; nothing overlaps."""
    plan = summarise(raw(), config(), "train", planned("v5e:2x2"))
    kernels = 10 * 1e12 / (197e12 / 2)
    step = 3 + kernels + 0.1
    assert plan["estimated_step_seconds"] == pytest.approx(step)
    assert plan["estimated_seconds"]["shortest"] == pytest.approx(3 + kernels)
    assert plan["estimated_tokens_per_second"] == pytest.approx(1000 / step)
    assert plan["estimated_mfu"] == pytest.approx(197e12 / (step * 4 * 197e12))
    assert plan["estimated_chip_hours"] == pytest.approx(step * 100 * 4 / 3600)
    assert plan["compiler_flops_per_step"] == pytest.approx(3e12 + 4 * 10 * 1e12)
    assert plan["collective_bytes"] == 10**10
    assert plan["compile_seconds"] == 3.5
    assert plan["fits"] and plan["binds"] == "compute" and plan["advice"] == []
    assert set(CONTRACT) <= set(plan)


def test_what_binds():
    """Collectives that take longer than all else; memory that is nearly full."""
    slow = COLLECTIVE | {"sent": 9e11}
    assert summarise(raw(collectives=[slow]), config(), "train", planned("v5e:2x2"))["binds"] == "collectives"
    assert summarise(raw(peak=int(15.5 * GIB)), config(), "train", planned("v5e:2x2"))["binds"] == "memory"


def too_large(**fields):
    found = raw(needed_bytes=20 * GIB, **fields)
    return {name: value for name, value in found.items() if name not in ("memory", "cycles")}


def test_a_quick_plan_has_memory_and_collectives():
    """The same keys; no estimate, but a bound: 3e12 + 4e13 FLOPs at 4 x 197 TFLOP/s, and 9 GB at 90 GB/s."""
    found = raw()
    del found["cycles"]
    plan = summarise(found, config(), "train", planned("v5e:2x2"))
    assert set(plan) == set(summarise(raw(), config(), "train", planned("v5e:2x2")))
    assert plan["fits"] is True and plan["peak_bytes_per_device"] == 10 * GIB
    assert plan["cycles"] is None and plan["estimated_step_seconds"] is None and plan["binds"] is None
    assert plan["least_step_seconds"] == pytest.approx(4.3e13 / (4 * 197e12) + 0.1)
    assert "at least" in report.text(plan)


def test_a_program_that_does_not_fit_is_a_result():
    """The same keys; numbers that need a finished compilation are null; helpful settings are suggested."""
    plan = summarise(too_large(), config(), "train", planned("v5e:2x2"))
    assert set(plan) == set(summarise(raw(), config(), "train", planned("v5e:2x2")))
    assert plan["fits"] is False and plan["binds"] == "memory"
    assert plan["peak_bytes_per_device"] == 20 * GIB
    assert plan["left_bytes_per_device"] < 0
    assert plan["estimated_step_seconds"] is None and plan["cycles"] is None
    help_ = " ".join(plan["advice"])
    assert "remat" in help_ and "MICROBATCHES=2" in help_ and "loss_chunk=1024" in help_
    assert "DOES NOT FIT  20.00 GiB" in report.text(plan)


def test_advice_follows_what_is_large():
    """Weights that fill a device ask for more devices; a row a device has no microbatches."""
    plan = summarise(too_large(held={"weights": 10 * GIB}), config(batch_size=4), "train", planned("v5e:2x2"))
    lines = " ".join(plan["advice"])
    assert "more devices along fsdp" in lines and "MICROBATCHES" not in lines and "along tensor" in lines


@pytest.mark.parametrize("length", [64, 128, 1024, 8192])
def test_lengths_keep_the_tokens_of_a_step(length):
    """As many rows as have a step's tokens, but at least one a device; microbatches divide what is left."""
    run = config(microbatches=4)
    names = dict(one.split("=", 1) for one in search.of_length(run, length))
    rows, parts = int(names["BATCH_SIZE"]), int(names["MICROBATCHES"])
    assert names["TASK_FEATURE_LENGTHS"] == f"{{'targets': {length}}}"
    assert rows == max(4, 16 * 64 // length)
    assert (rows // 4) % parts == 0 and parts <= 4


def test_a_search_ends_with_what_does_not_fit_after_all(monkeypatch):
    """The best by buffer assignment has no room when it is compiled completely, and so no estimate."""

    def plan(self, bindings, keep=None, quick=False):
        fits = quick or bindings != best
        return {"settings": bindings, "fits": fits, "least_step_seconds": 1 + (bindings != best),
                "peak_bytes_per_device": 1, "estimated_step_seconds": 3.0 if fits and not quick else None}  # fmt: skip

    monkeypatch.setattr(search.Job, "plan", plan)
    job = search.Job("train", planned("v5e:2x2"), lambda bindings: config(), lambda bindings, folder: [])
    best = ["MESH={'data': 1, 'fsdp': 4, 'tensor': 1}", "MICROBATCHES=1", "ModelConfig.remat='full'"]
    found = search.search(job, config(), 4, lambda what: None, quick=False)
    assert found[0]["estimated_step_seconds"] == 3.0 and found[-1]["settings"] == best


def test_search_compiles_few_and_ranks_what_fits(monkeypatch):
    """A mesh and policy that fit are not tried with more microbatches; those that fit come first, the fastest first.
    Two are compiled to the end, and stand in the order of their estimates."""
    asked = []

    def plan(self, bindings, keep=None, quick=False):
        asked.append((tuple(bindings), quick))
        fits = "MICROBATCHES=1" not in bindings
        number = len(asked)
        return {"settings": bindings, "fits": fits, "least_step_seconds": 1 / number, "peak_bytes_per_device": 1,
                "estimated_step_seconds": None if quick else 100 - number}  # fmt: skip

    monkeypatch.setattr(search.Job, "plan", plan)
    job = search.Job("train", planned("v5e:2x2"), lambda bindings: config(), lambda bindings, folder: [])
    found = search.search(job, config(), 12, lambda what: None, quick=False)
    assert [quick for _, quick in asked] == 12 * [True] + 2 * [False]
    assert len(found) == 12
    fit = [one for one in found if one["fits"]]
    assert len(fit) > 2 and found[: len(fit)] == fit
    assert (
        fit[0]["estimated_step_seconds"] < fit[1]["estimated_step_seconds"] and fit[2]["estimated_step_seconds"] is None
    )
    bounds = [one["least_step_seconds"] for one in fit[2:]]
    assert bounds == sorted(bounds)
    chosen = [(one["settings"][0], one["settings"][2]) for one in fit]
    assert len(chosen) == len(set(chosen))
