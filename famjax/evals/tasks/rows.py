"""Rows of published data sets: JSON lines, CSV, Parquet, folders of Hugging Face datasets, TFDS, the Hugging Face hub.

A row is a dictionary and its place. A row that cannot be read is yielded as `Unreadable`, and reading continues.
Files are read in parts, so memory does not grow with their size (except Arrow files on remote storage).
"""

import csv
import importlib
import io
import itertools
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from famjax.config import ConfigError
from famjax.config.checks import reason_of
from famjax.config.text import BadText
from famjax.data import files, kinds
from famjax.evals.tasks.base import Unreadable

TFDS, HUB = "tfds:", "hub:"
# Kinds of row files; a file without a known ending contains JSON lines, as QuALITY's own files do.
ROW_KINDS = ("jsonl", "csv", "parquet", "text")
# Endings of the row files that are looked for in a folder, and what splits are called in their names.
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
SPLITS = {
    "train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing"),
}  # fmt: skip


class Row(NamedTuple):
    """A row of a data set, and its place for messages."""

    place: str
    fields: dict[str, Any]


def rows(spec: str, split: str) -> Iterator[Row | Unreadable]:
    """Returns the rows of a data set, in its order.

    Args:
      spec: files (a path or glob) of JSON lines, CSV or Parquet; a folder written by `save_to_disk` of Hugging Face
        datasets, or one with such files; `tfds:NAME:VERSION`; `hub:NAME` or `hub:NAME:CONFIG`.
      split: the split to read, if the data set has several.

    Raises:
      ConfigError: nothing is found, or a package or the network is missing.
    """
    if spec.startswith(TFDS):
        return _tfds(spec.removeprefix(TFDS), split)
    if spec.startswith(HUB):
        return _hub(spec.removeprefix(HUB), split)
    return itertools.chain.from_iterable(found for _, found in by_file(spec, split))


def by_file(spec: str, split: str) -> list[tuple[str, Iterator[Row | Unreadable]]]:
    """Returns each local file of a data set and its rows, in the order of `rows`; raises what it raises."""
    paths = files.expand(spec)
    if has_splits(spec):
        folder = _folder_of(paths[0].rstrip("/"), split)
        if (parts := files.arrow_files(folder)) is not None:
            return [(path, _counted(_arrow, path)) for path in parts]
        paths = _of_split(folder, split)
    kind = kinds.one_kind(spec, paths, ROW_KINDS)
    return [(path, _file(path, kind)) for path in paths]


def has_splits(spec: str) -> bool:
    """Returns whether `rows` of this data set depend on the split; files that are named have none."""
    if spec.startswith((TFDS, HUB)):
        return True
    paths = files.expand(spec)
    return len(paths) == 1 and files.is_directory(paths[0])


def _folder_of(folder: str, split: str) -> str:
    """Returns the folder that has the files of a split. Raises `ConfigError` if it has splits, but not this one."""
    if (splits := files.splits_of(folder)) is None:
        return folder
    if split not in splits:
        raise ConfigError(f"{folder} has no split {split!r} but {', '.join(splits)}; name one with --split")
    return f"{folder}/{split}"


def _of_split(folder: str, split: str) -> list[str]:
    """Returns the row files of a split in a folder, or all if none has a split in its name. Raises `ConfigError` if it
    has no row file, or only those of other splits."""
    paths = [path for ending in ENDINGS for path in files.found(f"{folder}/*{ending}")]
    if not paths:
        raise ConfigError(f"{folder} has no .jsonl, .parquet or .csv file and was not written by save_to_disk; name "
                          f"other files, for example '{folder}/*.txt'")  # fmt: skip
    # First files that have the split's very name, then those that have it in their names.
    chosen = [path for path in paths if _stem(path) == split]
    words = {path: split_of(path) for path in paths}
    chosen = chosen or [path for path in paths if is_split(words[path], split)]
    others = sorted(set(words.values()) - {""})
    if others and not chosen:
        raise ConfigError(f"{folder} has no file of the split {split!r} but of {', '.join(others)}; name one with "
                          f"--split, or name the file")  # fmt: skip
    return chosen or paths


def _stem(path: str) -> str:
    """Returns a row file's name without its ending, in lower case."""
    return kinds.name_of(path).removesuffix(kinds.GZIP).removesuffix(kinds.ending_of(path))


def is_split(word: str, split: str) -> bool:
    """Returns whether a data set's word for a split, `valid` or `dev`, means this one."""
    return word in SPLITS.get(split, (split,))


def split_of(path: str) -> str:
    """Returns the word for a split in a file's name, the first word, the last or any other one: `test` of
    test_00000.jsonl, english_test.jsonl and v1.test.full.jsonl; empty if there is none."""
    words = [word.rstrip("0123456789") for word in re.split(r"[._-]", _stem(path))]
    known = set(itertools.chain(*SPLITS.values()))
    return next((word for word in (words[0], words[-1], *words) if word in known), "")


