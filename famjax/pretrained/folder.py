"""Reads and writes model folders of transformers: `config.json`, safetensors (one file or shards), tokenizer files.

Only JSON and safetensors are read; pickles (`pytorch_model.bin`) are rejected.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from famjax.config import ConfigError

CONFIG_JSON = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FAM_FILE, FAM_PROMPT, FAM_PREFIX, FAM_GATE = "fam.safetensors", "fam_prompt", "fam_prefix", "fam_gate"
# Files copied unchanged.
CARRIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json", "vocab.json", "merges.txt", "tokenizer_family.json", "byte_vocabulary.json",
    "symbols.json",
)  # fmt: skip
# Chat templates, which are copied, too: one, and others with a name, in a folder of their own.
TEMPLATE, NAMED_TEMPLATES = "chat_template.jinja", "additional_chat_templates/*.jinja"
# Settings of a PEFT adapter.
ADAPTER_CONFIG = "adapter_config.json"
# Name in a model directory of the config.json that the model was imported with.
KEPT_CONFIG = "hf_config.json"

DTYPES: Mapping[str, Any] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
SHARD_BYTES = 5 * 10**9


class Tensor(NamedTuple):
    """A tensor in a folder: its file, safetensors dtype (a key of `DTYPES`) and shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def common_dtype(dtypes: Iterable[Any]) -> str:
    """Returns the name of the dtype that represents all values of these, for `dtype` in config.json."""
    return str(functools.reduce(np.promote_types, dtypes).name)


class Folder:
    """A model folder. Its headers are read at construction, its tensors on request.

    Attributes:
      path: the folder.
      config: contents of its config.json.
      tensors: the model's tensors by name.
      fam: the memory's own tensors by `memory_name`: `fam_prompt` or `fam_prefix`, and others; empty if it has none.

    Raises:
      ConfigError: a file is missing, truncated, quantised or has an unknown dtype, or there is also an adapter.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise ConfigError(f"{path} is {'a file' if self.path.exists() else 'not there'}; name a folder of a model")
        self.config = json_object(self.path / CONFIG_JSON)
        if (self.path / ADAPTER_CONFIG).exists():
            raise ConfigError(
                f"{path} also has an adapter ({ADAPTER_CONFIG}), which transformers adds to the weights; merge it "
                f"(peft's merge_and_unload), or move it away"
            )
        files = _weight_files(self.path)
        self.tensors: dict[str, Tensor] = {}
        for file, promised in files.items():
            found = _header(file)
            for name in promised or ():
                if name not in found:
                    raise ConfigError(f"{file} has no tensor {name}, which {INDEX} lists; download it again")
            for name, tensor in found.items():
                if name in self.tensors:
                    raise ConfigError(f"tensor {name} is in {self.tensors[name].file} and in {file}; keep one of them")
                self.tensors[name] = tensor
        self.fam = _header(self.path / FAM_FILE) if (self.path / FAM_FILE).exists() else {}

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor, in its own dtype. The file is opened for each tensor, so that no pages stay mapped."""
        tensor = self.tensors[name] if name in self.tensors else self.fam[name]
        with safetensors.safe_open(tensor.file, "numpy") as file:
            array: np.ndarray = file.get_tensor(name)
        return array

    def read_layer(self, name: str, layer: int) -> np.ndarray:
        """Reads only one layer of a stacked tensor [L, ...] of the memory."""
        with safetensors.safe_open(self.fam[name].file, "numpy") as file:
            array: np.ndarray = file.get_slice(name)[layer]
        return array

    def carried(self) -> dict[str, bytes]:
        """Returns the files to copy unchanged, such as tokenizer files, by name."""
        return carried_files(self.path)

    def vocabulary(self) -> dict[str, bytes] | None:
        """Returns the files of the vocabulary by name; None if they are in the folder `path`."""
        return None

    def tokenizer_family(self) -> Mapping[str, Any]:
        """Returns the settings that select transformers' tokenizer class, see `data.tokenizer_folder.family_file`."""
        return self.config


def carried_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder that are copied unchanged, by their path in it."""
    files = {name: (folder / name).read_bytes() for name in CARRIED if (folder / name).is_file()}
    return files | chat_templates(folder)


def chat_templates(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder that have its chat templates, by their path in it."""
    paths = [folder / TEMPLATE, *sorted(folder.glob(NAMED_TEMPLATES))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}


