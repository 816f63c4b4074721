"""Answers as they come: one JSON object a line, appended, so that an evaluation that was stopped goes on.

An answer belongs to (model and memory settings, task and its settings, example). `key` stands for the first two;
an answer with another key is left alone and not counted.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from famjax.process import interrupts

SAMPLES_JSONL = "samples.jsonl"


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a model made of an example.

    Attributes:
      task, id, group: of the example.
      key: of the model, the task and their settings, see `key_of`.
      tokens: before the answer.
      truncated: tokens of the context that were left out; 0 where it was read whole.
      prompt: the last part of what was asked, as text.
      answer: what was generated, or the number of the choice; of predicted tokens their natural-log probability.
      targets: the right answers.
      finish: of a generation, `stop`, or `length` where it did not end by itself.
      values: metrics.
      about: length, depth and so on.
      sums: of predictions by position: {"bits": [...], "correct": [...], "tokens": [...], "sizes": [...]} by bucket.
    """

    task: str
    id: str
    group: str
    key: str
    tokens: int
    truncated: int
    prompt: str
    answer: Any
    targets: list[str]
    finish: str
    values: dict[str, float]
    about: dict[str, Any]
    sums: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def updates(sample: Sample, block_size: int) -> int:
    """Updates of FAM between the needle (or the beginning, where there is none) and the answer; 0 if it was cut off."""
    return max(0, max(0, sample.tokens - 1) // block_size - int(sample.about.get("needle", 0)) // block_size)


def key_of(model: str, task: str, settings: dict[str, Any]) -> str:
    """16 hexadecimal digits. `model` is its fingerprint, its memory settings included."""
    text = json.dumps([model, task, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class SampleFile:
    """`samples.jsonl`, open for more.

    A line that a killed process left half written is dropped. One process writes at a time.

    Args:
      path: of the file; it and its directory are made.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")  # noqa: SIM115 - lives as long as this object
        whole = _end_of_last_line(self.path)
        if whole < self._file.tell():
            self._file.truncate(whole)

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, sample: Sample) -> None:
        """Appends; it is on disk when this returns."""
        line = json.dumps(dataclasses.asdict(sample), ensure_ascii=False)
        with interrupts.held():
            # half a surrogate pair has no UTF-8 form
            self._file.write(line.encode("utf-8", "replace") + b"\n")
            self._file.flush()

    def sync(self) -> None:
        """Survives a crash of the machine too."""
        os.fsync(self._file.fileno())


def file_name(part: tuple[int, int] = (1, 1)) -> str:
    """Where the answers of part i of n go: `samples.jsonl`, or `samples-2-of-4.jsonl`."""
    return SAMPLES_JSONL if part[1] == 1 else f"samples-{part[0]}-of-{part[1]}.jsonl"


def read(folder: str | Path, key: str = "") -> Iterator[Sample]:
    """The answers in a directory, of all its parts, those of one key alone where it is given; each answer once.

    Lines that are no answers are left out: they were written by something else.
    """
    seen: set[tuple[str, str, str]] = set()
    names = {field.name for field in dataclasses.fields(Sample)}
    for path in sorted(Path(folder).glob("samples*.jsonl")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                fields = _fields(line, key, names)
                one = (fields["key"], fields["task"], fields["id"]) if fields else None
                if one is not None and one not in seen:
                    seen.add(one)
                    yield Sample(**fields)


def _fields(line: str, key: str, names: set[str]) -> dict[str, Any]:
    """A line's answer; empty where it is none, or another key's."""
    if key and key not in line:
        return {}
    try:
        fields = json.loads(line)
    except ValueError:  # half a line
        return {}
    good = isinstance(fields, dict) and set(fields) == names and (not key or fields["key"] == key)
    return fields if good else {}


def _end_of_last_line(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 2**16)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                return begin + at + 1
            end = begin
    return 0
