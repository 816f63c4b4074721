"""`famjax import-hf`: a folder of Hugging Face transformers becomes a model directory."""

import argparse
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from famjax.cli.flags import add_memory_arguments, memory_overrides
from famjax.config import ConfigError, MemoryConfig, ModelConfig
from famjax.process.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from famjax.pretrained.folder import Folder
    from famjax.storage.pieces import Piece

NAME = "import-hf"
HELP = """Makes a model directory of a Hugging Face folder or a GGUF file, and gives the model a working memory.

  famjax import-hf ~/models/Llama-3.2-1B runs/llama
  famjax import-hf ~/models/gemma-3-1b-pt runs/gemma --fam-layers global
  famjax import-hf SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2 --block-size 256

Families: Llama 2 and 3, Mistral, Qwen 2, 2.5 and 3, Gemma 1, 2 and 3 (text). Weights keep their type (bf16
stays bf16; quantised ones of a GGUF file become float32), layers keep sliding windows of their own, and the
tokenizer's files go along; a GGUF file's metadata say all of that. FAM's prompt starts like the embeddings of
tokens: normal with their mean and spread, or the embeddings of --fam-text. A gate before FAM is shut at first, so the
model reads as it did; training opens it (docs/finetuning.md).
A folder that `famjax export-hf` wrote brings its memory's settings and its prompt. DST appears when it is
whole; the same command goes on with an import that was stopped or killed.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax import-hf`."""
    parser.add_argument("source", metavar="SRC", help="folder with config.json and safetensors, or a GGUF file")
    parser.add_argument("target", metavar="DST", help="the model directory to make; it must not exist yet")
    add_memory_arguments(parser)
    parser.add_argument(
        "--fam-layers", metavar="WHICH", help="layers that get a FAM: all, global, local, or a pattern such as -----+"
    )
    parser.add_argument(
        "--no-fam-gate",
        action="store_true",
        help="FAM is seen from the start, as in the paper, and harms until trained",
    )
    parser.add_argument("--fam-text", metavar="TEXT", help="FAM's prompt starts as this text's embeddings")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of FAM's prompt (default 0)")


def run(args: argparse.Namespace) -> int:
    """Holds every tensor against the model before the first is read, then reads one after the other."""
    with Progress(f"looking at {args.source}") as progress:
        return _import(args, progress)


def _import(args: argparse.Namespace, progress: Progress) -> int:
    from famjax.pretrained.config_json import memory_of, model_config
    from famjax.pretrained.families import family_of
    from famjax.pretrained.gguf_file import folder_of

    if args.seed < 0:
        raise ConfigError(f"--seed is {args.seed}; it must be at least 0")
    folder = folder_of(args.source)
    bare = model_config(folder.config)
    settings = memory_overrides(args) | ({"fam_layers": args.fam_layers} if args.fam_layers else {})
    settings |= {"fam_gate": False} if args.no_fam_gate else {}
    memory = imported_memory(bare, memory_of(folder.config), settings)
    dtype = _param_dtype(folder)
    config = dataclasses.replace(bare, memory=memory, param_dtype=dtype, dtype=dtype)
    config.validate()
    tokens = _tokens_of(args.fam_text, folder, config) if args.fam_text is not None else None

    from famjax.nn.weights import parameter_shapes
    from famjax.pretrained.match import match
    from famjax.storage.pieces import flatten, size_of, write_model
    from famjax.storage.unfinished import resumable_directory

    shapes = parameter_shapes(config)
    every = {path: leaf.shape for path, leaf in flatten(shapes).items()}
    flat = {path: shape for path, shape in every.items() if not path.startswith("fam/")}
    pairs = match(family_of(folder.config), flat, folder.tensors)
    first_fam, total = _fam_of(folder, config, tokens, args.seed), size_of(shapes)
    what = _work(folder, config, args)
    with resumable_directory(args.target, what, total) as (partial, journal):
        progress.stage(f"importing {args.source}", total, "GB")
        if journal.goes_on:
            print(f"going on with the import that was stopped: {partial}", file=sys.stderr)
        pieces = _pieces(folder, config, pairs, every, first_fam)
        write_model(partial, config, shapes, pieces, journal, progress.advance)
        _keep(folder, config, partial)
    return 0


