"""Documents of files, by index: text files, lines, JSON lines, Hugging Face datasets on disk.

Sources read documents on demand; only remote Arrow files are held in memory. Lines are found by an index of byte
offsets (`line_index.py`).
"""

import functools
import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from famjax.config import ConfigError, SourceConfig
from famjax.config.checks import reason_of
from famjax.config.text import BOM, BadText, checked, json_of, text_of
from famjax.data import files, kinds
from famjax.data.line_index import LineFile

# Maximum number of bytes that are searched for the end of a line when a file is split into parts.
LONGEST_LINE = 2**16


class Document(NamedTuple):
    """One document as text.

    Attributes:
      inputs: the part without a loss; empty if the whole text carries a loss.
      targets: the part with a loss.
      place: the file, for messages; may be empty.
    """

    inputs: str
    targets: str
    place: str


class Source(Protocol):
    """Documents by index, from 0."""

    def __len__(self) -> int: ...

    def document(self, i: int) -> Document:
        """Returns document i, 0 <= i < len. Raises `ConfigError` with the file and line if it cannot be read."""
        ...

    def first(self) -> Document:
        """Returns the first document without indexing the others, as a quick check before a long run."""
        ...


def open_source(config: SourceConfig) -> Source:
    """Returns the documents of a path. Missing files raise an error here, invalid ones when they are read. Raises
    `ConfigError` if no file matches, the path is a folder that is not a dataset, or the kinds of its files differ."""
    paths = files.expand(config.path)
    if config.kind == "dataset" or (config.kind == "auto" and files.is_directory(paths[0])):
        return _dataset(paths, config)
    return _of_files(paths, _kind(paths, config), config)


def open_each(config: SourceConfig) -> list[Source]:
    """Returns one source per file, so that a file that cannot be read does not affect the others."""
    paths = files.expand(config.path)
    if config.kind == "dataset" or (config.kind == "auto" and files.is_directory(paths[0])):
        return [_dataset(paths, config)]
    kind = _kind(paths, config)
    return [_of_files([path], kind, config) for path in paths]


def _kind(paths: Sequence[str], config: SourceConfig) -> str:
    for path in paths:
        if files.is_directory(path):
            raise ConfigError(f"{path} is a directory; name its files, for example {path.rstrip('/')}/*.txt")
    return kinds.one_kind(config.path, paths, remedy="SourceConfig.kind") if config.kind == "auto" else config.kind


def _of_files(paths: Sequence[str], kind: str, config: SourceConfig) -> Source:
    if kind == "text":
        if config.part_bytes:
            return TextParts(paths, config.part_bytes, config.kind == "auto")
        return TextFiles(paths, config.kind == "auto")
    _check_whole(config, kind)
    return TextLines(paths) if kind == "lines" else JsonLines(paths, config)


def _check_whole(config: SourceConfig, kind: str) -> None:
    """Raises `ConfigError` if documents of a kind that is not split are to be."""
    if config.part_bytes:
        raise ConfigError(f"part_bytes {config.part_bytes} has no effect on {config.path}, of kind {kind!r}: only "
                          f"files of kind 'text' are split; set it to 0")  # fmt: skip


def _checked_text(content: bytes, path: str, place: str, begins: bool = True) -> str:
    """Decodes a file that counts as text by its name alone, or a part of it, which `begins` the file or not. Raises
    `BadText` if its content is not text."""
    text = text_of(content, place)
    if "\0" in text:
        raise BadText(path, "this is not text, it has zero bytes; leave it out, or set SourceConfig.kind = 'text'")
    if begins and text.lstrip()[:1] == "{" and _is_object(text.lstrip().partition("\n")[0]):
        raise BadText(path, "its first line is a JSON object; set SourceConfig.kind = 'jsonl' to read JSON lines, or "
                            "'text' to read it as it is")  # fmt: skip
    return text


def _is_object(line: str) -> bool:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and bool(fields)


