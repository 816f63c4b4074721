"""The largest tensors of a compiled program, and the part of the step that they belong to."""

import re
from collections.abc import Iterable
from typing import Any

from famjax.plan.hlo import Program
from famjax.plan.parts import part_of

_VALUE = re.compile(r"^ value: <\d+ ([\w.\-]+)(?:\{[\d,]*\})?.*\(size=(\d+),offset=(\d+)\): (\S+)")
_ALLOCATION = re.compile(r"^allocation (\d+): size (\d+)(?:, color (\d+))?")


def largest(lines: Iterable[str], program: Program, most: int = 12) -> list[dict[str, Any]]:
    """Returns the largest tensors in HBM of a buffer assignment.

    Tensors may share a buffer one after the other; of those with equal size and place, the first is named. Not all
    buffers are live at the same time, so the sizes do not add up to the peak.

    Returns:
      Up to `most` entries, the largest first: `bytes`, `shape`, `part`, `path` (op name, or name of the argument), and
      `count` of equal tensors.
    """
    names = {one.name: path for one, _, path in program.instructions()}
    places: dict[tuple[str, str, str], tuple[int, str, str]] = {}
    allocation, in_hbm = "", False
    for line in lines:
        if header := _ALLOCATION.match(line):
            allocation, in_hbm = header[1], header[3] in (None, "0")
        elif in_hbm and (value := _VALUE.match(line)):
            name, size, offset, shape = value.groups()
            places.setdefault((allocation, offset, size), (int(size), shape.split("{")[0], name))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for size, shape, name in sorted(places.values(), reverse=True)[: 8 * most]:
        path = names.get(name, "").strip()
        one = found.setdefault((shape, part_of(path)), {
            "bytes": size, "shape": shape, "part": part_of(path), "path": path.rsplit(" ", 1)[-1], "count": 0,
        })  # fmt: skip
        one["count"] += 1
    return list(found.values())[:most]
