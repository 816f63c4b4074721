"""A plan as JSON: what `--json` writes, and what the table shows."""

from typing import Any

from famjax.config import MESH_AXES, TrainConfig
from famjax.config.tpu import Topology
from famjax.plan import advice
from famjax.plan.estimate import binds, estimate
from famjax.plan.topology import Figures, figures

SHOWN_COLLECTIVES = 16


def summarise(raw: dict[str, Any], config: TrainConfig, program: str, topology: Topology) -> dict[str, Any]:
    """Every number of a plan.

    `fits`, `peak_bytes_per_device`, `hbm_bytes_per_device`, `flops_per_step`, `collective_bytes`,
    `estimated_step_seconds` and `compile_seconds` stay what they are; docs/plans.md has the others. All that
    ends in `_per_device` and all collectives, cycles and seconds are one device's. Of a program that does not fit,
    what only a finished compilation tells is null; so are cycles and the estimate of one that was quick.
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
    """HBM that a program needs at its fullest: arguments, results that do not take an argument's place, temporaries
    (their peak), and its code."""
    return memory["argument"] + memory["output"] - memory["alias"] + memory["temp"] + memory["generated_code"]


def least_seconds(raw: dict[str, Any], at_peak: float, chip: Figures) -> float | None:
    """All products at the chips' peak rate, and all collectives: no step is faster unless they overlap.

    To compare programs for which no code was made."""
    if "collectives" not in raw:
        return None
    return at_peak + sum(one["sent"] for one in raw["collectives"]) / chip.link_bytes_per_second


def by_kind(collectives: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each kind: how many stand in the program, runs a step, bytes of the arrays, and bytes that are sent."""
    found: dict[str, dict[str, float]] = {}
    for one in collectives:
        kind = found.setdefault(one["kind"], {"count": 0, "runs": 0, "bytes": 0, "sent": 0})
        for name, value in (("count", 1), ("runs", one["runs"]), ("bytes", one["bytes"]), ("sent", one["sent"])):
            kind[name] += value
    return found
