"""What a compiled program costs a step: cycles by part, collectives, hand-written kernels, products."""

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
      runs: how often it runs in a step.
      payload: bytes of the whole array each time: of an all-gather's result, of what a reduce-scatter or an
        all-reduce adds up, of what a permutation or an all-to-all moves.
      devices: how many take part together.
      part: of the step (`parts.py`).
      in_loop: inside the scan over blocks that makes FAM, or any other loop.
      path: jax's names.
    """

    kind: str
    runs: float
    payload: int
    devices: int
    part: str
    path: str

    @property
    def bytes(self) -> float:
        """Payload of a step."""
        return self.runs * self.payload

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, in rings: an all-reduce is a reduce-scatter and an all-gather."""
        share = (self.devices - 1) / self.devices if self.devices > 1 else 0.0
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Runs of a hand-written kernel (Pallas), with the costs that its author states; 0 where none are stated."""

    name: str
    runs: float
    flops: float
    bytes_accessed: float
    part: str


def collectives(program: Program) -> list[Collective]:
    """All collectives, each counted once.

    The compiler may spread one over several fusions, to overlap it with other work: these pieces share a
    channel. A piece that is peeled off a loop runs less often than the one in it, which counts.
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
        # (what goes in, what comes out, and small change)
        return max(sizes, default=0)
    return sum(sizes) * (devices if kind == "reduce-scatter" else 1)


def group_size(rest: str) -> int:
    """Devices of one group of a collective, in any of the ways that groups are written.

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
    """The compiler's estimated cycles of a step on one device. It estimates neither collectives nor kernels."""
    found: dict[str, float] = {}
    for one, runs, path in program.instructions():
        if cycles := one.cycles:
            part = part_of(path)
            found[part] = found.get(part, 0.0) + runs * cycles
    return found


def kernels(program: Program) -> list[Kernel]:
    """All hand-written kernels of a compiled program."""
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
    """Floating point operations of all matrix products by part, in the program as it is given to the compiler.

    Those of all devices. A multiplication and an addition are two; what is computed again counts again.
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
