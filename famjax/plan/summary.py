"""A plan as JSON, for `--json` and the report."""

from typing import Any

from famjax.config import MESH_AXES, TrainConfig
from famjax.config.tpu import Topology
from famjax.plan import advice
from famjax.plan.estimate import binds, estimate
from famjax.plan.topology import Figures, figures

SHOWN_COLLECTIVES = 16


def summarise(raw: dict[str, Any], config: TrainConfig, program: str, topology: Topology) -> dict[str, Any]:
    """Returns all numbers of a plan.

    `fits`, `peak_bytes_per_device`, `hbm_bytes_per_device`, `flops_per_step`, `collective_bytes`,
    `estimated_step_seconds` and `compile_seconds` are stable names; docs/plans.md describes the others. Names
    ending in `_per_device`, collectives, cycles and seconds are for one device. Numbers that need a finished
    compilation are null for a program that does not fit; with `--quick`, cycles and the estimate are null.
    """
    chip, memory = figures(topology), raw.get("memory")
    peak = peak_bytes(memory) if memory else raw["needed_bytes"]
    peak_flops = raw["peak_flops_per_chip"] / topology.chip.devices
    found = estimate(raw, chip, peak_flops) if "cycles" in raw else None
    fits = memory is not None and peak <= chip.hbm_bytes
    products = sum(raw["products"].values())
    kernel_flops = topology.devices * sum(one["runs"] * one["flops"] for one in raw.get("kernels", ()))
    given = products + kernel_flops
    step = found.longest if found else None
    tokens, flops = raw["tokens"], raw["flops_per_step"]
    result = {
        "program": program,
        "topology": str(topology), "slices": topology.slices, "chips": topology.chips, "hosts": topology.hosts,
        "devices": topology.devices,
        "mesh": dict(zip(MESH_AXES, config.mesh_sizes, strict=True)),
        "batch_size": config.batch_size, "sequence_length": config.sequence_length, "microbatches": config.microbatches,
        "remat": config.model.remat, "tokens_per_step": tokens,
        "fits": fits,
        "peak_bytes_per_device": peak,
        "hbm_bytes_per_device": chip.hbm_bytes,
        "left_bytes_per_device": chip.hbm_bytes - peak,
        "memory_per_device": memory,
        "held_per_device": raw["held"],
        "parameters": raw["parameters"], "trained_parameters": raw["trained_parameters"],
        "flops_per_step": flops,
        "compiler_flops_per_step": given,
        "compiler_flops_by_part": raw["products"],
        "collective_bytes": sum(one["bytes"] for one in raw["collectives"]) if "collectives" in raw else None,
        "collectives": by_kind(raw["collectives"]) if "collectives" in raw else None,
        "largest_collectives": raw.get("collectives", [])[:SHOWN_COLLECTIVES],
        "cycles": raw["cycles"] if found else None,
        "kernels": raw.get("kernels", []),
        "estimated_seconds": {
            "parts": found.by_part, "kernels": found.kernels, "collectives": found.collectives,
            "shortest": found.shortest, "longest": found.longest,
        } if found else None,
        "estimated_step_seconds": step,
        "least_step_seconds": least_seconds(raw, given / (topology.devices * peak_flops), chip),
        "estimated_tokens_per_second": tokens / step if step else None,
        "estimated_mfu": flops / (step * topology.devices * peak_flops) if step else None,
        "estimated_chip_hours": step * config.steps * topology.chips / 3600 if step and program == "train" else None,
        "train_steps": config.steps,
        "binds": binds(peak, found, chip) if found or not fits else None,
        "largest_tensors": raw.get("tensors", []),
        "compile_seconds": round(raw["lower_seconds"] + raw["compile_seconds"], 1),
        "versions": raw["versions"],
    }  # fmt: skip
    return result | {"advice": advice.advice(result, config)}


def peak_bytes(memory: dict[str, int]) -> int:
    """Returns the peak HBM bytes: arguments, results that are not aliased to arguments, peak temporaries, and code."""
    return memory["argument"] + memory["output"] - memory["alias"] + memory["temp"] + memory["generated_code"]


def least_seconds(raw: dict[str, Any], at_peak: float, chip: Figures) -> float | None:
    """Returns the time of all products at the peak rate plus all collectives: a lower bound unless they overlap.

    It compares programs without code generation.
    """
    if "collectives" not in raw:
        return None
    return at_peak + sum(one["sent"] for one in raw["collectives"]) / chip.link_bytes_per_second


def by_kind(collectives: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns for each kind of collective: number in the program, executions, array bytes and bytes sent per step."""
    found: dict[str, dict[str, float]] = {}
    for one in collectives:
        kind = found.setdefault(one["kind"], {"count": 0, "runs": 0, "bytes": 0, "sent": 0})
        for name, value in (("count", 1), ("runs", one["runs"]), ("bytes", one["bytes"]), ("sent", one["sent"])):
            kind[name] += value
    return found
