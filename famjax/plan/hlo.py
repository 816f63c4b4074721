"""Parses HLO text: how often each computation runs, and what its instructions cost.

A loop body is in the text once, so every cost is that of the instruction times the number of executions ("runs") of
its computation:

    runs(entry) = 1,  runs(body) = runs(caller) * trips,  runs(called) = sum of runs(caller) over all call sites
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^  (ROOT )?%?([\w.\-]+) = ")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|c64|c128)\[([\d,]*)\]")
_ITEM_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
# Name of `jax.shard_map` bodies in a program before SPMD partitioning.
MANUAL = "xla.sdy.manual_computation_body"
BRANCHES = ("true_computation", "false_computation", "branch_computations")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as in the text.
      shape: text of the result's shape.
      operands: names of the operands, without literals.
      rest: the line from its operands on.
      is_root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @functools.cached_property
    def op_name(self) -> str:
        """jax's op name: `jit(step)/jvp(loss)/logits/dot_general`."""
        return _field(self.rest, r'op_name="([^"]*)"')

    @property
    def channel(self) -> int | None:
        """Channel of a collective, shared by its pieces."""
        found = _field(self.rest, r"\bchannel_id=(\d+)")
        return int(found) if found else None

    @property
    def cycles(self) -> int:
        """The compiler's estimated cycles per run; 0 if it has none (collectives, Pallas kernels)."""
        return int(_field(self.rest, r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def called(self) -> list[tuple[str, str]]:
        """(attribute, computation) of all computations that it calls."""
        found = _CALLS.findall(self.rest)
        return [(how, name.strip(" %")) for how, names in found for name in names.strip("{}").split(",")]

    @property
    def index(self) -> int:
        """Index of a get-tuple-element."""
        return int(_field(self.rest, r"\bindex=(\d+)"))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named sequence of instructions."""

    name: str
    is_entry: bool
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction that computes the result."""
        return next(one for one in self.instructions.values() if one.is_root)


class Program:
    """The computations of a module, and how often each runs.

    Args:
      lines: the HLO text.
      unknown_trips: trip count of loops whose count is not in the text because it depends on data.
      branch_share: executions of a conditional's branch per execution of the conditional.
      mesh: sizes of the mesh axes. Before SPMD partitioning the program is that of all devices, except the bodies of
        `jax.shard_map`, which every device along their axes runs on its own shard.

    Attributes:
      computations: computations by name.
      runs: executions of each computation.
      copies: number of devices that run it, each on its own shard.
      context: op names of its callers.
    """

    def __init__(
        self, lines: Iterable[str], unknown_trips: float = 1, branch_share: float = 1,
        mesh: Mapping[str, int] | None = None,
    ):  # fmt: skip
        self.computations = {one.name: one for one in _computations(lines)}
        self._unknown, self._share, self._mesh = unknown_trips, branch_share, mesh or {}
        self.copies = dict.fromkeys(self.computations, 1)
        self.runs = dict.fromkeys(self.computations, 0.0)
        self.context = dict.fromkeys(self.computations, "")
        self._count()

    def instructions(self) -> Iterator[tuple[Instruction, float, str]]:
        """Yields (instruction, its executions, op names of the callers and its own)."""
        for name, computation in self.computations.items():
            if self.runs[name]:
                for one in computation.instructions.values():
                    yield one, self.runs[name], f"{self.context[name]} {one.op_name}"

    def trips(self, loop: Instruction, caller: Computation) -> int | None:
        """Returns the trip count of a while loop that counts by one between constants; None for other loops."""
        called = dict(loop.called)
        condition = self.computations[called["condition"]]
        compared = self._comparison(condition)
        if compared is None:
            return None
        counter, bound = compared
        start = self._entry(loop, caller, counter) or 0  # if not visible: jax's loops count from 0
        end = bound if isinstance(bound, int) else self._entry(loop, caller, bound[0])
        return None if end is None else max(end - start, 0)

    def _comparison(self, condition: Computation) -> tuple[int, int | tuple[int]] | None:
        """Returns (index of the counter in the loop's tuple, its bound: a number, or the index of one in a tuple)."""
        root, inside, outer = condition.root, condition, {}
        if root.opcode == "fusion":  # the comparison is inside a fusion
            inside = self.computations[root.called[0][1]]
            parameters = [one for one in inside.instructions.values() if one.opcode == "parameter"]
            number = lambda one: int(_field(one.rest, r"^\((\d+)\)"))
            outer = {one.name: condition.instructions[root.operands[number(one)]] for one in parameters}
            root = inside.root
        if root.opcode != "compare" or "direction=LT" not in root.rest:
            return None
        sides = [
            _origin(outer.get(name, inside.instructions[name]), condition if outer else inside)
            for name in root.operands
        ]
        if any(one.opcode not in ("get-tuple-element", "constant") for one in sides):
            return None
        left, right = sides
        if left.opcode != "get-tuple-element":
            return None
        if right.opcode == "get-tuple-element":
            return left.index, (right.index,)
        bound = _constant(right)
        return None if bound is None else (left.index, bound)

    def _entry(self, loop: Instruction, caller: Computation, index: int) -> int | None:
        """Returns the initial value of an entry of a loop's tuple, if it is a constant."""
        initial = caller.instructions[loop.operands[0]]
        if initial.opcode != "tuple":
            return None
        value = _origin(caller.instructions[initial.operands[index]], caller)
        return _constant(value) if value.opcode == "constant" else None

    def _count(self) -> None:
        for name in self._callers_first():
            caller, manual = self.computations[name], 1
            self.runs[name] += caller.is_entry
            for one in caller.instructions.values():
                if "xla.sdy.manual_axes" in one.rest:  # on the arguments of the next shard_map body
                    manual = self._devices(one)
                for how, called in one.called:
                    if called not in self.runs:
                        continue
                    times: float = 1
                    if one.opcode == "while":
                        trips = self.trips(one, caller)
                        times = self._unknown if trips is None else trips
                    elif how in BRANCHES:
                        times = self._share
                    self.runs[called] += self.runs[name] * times
                    self.copies[called] = self.copies[name] * (manual if called.startswith(MANUAL) else 1)
                    self.context[called] = self.context[called] or f"{self.context[name]} {one.op_name}".strip()

    def _devices(self, one: Instruction) -> int:
        axes = re.findall(r'\\"(\w+)\\"', _field(one.rest, r'xla\.sdy\.manual_axes="((?:[^"\\]|\\.)*)"'))
        return math.prod(self._mesh.get(axis, 1) for axis in axes)

    def _callers_first(self) -> list[str]:
        order: list[str] = []
        seen: set[str] = set()
        for start in self.computations:  # depth first, without recursion: programs are deep
            stack = [(start, False)]
            while stack:
                name, done = stack.pop()
                if done:
                    order.append(name)
                elif name in self.computations and name not in seen:
                    seen.add(name)
                    stack.append((name, True))
                    for one in self.computations[name].instructions.values():
                        stack.extend((called, False) for _, called in one.called)
        return order[::-1]


def _computations(lines: Iterable[str]) -> Iterator[Computation]:
    name, is_entry = "", False
    found: dict[str, Instruction] = {}
    for line in lines:
        line = line.rstrip("\n")
        if line.endswith("{") and (header := _HEADER.match(line)):
            name, is_entry, found = header[2], bool(header[1]), {}
        elif line == "}" and name:
            yield Computation(name, is_entry, found)
            name = ""
        elif name and (start := _NAME.match(line)):
            one = _instruction(line[start.end() :], start[2], bool(start[1]))
            found[one.name] = one


def _instruction(text: str, name: str, is_root: bool) -> Instruction:
    """Parses the text after the equals sign: `f32[8,64]{1,0} add(%a, %b), metadata=...`."""
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    inner = rest[1 : _closing(rest)] if bracket else ""
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    return Instruction(name, opcode.strip(), shape, operands, rest, is_root)


def _closing(text: str) -> int:
    """Returns the position of the bracket that closes the first one of a text."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text)


def _field(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _origin(one: Instruction, computation: Computation) -> Instruction:
    """Returns the source of an instruction's value, through copies, bitcasts and sharding annotations."""
    while one.opcode in ("copy", "copy-start", "copy-done", "bitcast") or 'custom_call_target="Sharding"' in one.rest:
        if one.operands[0] not in computation.instructions:
            break
        one = computation.instructions[one.operands[0]]
    return one


def _constant(one: Instruction) -> int | None:
    found = _field(one.rest, r"^\((-?\d+)\)")
    return int(found) if found else None


def arrays(shape: str) -> list[tuple[int, tuple[int, ...]]]:
    """Returns (bits per element, sizes) of each array of a shape, tuples flattened; logical sizes, without padding."""
    sizes = lambda text: tuple(int(size) for size in text.split(",") if size)
    bits = lambda kind: _ITEM_BITS.get(kind) or int(_field(kind, r"(\d+)"))
    return [(bits(kind), sizes(text)) for kind, text in _ARRAY.findall(shape)]


def byte_sizes(shape: str) -> list[int]:
    """Returns the bytes of each array of a shape."""
    return [math.ceil(bits * math.prod(sizes) / 8) for bits, sizes in arrays(shape)]
