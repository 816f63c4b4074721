"""Reads the header of a GGUF file: metadata by key, and the position of each tensor. No tensor values are read.

    magic "GGUF", version, number of tensors, number of metadata      4 + 4 + 8 + 8 bytes
    metadata    key, type, value; an array has a type and a length, a string a length
    tensors     name, number of axes, axes (the fastest first), type, offset from the beginning of the data
    padding to a multiple of `general.alignment`, then the data

Every length is compared with the rest of the file, so a broken file is reported in one line. (The reader of the library
`gguf` does not check lengths: on a damaged one it loops forever. It also creates arrays for every token of a
vocabulary, which takes 4 s for 49,000 tokens; this module takes 0.1 s.)
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from famjax.config import ConfigError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Scalar types of metadata, by number.
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_MOST_AXES = 4


class Stored(NamedTuple):
    """A tensor in the file.

    Attributes:
      kind: number of its type (`gguf.GGMLQuantizationType`).
      shape: its shape, the slowest axis first, as in NumPy and transformers.
      offset: position of its first byte in the file.
      nbytes: stored size in bytes.
    """

    kind: int
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Header(NamedTuple):
    """Metadata by key, converted to Python types, and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Stored]


def read_header(path: Path) -> Header:
    """Reads the header of a file. Raises `ConfigError` if it is not a GGUF file, or a broken one."""
    with open(path, "rb") as file:
        begin = file.read(8)
        if begin[:4] != MAGIC:
            raise ConfigError(f"{path} is not a GGUF file; name one, or a folder of a model")
        version = int.from_bytes(begin[4:], "little")
        if version & 0xFFFF == 0:
            raise ConfigError(f"{path} is a GGUF file for big-endian machines; take one for little-endian ones")
        if version not in VERSIONS:
            raise ConfigError(f"{path} is GGUF version {version}; known are {' and '.join(map(str, VERSIONS))}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _parsed(_Bytes(content, 8))
            except (_Broken, UnicodeDecodeError) as error:
                raise ConfigError(f"{path} is a broken or truncated GGUF file ({error}); download it again") from None


class _Broken(Exception):
    """Raised if a file is inconsistent or shorter than it states."""


class _Bytes:
    """Reads consecutive values of a mapped file. Raises `_Broken` if the file is inconsistent or too short."""

    def __init__(self, content: mmap.mmap, at: int):
        self.content, self.at, self.size = content, at, len(content)

    def take(self, count: int) -> bytes:
        """Returns the next `count` bytes."""
        if count > self.size - self.at:
            raise _Broken(f"{count:,} bytes are promised at {self.at:,}, the file has {self.size:,}")
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, form: str = "<Q") -> int:
        """Returns the next number, an unsigned 64-bit integer unless `form` is given."""
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self) -> str:
        """Returns the next string: a length, then UTF-8."""
        return self.take(self.number()).decode("utf-8")

    def name(self) -> str:
        """Returns the next string; it must be printable, so that a message can quote it."""
        name = self.text()
        if not name.isprintable():
            raise _Broken(f"there is a name {name[:60]!r}")
        return name

    def value(self, kind: int) -> Any:
        """Returns the next value, which has the metadata type `kind`, as a Python object."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise _Broken(f"there is no type {kind} of metadata")
        number = self.scalars(kind, 1)[0]
        # The shortest decimal: 1e-5, not 9.99999974737875e-06.
        return float(str(np.float32(number))) if kind == _FLOAT32 else number

    def array(self) -> list[Any]:
        """Returns the next array: a type, a length, values."""
        kind, count = self.number("<I"), self.number()
        if kind != _STRING and kind not in _SCALARS:
            raise _Broken(f"there is no array of type {kind}")
        if count > self.size - self.at:
            raise _Broken(f"an array of {count:,} is promised at {self.at:,}, the file has {self.size:,} bytes")
        return [self.text() for _ in range(count)] if kind == _STRING else self.scalars(kind, count)

    def scalars(self, kind: int, count: int) -> list[Any]:
        """Returns the next `count` numbers or booleans of type `kind`."""
        dtype = np.dtype(_SCALARS[kind])
        numbers = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        found: list[Any] = (numbers != 0).tolist() if kind == _BOOL else numbers.tolist()
        return found


def _parsed(file: _Bytes) -> Header:
    tensor_count, metadata_count = file.number(), file.number()
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        key = file.name()
        if key in metadata:
            raise _Broken(f"{key} occurs twice")
        metadata[key] = file.value(file.number("<I"))
    listed = [_listed(file) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Broken(f"general.alignment is {alignment!r}")
    data = -(-file.at // alignment) * alignment
    tensors: dict[str, Stored] = {}
    end = 0
    for name, kind, shape, offset in listed:
        if offset != end:
            raise _Broken(f"{name} begins at {offset:,} of the data, not where the tensor before it ends, {end:,}")
        stored = Stored(kind, shape, data + offset, _nbytes(name, kind, shape))
        end = -(-(offset + stored.nbytes) // alignment) * alignment
        if stored.offset + stored.nbytes > file.size:
            raise _Broken(f"{name} ends at {stored.offset + stored.nbytes:,}, the file has {file.size:,} bytes")
        if name in tensors:
            raise _Broken(f"{name} occurs twice")
        tensors[name] = stored
    return Header(metadata, tensors)


def _listed(file: _Bytes) -> tuple[str, int, tuple[int, ...], int]:
    """Returns name, type, shape and offset from the beginning of the data of the next tensor."""
    name, axes = file.name(), file.number("<I")
    if not 1 <= axes <= _MOST_AXES:
        raise _Broken(f"{name} has {axes} axes")
    shape = tuple(reversed([file.number() for _ in range(axes)]))
    return name, file.number("<I"), shape, file.number()


def _nbytes(name: str, kind: int, shape: tuple[int, ...]) -> int:
    """Returns the stored size of a tensor in bytes. Quantised tensors are stored in blocks along the last axis."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _Broken(f"{name} has values of type {kind}, which the library gguf does not know") from None
    if min(shape) < 1 or shape[-1] % block:
        raise _Broken(f"{name} is {list(shape)}, in blocks of {block}")
    return math.prod(shape) // block * size
