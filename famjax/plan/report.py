"""Formats plans as text."""

from typing import Any

LABEL = 14


def text(plan: dict[str, Any]) -> str:
    """Returns about thirty lines: whether the program fits, its memory, time by part, and its bottleneck."""
    lines = [*_head(plan), "", *_memory(plan)]
    if plan["cycles"] is not None:
        lines += ["", *_work(plan), "", *_collectives(plan), "", *_estimate(plan)]
    elif plan["collectives"] is not None:
        lines += ["", *_operations(plan), "", *_collectives(plan)]
        if plan["fits"]:
            least = f"at least {plan['least_step_seconds']:.3g} s per step, at the chips' peak rate"
            lines += ["", _row("time", f"{least}; for an estimate run without --quick")]
    if plan["advice"]:
        lines += ["", "what would help", *(f"  {line}" for line in plan["advice"])]
    lines += [line for note in plan.get("notes", ()) for line in ("", f"note: {note}")]
    return "\n".join(lines)


def _row(label: str, what: str) -> str:
    return f"{label:<{LABEL}}{what}"


def _head(plan: dict[str, Any]) -> list[str]:
    rows, tokens, parts = plan["batch_size"], plan["tokens_per_step"], plan["microbatches"]
    what = {
        "train": f"a training step of {rows} rows of {plan['sequence_length']:,} tokens in {parts} "
                 f"microbatch{'es' * (parts > 1)}, remat {plan['remat']}",
        "prefill": f"prefill of {tokens:,} tokens in {rows} rows",
        "decode": f"decoding {tokens // rows} tokens in each of {rows} rows",
        "eval": f"scoring {tokens:,} tokens in {rows} rows",
    }[plan["program"]]  # fmt: skip
    slices = f"{plan['slices']} x " if plan["slices"] > 1 else ""
    mesh = ", ".join(f"{axis} {number}" for axis, number in plan["mesh"].items())
    return [
        what,
        f"on {slices}{plan['topology']}: {plural(plan['chips'], 'chip')}, {plural(plan['hosts'], 'host')}, mesh {mesh}",
        f"compiled by libtpu {plan['versions']['libtpu']} in {plan['compile_seconds']:.0f} s; nothing was run",
    ]


def _memory(plan: dict[str, Any]) -> list[str]:
    peak, has = size(plan["peak_bytes_per_device"]), size(plan["hbm_bytes_per_device"])
    lines = [
        _row("fits", f"{peak} of {has} per device; {size(plan['left_bytes_per_device'])} left")
        if plan["fits"]
        else _row("DOES NOT FIT", f"{peak} needed, {has} available per device"),
        _row("given", ", ".join(f"{name} {size(held)}" for name, held in plan["held_per_device"].items())),
    ]
    if memory := plan["memory_per_device"]:
        new = size(max(memory["output"] - memory["alias"], 0))
        what = f"arguments {size(memory['argument'])}, temporaries {size(memory['temp'])}, new results {new}"
        lines.append(_row("program", what))
    if plan["largest_tensors"]:
        lines.append(_row("largest", "tensors, not all at once:"))
    for one in plan["largest_tensors"][:6]:
        times = f"{one['count']} x " if one["count"] > 1 else ""
        lines.append(_row("", f"{times + size(one['bytes']):>14}  {one['shape']}, {one['part']}"))
    groups = ", ".join(f"{name} {count(number)}" for name, number in plan["parameters"].items() if number)
    total, trained = count(sum(plan["parameters"].values())), count(plan["trained_parameters"])
    return [*lines, _row("weights", f"{total} ({trained} trained): {groups}")]


def _operations(plan: dict[str, Any]) -> list[str]:
    formula, given = plan["flops_per_step"], plan["compiler_flops_per_step"]
    return [
        _row("operations", f"{formula:.4g} FLOPs by the model's formula"),
        _row("", f"{given:.4g} given to the compiler, {given / formula:.2f} times that, with rematerialisation"),
    ]


def _work(plan: dict[str, Any]) -> list[str]:
    cycles = plan["cycles"]
    total = sum(cycles.values()) or 1
    lines = [*_operations(plan), _row("cycles", f"{total / 1e9:.2f}e9 per device, the compiler's estimate")]
    for part, value in sorted(cycles.items(), key=lambda one: -one[1]):
        if value > 0.001 * total:
            lines.append(_row("", f"{value / total:6.1%}  {value / 1e9:8.3f}e9  {part}"))
    for one in plan["kernels"]:
        lines.append(_row("", f"not included: {one['runs']:.0f} runs of the kernel {one['name']}, {one['part']}"))
    return lines