def imported_memory(model: ModelConfig, kept: MemoryConfig | None, settings: dict[str, Any]) -> MemoryConfig:
    """The memory that a model gets: what was asked for, else what an exported folder says, else the paper's.

    A FAM that the folder does not bring has a gate, shut at first. The paper's three segments become more where the
    model's own sliding windows are longer, so that these layers see all that they were trained to see.
    """
    memory = kept or MemoryConfig()
    if kept is None and "memory_segments" not in settings:
        block = settings.get("block_size", memory.block_size)
        if block > 0:
            memory = dataclasses.replace(
                memory, memory_segments=max(memory.memory_segments, -(-(model.local_window - 1) // block))
            )
    if not (kept and kept.fam_length):
        memory = dataclasses.replace(memory, fam_gate=settings.get("fam_length", memory.fam_length) > 0)
    memory = dataclasses.replace(memory, **settings)
    if kept is not None and kept.fam_gate and memory.fam_length and not memory.fam_gate:
        raise ConfigError("--no-fam-gate: the folder's FAM was trained with a gate; leave it out")
    if kept is not None and memory.fam_length > kept.fam_length > 0:
        raise ConfigError(
            f"fam_length {memory.fam_length} is not possible: the folder's FAM has {kept.fam_length} rows; "
            f"use at most {kept.fam_length}"
        )
    memory.validate()
    return memory


def _param_dtype(folder: "Folder") -> str:
    """bfloat16 where all tensors are; else float32, which holds every number of the types that are known."""
    types = {tensor.dtype for tensor in folder.tensors.values()}
    return "bfloat16" if types == {"BF16"} else "float32"


def _tokens_of(text: str, folder: "Folder", config: ModelConfig) -> "np.ndarray":
    from famjax.data.vocabulary import vocabulary_files, vocabulary_from

    if not config.memory.fam_length:
        raise ConfigError("--fam-text is given, but --fam-length is 0; leave one of them out")
    place = str(folder.path)
    tokens = vocabulary_from(folder.vocabulary() or vocabulary_files(place), place).encode(text)
    if not len(tokens) or tokens.max() >= config.vocab_size:
        raise ConfigError("--fam-text has no tokens that the model knows; give it some words")
    return tokens


# From the embedding [V, D] to FAM's prompt or prefix.
FirstFam = Callable[["np.ndarray"], "np.ndarray"]


def _fam_of(folder: "Folder", config: ModelConfig, tokens: "np.ndarray | None", seed: int) -> FirstFam:
    """What FAM starts from: the folder's own, else something like the embeddings."""
    from famjax.pretrained import prompt
    from famjax.pretrained.folder import FAM_FILE, FAM_PREFIX, FAM_PROMPT

    F, D = config.memory.fam_length, config.d_model
    kind = config.memory.fam_init
    name = FAM_PROMPT if kind == "prompt" else FAM_PREFIX
    if F and folder.fam and tokens is None:
        shape = folder.fam[name].shape if name in folder.fam else ()
        lead = () if kind == "prompt" else (config.num_layers,)
        if len(shape) != len(lead) + 2 or shape[:-2] != lead or shape[-1] != D or shape[-2] < F:
            raise ConfigError(f"{folder.path / FAM_FILE}: {name} is {list(shape)}, not {[*lead, F, D]}")
        return lambda _: folder.read(name)[..., -F:, :]
    if F and kind == "prefix":
        raise ConfigError("fam_init `prefix` needs a fam_prefix in the folder's fam.safetensors; use `prompt`")
    if tokens is not None:
        return lambda embedding: prompt.of_text(embedding, tokens, F)
    return lambda embedding: prompt.like_embeddings(embedding, F, seed)


def _work(folder: "Folder", config: ModelConfig, args: argparse.Namespace) -> str:
    """What an import makes of what. Files are told by size and time: who changes them begins anew."""
    files = sorted({tensor.file for tensor in (*folder.tensors.values(), *folder.fam.values())})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made = {"config": dataclasses.asdict(config), "text": args.fam_text, "seed": args.seed}
    return json.dumps({"folder": str(folder.path.absolute()), "files": stats, "hf": folder.config} | made)


def _pieces(
    folder: "Folder", config: ModelConfig, pairs: list[Any], shapes: dict[str, Any], first_fam: FirstFam
) -> "Iterator[Piece]":
    """Every weight of the model, a tensor at a time, in the type that the model stores."""
    import ml_dtypes
    import numpy as np

    from famjax.pretrained.families import family_of
    from famjax.pretrained.match import copies
    from famjax.storage.pieces import Piece

    dtype = np.dtype(ml_dtypes.bfloat16) if config.param_dtype == "bfloat16" else np.dtype(np.float32)
    same = {source: copy for copy, source in copies(family_of(folder.config), shapes, folder.tensors).items()}

    def ours(pair: Any) -> "np.ndarray":
        theirs = folder.read(pair.name)
        if pair.name in same and not np.array_equal(folder.read(same[pair.name]), theirs):
            raise ConfigError(
                f"{same[pair.name]} differs from {pair.name}, but config.json says tie_word_embeddings; set it to false"
            )
        found: np.ndarray = pair.ours(theirs).astype(dtype, copy=False)
        return found

    embedding = next(pair.name for pair in pairs if pair.path == "embedding")
    for pair in pairs:
        size = math.prod(pair.shape) * dtype.itemsize
        yield Piece(pair.path, pair.layer, size, functools.partial(ours, pair))
    for path, shape in shapes.items():
        if path.startswith("fam/"):
            read = lambda: first_fam(folder.read(embedding)).astype(np.float32)
            if path == "fam/gate":
                read = functools.partial(_gate, folder, shape)
            yield Piece(path, None, math.prod(shape) * 4, read)


def _gate(folder: "Folder", shape: tuple[int, ...]) -> "np.ndarray":
    """The folder's own, or one that is shut."""
    import numpy as np

    from famjax.pretrained.folder import FAM_FILE, FAM_GATE

    if FAM_GATE not in folder.fam:
        return np.zeros(shape, np.float32)
    gate = folder.read(FAM_GATE)
    if gate.shape != shape:
        raise ConfigError(f"{folder.path / FAM_FILE}: {FAM_GATE} is {list(gate.shape)}, not {list(shape)}")
    return gate.astype(np.float32)


def _keep(folder: "Folder", config: ModelConfig, to: "Path") -> None:
    """What an export gives back: the tokenizer's files, the config.json, and types that the weights lost."""
    from famjax.data.tokenizer_folder import family_file
    from famjax.pretrained.config_json import SECTION
    from famjax.pretrained.folder import KEPT_CONFIG, write_json

    for name, content in (folder.carried() | dict(family_file(folder.tokenizer_family()))).items():
        (to / name).write_bytes(content)
    kept = "BF16" if config.param_dtype == "bfloat16" else "F32"
    types = {name: tensor.dtype for name, tensor in folder.tensors.items() if tensor.dtype != kept}
    write_json(to / KEPT_CONFIG, folder.config | {SECTION: {"types": types}})
