"""XLA's text of a compiled program: which computation runs how often, and what its instructions cost.

A loop's body stands in the text once, however often it runs, so every count here is an instruction's own times the
number of its computation's runs:

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
# What the bodies of `jax.shard_map` are called in a program that is not cut yet.
MANUAL = "xla.sdy.manual_computation_body"
BRANCHES = ("true_computation", "false_computation", "branch_computations")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as written.
      shape: text of its result's shape.
      operands: names, without those of literals.
      rest: the line from its operands on.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @functools.cached_property
    def op_name(self) -> str:
        """The path of jax's names: `jit(step)/jvp(loss)/logits/dot_general`."""
        return _field(self.rest, r'op_name="([^"]*)"')

    @property
    def channel(self) -> int | None:
        """Pairs the pieces of one collective."""
        found = _field(self.rest, r"\bchannel_id=(\d+)")
        return int(found) if found else None

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one run; 0 where it has none (collectives, hand-written kernels)."""
        return int(_field(self.rest, r'"estimated_cycles":"(\d+)"') or 0)

    @property
    def called(self) -> list[tuple[str, str]]:
        """(how, computation) of all that it runs."""
        found = _CALLS.findall(self.rest)
        return [(how, name.strip(" %")) for how, names in found for name in names.strip("{}").split(",")]

    @property
    def index(self) -> int:
        """Of a get-tuple-element."""
        return int(_field(self.rest, r"\bindex=(\d+)"))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named sequence of instructions."""

    name: str
    is_entry: bool
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(one for one in self.instructions.values() if one.is_root)


class Program:
    """A module's computations and how often each of them runs.

    Args:
      lines: the text.
      unknown_trips: runs of a loop whose number of turns is not in the text (it ends by its data).
      branch_share: runs of a branch of a conditional, for each run of the conditional.
      mesh: sizes of the mesh's axes. Before the compiler has cut a program, it stands there as for one device, but
        for the bodies of `jax.shard_map`, of which each device along their axes runs its own.

    Attributes:
      computations: by name.
      runs: how often each runs.
      copies: how many devices run it, each on its own part.
      context: jax's names of what calls it.
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
        """(instruction, how often it runs, its path of names behind that of what called it)."""
        for name, computation in self.computations.items():
            if self.runs[name]:
                for one in computation.instructions.values():
                    yield one, self.runs[name], f"{self.context[name]} {one.op_name}"

    def trips(self, loop: Instruction, caller: Computation) -> int | None:
        """How often a while loop turns, where it counts up by one from a constant to a constant; else None."""
        called = dict(loop.called)
        condition = self.computations[called["condition"]]
        compared = self._comparison(condition)
        if compared is None:
            return None
        counter, bound = compared
        start = self._entry(loop, caller, counter) or 0  # where it is not to be seen: jax's loops count from 0
        end = bound if isinstance(bound, int) else self._entry(loop, caller, bound[0])
        return None if end is None else max(end - start, 0)

    def _comparison(self, condition: Computation) -> tuple[int, int | tuple[int]] | None:
        """(index of the counter in the loop's tuple, its bound: a number, or the index of one)."""
        root, inside, outer = condition.root, condition, {}
        if root.opcode == "fusion":  # the comparison is in a fusion of its own
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
        """The constant with which an entry of a loop's tuple begins."""
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
                if "xla.sdy.manual_axes" in one.rest:  # of what is handed to the next body
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
    """Of what stands behind the equals sign: `f32[8,64]{1,0} add(%a, %b), metadata=...`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    inner = rest[1 : _closing(rest, 0)] if bracket else ""
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    return Instruction(name, opcode.strip(), shape, operands, rest, is_root)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text)


def _field(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _origin(one: Instruction, computation: Computation) -> Instruction:
    """What an instruction hands on, where it does nothing else."""
    while one.opcode in ("copy", "copy-start", "copy-done", "bitcast") or 'custom_call_target="Sharding"' in one.rest:
        if one.operands[0] not in computation.instructions:
            break
        one = computation.instructions[one.operands[0]]
    return one


def _constant(one: Instruction) -> int | None:
    found = _field(one.rest, r"^\((-?\d+)\)")
    return int(found) if found else None


def arrays(shape: str) -> list[tuple[int, tuple[int, ...]]]:
    """(bits of a number, sizes) of each array of a shape, tuples flattened; logical sizes, without padding."""
    sizes = lambda text: tuple(int(size) for size in text.split(",") if size)
    bits = lambda kind: _ITEM_BITS.get(kind) or int(_field(kind, r"(\d+)"))
    return [(bits(kind), sizes(text)) for kind, text in _ARRAY.findall(shape)]


def byte_sizes(shape: str) -> list[int]:
    """Bytes of each array of a shape."""
    return [math.ceil(bits * math.prod(sizes) / 8) for bits, sizes in arrays(shape)]