def _file(path: str, kind: str) -> Iterator[Row | Unreadable]:
    if files.is_directory(path):
        raise ConfigError(f"{path} is a directory; name its files, for example {path.rstrip('/')}/*.jsonl")
    return _counted({"parquet": _parquet, "csv": _csv}.get(kind, _json_lines), path)


def _counted(read: Callable[[str], Iterator[Row | Unreadable]], path: str) -> Iterator[Row | Unreadable]:
    """Yields the rows of a file; if reading fails, an `Unreadable` is the last one."""
    try:
        yield from read(path)
    except BadText as error:
        yield Unreadable(error.place, error.reason)
    except (OSError, EOFError, zlib.error) as error:
        bad = files.unreadable(path, error)
        yield Unreadable(bad.place, bad.reason)


def _json_lines(path: str) -> Iterator[Row | Unreadable]:
    for place, fields in files.json_lines(path):
        if isinstance(fields, BadText):
            yield Unreadable(fields.place, fields.reason)
        elif isinstance(fields, dict):
            yield Row(place, fields)
        else:
            yield Unreadable(place, "this is not a JSON object")


def _csv(path: str) -> Iterator[Row | Unreadable]:
    csv.field_size_limit(sys.maxsize)  # a field may be a book
    with files.open_plain(path) as file:
        reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
        number = 0
        try:
            for number, fields in enumerate(reader, start=1):
                place = f"{path} row {number}"
                good = None not in fields and None not in fields.values()
                reason = "its number of fields differs from the first line"
                yield Row(place, dict(fields)) if good else Unreadable(place, reason)
        except (UnicodeDecodeError, csv.Error) as error:  # decoded in chunks: the exact place is unknown
            raise BadText(path, f"this is not CSV in UTF-8 ({error}), somewhere after row {number}") from error


def _parquet(path: str) -> Iterator[Row]:
    pyarrow, parquet = _pyarrow(path), importlib.import_module("pyarrow.parquet")
    system, inside = files.filesystem(path)
    with system.open(inside, "rb") as file:
        try:
            table = parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise BadText(path, f"this is not a Parquet file ({reason_of(error)})") from error
        yield from _rows_of(table.iter_batches(batch_size=64), path)


def _arrow(path: str) -> Iterator[Row]:
    pyarrow = _pyarrow(path)
    if not files.exists(path):
        raise BadText(path, "the data set's state.json names this file, but it does not exist")
    source = pyarrow.memory_map(path) if "://" not in path else pyarrow.BufferReader(files.read(path))
    try:
        reader = pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid as error:
        raise BadText(path, f"this is not an Arrow file ({reason_of(error)})") from error
    yield from _rows_of(reader, path)


def _rows_of(batches: Iterable[Any], path: str) -> Iterator[Row]:
    """Yields the rows of a table's batches. Raises `BadText` if the file is damaged."""
    number = 0
    try:
        for batch in batches:
            for i in range(batch.num_rows):  # one at a time: a row may be a book
                fields = batch.slice(i, 1).to_pylist()[0]
                number += 1
                yield Row(f"{path} row {number}", fields)
    except (OSError, ValueError) as error:  # Arrow's own errors derive from these
        raise BadText(path, f"this is damaged after row {number} ({reason_of(error)})") from error


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError(f"{path} needs pyarrow: pip install -e '.[arrow]'") from error
    return pyarrow


def _tfds(name: str, split: str) -> Iterator[Row]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ConfigError(f"{TFDS}{name} needs tensorflow-datasets ({error}): pip install -e '.[data]'") from error
    try:
        data = tfds.load(name, split=split, shuffle_files=False)
    except Exception as error:  # TFDS raises many kinds
        raise ConfigError(f"{TFDS}{name}, split {split}: {reason_of(error)}") from error
    return (Row(f"{TFDS}{name} row {i}", _decoded(fields)) for i, fields in enumerate(tfds.as_numpy(data), start=1))


def _decoded(value: Any) -> Any:
    """Converts TFDS' bytes and arrays to the text and lists of JSON."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {name: _decoded(one) for name, one in value.items()}
    if hasattr(value, "tolist"):
        return _decoded(value.tolist())
    return [_decoded(one) for one in value] if isinstance(value, list) else value


def _hub(name: str, split: str) -> Iterator[Row]:
    name, _, config = name.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{HUB}{name} needs the package datasets: pip install datasets") from error
    try:
        data = datasets.load_dataset(name, config or None, split=split, streaming=True)
    except Exception as error:  # no network, no such data set, no such split
        raise ConfigError(
            f"{HUB}{name}, split {split}, cannot be read ({reason_of(error)}); without a network, pass local files "
            "with --data"
        ) from error
    return (Row(f"{HUB}{name} row {i}", dict(fields)) for i, fields in enumerate(data, start=1))
