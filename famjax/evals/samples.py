"""The answers file: one JSON object per line, appended as answers arrive, so that a stopped evaluation can resume.

An answer belongs to (model and memory settings, task and its settings, example). `key` hashes the first two, `question`
the example: an answer with another key or to another question is not used again.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from famjax.process import interrupts
from famjax.storage import lock

SAMPLES_JSONL = "samples.jsonl"


@dataclasses.dataclass(frozen=True)
class Sample:
    """A model's answer to one example.

    Attributes:
      task, id, group: of the example.
      key: hash of the model, the task and their settings, see `key_of`.
      tokens: number of tokens before the answer.
      truncated: number of tokens that were removed to respect `EvalConfig.longest`; 0 if the example is complete.
      prompt: the end of the prompt, as text.
      answer: the generated text, the index of the choice, or the natural-log probability of the scored tokens.
      targets: the correct answers.
      finish: for generation, `stop`, or `length` if the token limit was reached.
      values: metrics by name.
      about: length, depth and so on, see `Example.about`.
      sums: for results by position: {"bits": [...], "correct": [...], "tokens": [...], "sizes": [...]} by bucket.
      question: hash of the example (`Example.digest`); empty in answers of the harness, whose key has all requests, and
        of older versions.
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
    question: str = ""


def updates(sample: Sample, block_size: int) -> int:
    """Returns the number of FAM updates between needle (or start of the text, if none) and answer.

    It is never negative, even if the needle was truncated.
    """
    return updates_between(int(sample.about.get("needle", 0)), sample.tokens, block_size)


def updates_between(needle: int, answer: int, block_size: int) -> int:
    """Returns the number of FAM updates after the token `needle` and before the token `answer`, at least 0."""
    return max(0, max(0, answer - 1) // block_size - needle // block_size)


def key_of(model: str, task: str, settings: dict[str, Any]) -> str:
    """Returns `Sample.key`, 16 hexadecimal digits. `model` is the fingerprint of weights, model and memory settings."""
    text = json.dumps([model, task, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class SampleFile:
    """`samples.jsonl`, open for appending, and locked: a second writer would remove the line that the first is writing.

    It and its directory are created if missing. A partial last line, left by a killed process, is removed.

    Raises:
      ConfigError: another process is writing it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")  # noqa: SIM115 - lives as long as this object
        try:
            lock.take(self._file.fileno(), self.path)
        except BaseException:
            self._file.close()
            raise
        whole = _end_of_last_line(self.path)
        if whole < self._file.tell():
            self._file.truncate(whole)

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, sample: Sample) -> None:
        """Appends one answer and flushes it to the operating system."""
        line = json.dumps(dataclasses.asdict(sample), ensure_ascii=False)
        with interrupts.held():
            # a lone surrogate has no UTF-8 encoding
            self._file.write(line.encode("utf-8", "replace") + b"\n")
            self._file.flush()

    def sync(self) -> None:
        """Flushes to disk (`fsync`), so that the answers survive a crash of the machine."""
        os.fsync(self._file.fileno())


def file_name(part: tuple[int, int] = (1, 1)) -> str:
    """Returns the file name for part i of n: `samples.jsonl`, or `samples-2-of-4.jsonl`."""
    return SAMPLES_JSONL if part[1] == 1 else f"samples-{part[0]}-of-{part[1]}.jsonl"


def read(folder: str | Path, key: str = "") -> Iterator[Sample]:
    """Yields the answers in a directory from the files of all parts; only those of `key` if given. Of several to one
    example, it is the last of the file that was written last: `--again` may have re-run the parts, or the whole.

    Lines that are not answers of this format are skipped.
    """
    found: dict[tuple[str, str, str], Sample] = {}
    for path in sorted(Path(folder).glob("samples*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path)):
        with open(path, "rb") as file:
            for line in file:
                if fields := _fields(line, key):
                    found[fields["key"], fields["task"], fields["id"]] = Sample(**fields)
    yield from found.values()


def _fields(line: bytes, key: str) -> dict[str, Any]:
    """Returns the fields of a line's answer; empty if the line is not an answer or has another key."""
    names = {field.name for field in dataclasses.fields(Sample)}
    if key and key.encode() not in line:
        return {}
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):  # half a line, or bytes that are not UTF-8
        return {}
    good = isinstance(fields, dict) and set(fields) | {"question"} == names and (not key or fields["key"] == key)
    return fields if good else {}


def _end_of_last_line(path: Path) -> int:
    """Returns the number of bytes up to the end of the last complete line."""
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
