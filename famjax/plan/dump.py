"""Reads raw numbers from the compiler's dump. Needs neither jax nor a finished compilation."""

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from famjax.plan import costs, tensors
from famjax.plan.hlo import Program

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The last stage before code generation, which takes nine tenths of the time.
LAID_OUT = "after_optimizations_after_buffer_assignment"
ASSIGNMENT = "after_optimizations-buffer-assignment"
HBM = (None, "0")


def read(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns cycles by part, collectives, kernels, products and largest tensors, as far as the dump has them.

    `cycles` is missing without code generation. `given` has the arguments of `hlo.Program` that are not in the dump.
    """

    def program(path: Path) -> Program:
        with path.open(encoding="utf-8") as lines:
            return Program(lines, given["unknown_trips"], given["branch_share"], given["mesh"])

    start = _module(folder, "before_optimizations")
    result: dict[str, Any] = {"products": costs.products(program(start)) if start else {}}
    code = _module(folder, "after_codegen")
    text = code or _module(folder, "after_optimizations")
    if text is None:
        return result
    made = program(text)
    if code:
        result["cycles"] = costs.cycles_by_part(made)
    result["collectives"] = [vars(one) | {"bytes": one.bytes, "sent": one.sent} for one in costs.collectives(made)]
    result["kernels"] = [vars(one) for one in costs.kernels(made)]
    if assigned := _module(folder, ASSIGNMENT):
        with assigned.open(encoding="utf-8") as lines:
            result["tensors"] = tensors.largest(lines, made)
    return result


def laid_out(folder: Path) -> bool:
    """Returns whether the dump has the complete buffer assignment, which determines memory and collectives.

    The compiler writes it before code generation.
    """
    found = _module(folder, LAID_OUT)
    return found is not None and time.time() - found.stat().st_mtime > 2


def memory(folder: Path) -> dict[str, int]:
    """Returns HBM bytes of a program from its buffer assignment, in the form of `memory_analysis`; code counts as 0."""
    found = _module(folder, ASSIGNMENT)
    assert found is not None
    with found.open(encoding="utf-8") as lines:
        return assigned_bytes(lines)


def assigned_bytes(lines: Iterable[str]) -> dict[str, int]:
    """Returns the bytes in HBM of a buffer assignment by kind.

    A donated argument, which is overwritten by its new value, counts as an argument and not as an output.
    """
    sizes = {"argument": 0, "output": 0, "alias": 0, "temp": 0, "generated_code": 0}
    for line in lines:
        found = re.match(r"allocation \d+: size (\d+)(?:, color (\d+))?, page \d+, (.*)", line)
        if not found or found[2] not in HBM or "thread-local" in found[3]:
            continue
        size, what = int(found[1]), found[3]
        if "preallocated-temp" in what:
            sizes["temp"] += size
        elif "parameter" in what:
            sizes["argument"] += size
        elif "live-out" in what or "output" in what:
            sizes["output"] += size
    return sizes


def needed_bytes(message: str) -> int | None:
    """Returns the bytes needed according to the compiler's out-of-memory message; None for any other message."""
    found = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
    return int(float(found[1]) * UNITS[found[2]]) if found else None


def _module(folder: Path, stage: str) -> Path | None:
    """Returns the path of the largest module at this stage; jax also compiles a few small ones."""
    found = sorted(folder.glob(f"*.{stage}.txt"), key=lambda path: path.stat().st_size)
    return found[-1] if found else None
