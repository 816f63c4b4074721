"""Costs of a compiled program per step: cycles by part, collectives, Pallas kernels, matrix products."""

import dataclasses
import json
import math
import re
from typing import Any

from famjax.plan.hlo import Instruction, Program, arrays, byte_sizes
from famjax.plan.parts import part_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
KERNEL = "tpu_custom_call"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step, on one device.

    Attributes:
      kind: one of `COLLECTIVES`.
      runs: executions per step.
      payload: bytes of the whole array per execution: the result of an all-gather, the input of a
        reduce-scatter or an all-reduce, the array moved by a permutation or an all-to-all.
      devices: devices per group.
      part: part of the step (`parts.py`).
      path: jax's op name.
    """

    kind: str
    runs: float
    payload: int
    devices: int
    part: str
    path: str

    @property
    def bytes(self) -> float:
        """Payload bytes per step."""
        return self.runs * self.payload

    @property
    def sent(self) -> float:
        """Bytes that a device sends per step with ring algorithms; an all-reduce is reduce-scatter and all-gather."""
        share = (self.devices - 1) / self.devices if self.devices > 1 else 0.0
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Executions of a Pallas kernel per step, with the costs of its `cost_estimate`; 0 if it has none."""

    name: str
    runs: float
    flops: float
    bytes_accessed: float
    part: str


def collectives(program: Program) -> list[Collective]:
    """Returns all collectives, each once, the largest first.

    The compiler may split a collective over several fusions to overlap it with compute; the pieces share a channel.
    Of a loop's piece and one peeled off the loop, the one with more executions counts.
    """
    found: dict[tuple[str, Any], Collective] = {}
    for one, runs, path in program.instructions():
        kind = one.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        devices = group_size(one.rest)
        new = Collective(kind, runs, _payload(one, kind, devices), devices, part_of(path), one.op_name)
        key = (kind, one.channel if one.channel is not None else one.name)
        if key not in found or found[key].bytes < new.bytes:
            found[key] = new
    return sorted(found.values(), key=lambda one: -one.bytes)


def _payload(one: Instruction, kind: str, devices: int) -> int:
    sizes = byte_sizes(one.shape)
    if one.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # (input, output, small context arrays)
        return max(sizes, default=0)
    return sum(sizes) * (devices if kind == "reduce-scatter" else 1)


def group_size(rest: str) -> int:
    """Returns the number of devices per group of a collective, for all notations of groups:

    {{0,1},{2,3}}    [2,4]<=[8] (groups, devices)    mesh['a'=4,'b'=2] {'a'}    source_target_pairs (2 each)
    """
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in used)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=", rest):
        return int(iota[1].split(",")[-1])
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(groups[1].split(","))
    return 2 if "source_target_pairs" in rest else 1


def cycles_by_part(program: Program) -> dict[str, float]:
    """Returns the compiler's estimated cycles per step on one device, without collectives and Pallas kernels."""
    found: dict[str, float] = {}
    for one, runs, path in program.instructions():
        if cycles := one.cycles:
            part = part_of(path)
            found[part] = found.get(part, 0.0) + runs * cycles
    return found


def kernels(program: Program) -> list[Kernel]:
    """Returns all Pallas kernels of a compiled program."""
    found = []
    for one, runs, path in program.instructions():
        if one.opcode == "custom-call" and f'custom_call_target="{KERNEL}"' in one.rest:
            cost = _stated_cost(one.rest)
            name = one.op_name.rsplit("/", 1)[-1] or one.name
            flops, accessed = (float(cost.get(key, 0)) for key in ("flops", "bytes_accessed"))
            found.append(Kernel(name, runs, flops, accessed, part_of(path)))
    return found


def _stated_cost(rest: str) -> dict[str, Any]:
    found = re.search(r'"?cost_estimate"?:\s*(\{[^}]*\})', rest)
    try:
        return json.loads(found[1]) if found else {}
    except json.JSONDecodeError:
        return {}


def products(program: Program) -> dict[str, float]:
    """Returns FLOPs of all matrix products by part, on all devices, in the unoptimised program.

    A multiply-add counts as two; rematerialised products count again.
    """
    found: dict[str, float] = {}
    shapes = {
        (computation.name, one.name): one.shape
        for computation in program.computations.values() for one in computation.instructions.values()
    }  # fmt: skip
    for computation in program.computations.values():
        runs = program.runs[computation.name] * program.copies[computation.name]
        for one in computation.instructions.values():
            if one.opcode != "dot" or not runs:
                continue
            (_, left), *_ = arrays(shapes[computation.name, one.operands[0]])
            (_, out), *_ = arrays(one.shape)
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
            summed = math.prod(left[int(axis)] for axis in axes[1].split(",") if axis) if axes else 1
            part = part_of(f"{program.context[computation.name]} {one.op_name}")
            found[part] = found.get(part, 0.0) + runs * 2 * math.prod(out) * summed
    return found
