"""Kinds of files by their names: how to read each, and which files of a glob do not belong together."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from famjax.config import ConfigError

GZIP = ".gz"
JSON_LINES = (".jsonl", ".json", ".ndjson")
# Suffixes of files that cannot be read as text, by the advice for their error message.
REFUSED = {
    "unpack it, or pack it with gzip": (".bz2", ".xz", ".zst", ".zstd", ".lz4", ".lzma", ".z", ".br", ".sz"),
    "it is an archive; unpack it": (".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".7z", ".rar"),
    "write it as JSON lines": (
        ".parquet", ".arrow", ".feather", ".orc", ".avro", ".csv", ".tsv", ".xls", ".xlsx", ".ods", ".tfrecord",
        ".tfrecords", ".riegeli", ".mds", ".h5", ".hdf5", ".db", ".sqlite", ".sqlite3", ".pkl", ".pickle", ".npy",
        ".npz", ".pt", ".pth", ".bin", ".safetensors", ".gguf", ".model", ".yaml", ".yml",
    ),
    "save it as plain text": (
        ".pdf", ".epub", ".mobi", ".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx", ".png", ".jpg", ".jpeg", ".gif",
        ".webp", ".svg", ".mp3", ".wav", ".flac", ".mp4", ".exe", ".so", ".o", ".pyc",
    ),
    "it is not part of the data": (
        ".tmp", ".part", ".partial", ".crdownload", ".swp", ".bak", ".orig", ".lock", ".md5", ".sha1", ".sha256",
        ".sha512", ".crc", ".sig", ".asc", ".idx", ".index", ".gitattributes",
    ),
}  # fmt: skip
_REFUSED = {ending: advice for advice, endings in REFUSED.items() for ending in endings}
# Names of files that lie next to data but are not data, whatever their suffix.
_BESIDE = re.compile(
    r"(readme|licen[cs]e|copying|copyright|notice|changelog|citation|contributing|code_of_conduct|checksums?"
    r"|(md5|sha\d+)sums?|_success|_metadata|_common_metadata|desktop\.ini|thumbs\.db)([._-].*)?"
    r"|(dataset_infos?|dataset_dict|dataset-metadata|metadata|manifest|state|croissant)\.json|.*~"
)


def name_of(path: str) -> str:
    """Returns the last part of a path, in lower case."""
    return PurePosixPath(path.replace("\\", "/")).name.lower()


def is_gzip(path: str) -> bool:
    """Whether a file is gzip-compressed."""
    return name_of(path).endswith(GZIP)


def is_hidden(path: str) -> bool:
    """Whether a file is hidden: its name begins with a dot, so globs of a shell skip it."""
    return name_of(path).startswith(".")


def lies_beside(path: str) -> bool:
    """Whether a file next to data is documentation or metadata, such as README or LICENSE."""
    return bool(_BESIDE.fullmatch(name_of(path).removesuffix(GZIP)))


def ending_of(path: str) -> str:
    """Returns the suffix in lower case without `.gz`, such as `.jsonl` for `A.JSONL.gz`; empty if there is none."""
    return PurePosixPath(name_of(path).removesuffix(GZIP)).suffix


def kind_of(path: str) -> str:
    """Returns the kind of a file by its name: `jsonl`, `csv`, `parquet`, `refused` (not readable) or else `text`."""
    ending = ending_of(path)
    if ending in JSON_LINES:
        return "jsonl"
    if ending in (".csv", ".parquet"):
        return ending[1:]
    return "refused" if ending in _REFUSED or name_of(path).endswith(".tar.gz") else "text"


def one_kind(pattern: str, paths: Sequence[str], kinds: Sequence[str] = ("jsonl", "text"), remedy: str = "") -> str:
    """Returns the kind, one of `kinds`, that all files of a path or glob have.

    `pattern`, as the user wrote it, and `remedy`, the setting that overrides the kind, are for messages.

    Raises:
      ConfigError: the kinds differ, the caller does not read the kind, a file is documentation or metadata next to the
        data, or a file occurs twice, compressed and uncompressed.
    """
    data = [path for path in paths if not lies_beside(path)] or list(paths)
    for path in data:
        if kind_of(path) not in kinds:
            advice = _REFUSED.get(ending_of(path), "it is an archive; unpack it")
            if good := next((one for one in data if kind_of(one) in kinds), None):
                advice += f", or name the others alone ({_glob(good, good)})"
            raise ConfigError(f"{path}: famjax does not read {ending_of(path)} files here; {advice}")
    found = {kind_of(path): path for path in reversed(data)}
    if len(found) > 1:
        examples = " and ".join(f"{kind} ({PurePosixPath(path).name})" for kind, path in sorted(found.items()))
        raise ConfigError(f"{pattern} has files of several kinds, {examples}; name each kind separately, "
                          f"for example {_glob(pattern, data[0])}")  # fmt: skip
    if len(data) < len(paths):
        beside = next(path for path in paths if lies_beside(path))
        alone = _glob(pattern, data[0])
        how = "move it away" if alone == pattern else f"name the data alone, for example {alone}"
        how += f", or set {remedy} to read all of them" if remedy else ""
        raise ConfigError(f"{pattern} has {PurePosixPath(beside).name} beside the data; {how}")
    plain = set(paths)
    if twice := next((path for path in paths if is_gzip(path) and path[: -len(GZIP)] in plain), None):
        raise ConfigError(f"{pattern} has {PurePosixPath(twice).name} packed and unpacked; name one of them")
    return next(iter(found))


def _glob(pattern: str, path: str) -> str:
    """Returns `folder/*.jsonl` for a pattern that matches a file of that name."""
    endings = PurePosixPath(path).suffixes[-1 - is_gzip(path) :]
    return f"{pattern.rpartition('/')[0] or '.'}/*{''.join(endings)}"