class TextFiles:
    """Each file is a document. If their kind was derived from their names alone (`by_name`), their content is checked
    too."""

    def __init__(self, paths: Sequence[str], by_name: bool = False):
        self.paths = paths
        self._decode = _checked_text if by_name else lambda content, _, place: text_of(content, place)

    def __len__(self) -> int:
        return len(self.paths)

    def document(self, i: int) -> Document:
        """Returns the text of file i."""
        path = self.paths[i]
        return Document("", self._decode(files.read_plain(path), path, path), path)

    def first(self) -> Document:
        """Returns the first file's text."""
        return self.document(0)


class TextParts:
    """Parts of text files, each a document of about `part_bytes` bytes.

    Part i of a file begins after the first line end from byte i * `part_bytes` - 1 on. If the next `LONGEST_LINE` bytes
    have none, it begins with the next whole character. `by_name` is as in `TextFiles`.

    Raises:
      ConfigError: a file is compressed with gzip.
    """

    def __init__(self, paths: Sequence[str], part_bytes: int, by_name: bool = False):
        for path in paths:
            if kinds.is_gzip(path):
                raise ConfigError(f"{path} cannot be split into parts: gzip can only be read from the start; unpack it")
        self.paths, self.part_bytes = paths, part_bytes
        self._decode = _checked_text if by_name else lambda content, _, place, begins: text_of(content, place)

    @functools.cached_property
    def _before(self) -> np.ndarray:
        return np.cumsum([0] + [-(-files.size(path) // self.part_bytes) for path in self.paths])

    def __len__(self) -> int:
        return int(self._before[-1])

    def document(self, i: int) -> Document:
        """Returns part i of all files together; it is empty if it lies within a line that is longer than a part."""
        which = int(np.searchsorted(self._before, i, side="right")) - 1
        path, part = self.paths[which], i - int(self._before[which])
        last = i + 1 == self._before[which + 1]
        start, end = self._edge(path, part), None if last else self._edge(path, part + 1)
        content = files.read(path, start, end)
        return Document("", self._decode(content, path, f"{path} from byte {start} on", not part), path)

    def first(self) -> Document:
        """Returns the first part."""
        if not len(self):
            raise ConfigError(f"{self.paths[0]} is empty")
        return self.document(0)

    def _edge(self, path: str, part: int) -> int:
        if not part:
            return len(BOM) * (files.read(path, 0, len(BOM)) == BOM)
        at = part * self.part_bytes
        near = files.read(path, at - 1, at + LONGEST_LINE)  # a line may end just before
        line = near.find(b"\n")
        if line >= 0:
            return at + line
        return at + next((i for i, byte in enumerate(near[1:5]) if byte & 0xC0 != 0x80), 0)


class _Lines:
    """Lines of several files, indexed consecutively."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    @functools.cached_property
    def _files(self) -> list[LineFile]:
        return [LineFile(path) for path in self.paths]

    @functools.cached_property
    def _before(self) -> np.ndarray:
        return np.cumsum([0] + [len(file.starts) for file in self._files])

    def __len__(self) -> int:
        return int(self._before[-1])

    def document(self, i: int) -> Document:
        """Returns line i of all files together."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        which = int(np.searchsorted(self._before, i, side="right")) - 1
        file, line = self._files[which], i - int(self._before[which])
        return self._parse(file.line(line), lambda: f"{file.path}:{file.number(line)}")

    def first(self) -> Document:
        """Returns the first line of the first file that has one, without opening the others."""
        for path in self.paths:
            try:
                with files.open_plain(path) as file:
                    for number, line in enumerate(file, start=1):
                        if line.removeprefix(BOM).strip():
                            return self._parse(line, lambda path=path, number=number: f"{path}:{number}")
            except (EOFError, zlib.error, OSError) as error:
                raise files.unreadable(path, error) from error
        more = f" and {len(self.paths) - 1} more files" if len(self.paths) > 1 else ""
        raise ConfigError(f"{self.paths[0]}{more} has no documents; all its lines are blank")

    def _parse(self, line: bytes, place: Any) -> Document:
        raise NotImplementedError


class TextLines(_Lines):
    """Each line is a document, without its line end. Blank lines are skipped."""

    def _parse(self, line: bytes, place: Any) -> Document:
        return Document("", text_of(line, place).rstrip("\r\n"), "")


class JsonLines(_Lines):
    """Each line is a JSON object with a text, or with inputs and targets. Blank lines are skipped."""

    def __init__(self, paths: Sequence[str], config: SourceConfig):
        super().__init__(paths)
        self.config = config

    def _parse(self, line: bytes, place: Any) -> Document:
        fields = json_of(line, place)
        if not isinstance(fields, dict):
            raise BadText(place, f"a document is a JSON object, not {type(fields).__name__}")
        return _document(fields, self.config, place)


def _document(fields: dict[str, Any], config: SourceConfig, place: Any) -> Document:
    """Converts named fields to a document."""
    text, inputs, targets = config.text_field, config.inputs_field, config.targets_field
    if targets in fields:
        given = fields.get(inputs, "")
        learned = fields[targets]
    elif text in fields:
        given, learned = "", fields[text]
    else:
        has = ", ".join(sorted(fields)) or "nothing"
        raise BadText(place, f'a document has "{text}", or "{inputs}" and "{targets}"; this one has {has}')
    for name, value in ((inputs, given), (targets if targets in fields else text, learned)):
        if not isinstance(value, str):
            raise BadText(place, f'"{name}" must be a string, not {type(value).__name__}')
        checked(value, place, f'"{name}"')
    return Document(given + config.separator if given else "", learned, "")


# --- Hugging Face datasets, as written by `save_to_disk` ----------------------------------------------


def _dataset(paths: Sequence[str], config: SourceConfig) -> "ArrowTable":
    if len(paths) > 1 or not files.is_directory(paths[0]):
        raise ConfigError(f"{config.path} is not one folder; a dataset is a folder that `save_to_disk` wrote")
    _check_whole(config, "dataset")
    folder = paths[0].rstrip("/")
    if (splits := files.splits_of(folder)) is not None:
        raise ConfigError(f"{folder} has the splits {', '.join(splits)}; name one of them, for example {folder}/train")
    if (parts := files.arrow_files(folder)) is None:
        raise ConfigError(
            f"{folder} is a directory without a state.json, so not a dataset that `save_to_disk` wrote; "
            f"for the files in it, name them: {folder}/*.txt"
        )
    return ArrowTable(parts, config)


class ArrowTable:
    """Rows of Arrow files, each a document. Local files are memory-mapped; remote ones are held in memory. Raises
    `ConfigError` if pyarrow is not installed, or a file is missing or not an Arrow file."""

    def __init__(self, paths: Sequence[str], config: SourceConfig):
        try:
            import pyarrow
        except ImportError as error:
            raise ConfigError(
                f"{config.path} is a Hugging Face dataset, which needs pyarrow: pip install -e '.[arrow]'"
            ) from error
        self.config, tables = config, []
        for path in paths:
            local = "://" not in path
            if not files.exists(path):
                raise ConfigError(f"there is no file {path}, which the dataset's state.json names")
            source = pyarrow.memory_map(path) if local else pyarrow.BufferReader(files.read(path))
            try:
                tables.append(pyarrow.ipc.open_stream(source).read_all())
            except pyarrow.ArrowInvalid as error:
                raise ConfigError(f"{path} is not an Arrow file ({reason_of(error)})") from error
        names = [config.text_field, config.inputs_field, config.targets_field]
        table = pyarrow.concat_tables(tables)
        self._columns = {name: table.column(name) for name in names if name in table.column_names}
        self._names, self._rows = table.column_names, table.num_rows

    def __len__(self) -> int:
        return self._rows

    def document(self, i: int) -> Document:
        """Returns the document in row i."""
        place = lambda: f"{self.config.path} row {i}"
        fields = {name: column[i].as_py() for name, column in self._columns.items()}
        return _document(fields or dict.fromkeys(self._names), self.config, place)

    def first(self) -> Document:
        """Returns the document in row 0."""
        if not self._rows:
            raise ConfigError(f"{self.config.path} has no rows")
        return self.document(0)