def _collectives(plan: dict[str, Any]) -> list[str]:
    lines = [_row("collectives", f"{plan['collective_bytes'] / 1e9:.1f} GB of arrays per device and step")]
    for kind, one in sorted(plan["collectives"].items(), key=lambda item: -item[1]["bytes"]):
        times = f"{one['count']:.0f} in the program, {one['runs']:.0f} runs"
        lines.append(_row("", f"{one['bytes'] / 1e9:8.2f} GB  {kind}, {times}"))
    if len(plan["largest_collectives"]) > 1:
        lines.append(_row("", "largest:"))
    for one in plan["largest_collectives"][:4]:
        what = f"{one['runs']:.0f} x {one['kind']} of {size(one['payload'])} over {one['devices']} devices"
        lines.append(_row("", f"{one['bytes'] / 1e9:8.2f} GB  {what}, {one['part']}"))
    return lines


def _estimate(plan: dict[str, Any]) -> list[str]:
    seconds = plan["estimated_seconds"]
    parts = {"compute": sum(seconds["parts"].values()), "kernels": seconds["kernels"],
             "collectives": seconds["collectives"]}  # fmt: skip
    what = ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    rate = f"{plan['estimated_tokens_per_second']:,.0f} tokens/s, {plan['estimated_mfu']:.1%} of the chips' peak FLOP/s"
    lines = [
        _row("estimate", f"{seconds['longest']:.3g} s per step: {what}; {seconds['shortest']:.3g} if all overlapped"),
        _row("", f"{rate} (model FLOPs); bound by {plan['binds']}"),
    ]
    if plan["estimated_chip_hours"] is not None:
        hours = plan["estimated_chip_hours"]
        lines.append(_row("", f"{hours:,.0f} chip-hours for {plan['train_steps']:,} steps"))
    return [*lines, _row("", "from the compiler's cycles and published rates (docs/plans.md); nothing was measured")]


def size(number: float) -> str:
    """Returns bytes with a unit: 1.50 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(number) < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.2f} GiB"


def plural(number: int, what: str) -> str:
    """Returns "1 chip", "2 chips"."""
    return f"{number} {what}{'s' * (number != 1)}"


def count(number: float) -> str:
    """Returns 1.19e9 for 1,190,000,000."""
    return f"{number:,}" if number < 1e6 else f"{number / 1e6:.4g}e6" if number < 1e9 else f"{number / 1e9:.4g}e9"


# Columns of a comparison: header, width, and value; `_FINISHED` only if compilation has finished.
_COLUMNS = (
    ("length", 9, lambda plan: f"{plan['sequence_length']:,}"),
    ("rows", 5, lambda plan: str(plan["batch_size"])),
    ("mesh", 9, lambda plan: ",".join(map(str, plan["mesh"].values()))),
    ("micro", 5, lambda plan: str(plan["microbatches"])),
    ("remat", 7, lambda plan: plan["remat"]),
    ("per device", 10, lambda plan: size(plan["peak_bytes_per_device"])),
    ("fits", 4, lambda plan: "yes" if plan["fits"] else "NO"),
    ("GB sent", 7, lambda plan: "-" if plan["collective_bytes"] is None else f"{plan['collective_bytes'] / 1e9:.1f}"),
    ("least s", 8, lambda plan: "-" if plan["least_step_seconds"] is None else f"{plan['least_step_seconds']:.3g}"),
)
_FINISHED = (
    ("Gcycles", 8, lambda plan: f"{sum(plan['cycles'].values()) / 1e9:.2f}"),
    ("s/step", 8, lambda plan: f"{plan['estimated_step_seconds']:.3g}"),
    ("tokens/s", 10, lambda plan: f"{plan['estimated_tokens_per_second']:,.0f}"),
    ("MFU", 6, lambda plan: f"{plan['estimated_mfu']:.1%}"),
)


def comparison(plans: list[dict[str, Any]]) -> str:
    """Returns a table of plans, one per line; after a search also the settings of the first."""
    lines = [" ".join(f"{name:>{width}}" for name, width, _ in (*_COLUMNS, *_FINISHED))]
    for plan in plans:
        cells = [f"{of(plan):>{width}}" for _, width, of in _COLUMNS]
        finished = plan["cycles"] is not None
        cells += [f"{of(plan) if finished else '-':>{width}}" for _, width, of in _FINISHED]
        lines.append(" ".join(cells))
    if any(one.startswith("MESH=") for one in plans[0]["settings"]) and plans[0]["fits"]:
        pairs = (one.split("=", 1) for one in plans[0]["settings"])
        lines += ["", "the first: " + " ".join(f'--gin.{name}="{value}"' for name, value in pairs)]
    lines += [line for note in plans[0].get("notes", ()) for line in ("", f"note: {note}")]
    return "\n".join(lines)