def files_of_import(model_dir: Path) -> dict[str, bytes]:
    """Returns the files of a model directory that come from its import, by name: tokenizer files, its config.json."""
    kept = model_dir / KEPT_CONFIG
    return carried_files(model_dir) | ({KEPT_CONFIG: kept.read_bytes()} if kept.is_file() else {})


def json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises `ConfigError` if the file is missing or holds something else."""
    if not path.is_file():
        raise ConfigError(f"{path.parent} has no {path.name}; name a folder as transformers writes it")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); is the file complete?") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} does not hold an object; is it the right file?")
    return values


def _weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """Returns the files with the weights, each with the tensor names that the index lists for it (None: no index)."""
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    if not (folder / INDEX).is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise ConfigError(
                f"{folder} has its weights as pickles, which can execute any code when they are read; convert them "
                f'where you trust them: python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{folder}').save_pretrained('NEW')\""
            )
        raise ConfigError(f"{folder} has neither {SINGLE} nor {INDEX}; is it the folder of a model?")
    places = json_object(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()) or not places:
        raise ConfigError(f"{folder / INDEX} has no weight_map; is the file complete?")
    shards: dict[Path, list[str] | None] = {}
    for name, file in places.items():
        if Path(file).name != file:
            raise ConfigError(f"{folder / INDEX} names {file!r}, which is not a file of its folder")
        if not (folder / file).is_file():
            raise ConfigError(f"{folder / file} is missing, one of {len(set(places.values()))} shards; download it too")
        promised = shards.setdefault(folder / file, [])
        assert promised is not None
        promised.append(name)
    return shards


def _header(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, by name. Raises `ConfigError` if it is incomplete or has unknown dtypes."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: Tensor(path, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path} is not a safetensors file, or truncated ({error}); download it again") from error
    for name, tensor in found.items():
        if tensor.dtype not in DTYPES:
            raise ConfigError(
                f"{path}: {name} has values of type {tensor.dtype}; known are {', '.join(DTYPES)}: "
                f"take the model's folder with unquantised weights"
            )
    return found


# --- writing --------------------------------------------------------------------------------------


class Written(NamedTuple):
    """The name, shape and dtype of a tensor to be written, known before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write_tensors(
    folder: Path, tensors: Iterable[Written], read: Callable[[str], np.ndarray], shard_bytes: int = SHARD_BYTES
) -> Iterator[int]:
    """Writes tensors in transformers' format, as one file or as shards with an index. Yields each tensor's bytes.

    Args:
      folder: the folder to write to.
      tensors: the tensors, in this order.
      read: maps a name to its array; one tensor is in memory at a time.
      shard_bytes: maximum size of a file, unless a single tensor is larger.
    """
    shards: list[list[Written]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(one.nbytes for one in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        yield from _write_shard(folder / file, shard, read)
        places |= {tensor.name: file for tensor in shard}
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _write_shard(path: Path, tensors: list[Written], read: Callable[[str], np.ndarray]) -> Iterator[int]:
    """Writes one safetensors file, tensor by tensor. The safetensors library would need all of them in memory.

    Yields the size in bytes of each tensor that is written. The format: the header's length (8 bytes), the header
    (JSON, padded to a multiple of 8), the values.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": names[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = np.ascontiguousarray(read(tensor.name))
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise ValueError(f"{tensor.name} is {array.dtype} {array.shape}, not {tensor.dtype} {tensor.shape}")
            file.write(array.reshape(-1).view(np.uint8).data)
            yield tensor.nbytes


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON in transformers' layout."""
    path.write_bytes(json_bytes(values))


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Returns the content of a JSON file in transformers' layout."""
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode("utf-8")


def memory_name(path: str) -> str:
    """Returns the name in `fam.safetensors` of the memory's weight at `path`: `fam_prompt` for `fam/prompt`."""
    return path.replace("fam/", "fam_").replace("/", ".")


def write_memory(folder: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Writes the memory's own weights, by `memory_name`, to `fam.safetensors`; those of layers are stacked."""
    write_arrays(folder / FAM_FILE, weights)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file of arrays that are in memory."""
    tensors = [Written(name, array.shape, array.dtype) for name, array in arrays.items()]
    for _ in _write_shard(path, tensors, lambda name: arrays[name]):
        pass


def carry(files: Mapping[str, bytes], to: Path) -> None:
    """Writes files of `carried_files` to the folder `to`."""
    for name, content in files.items():
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_bytes(content)
