"""`famjax import-hf`: makes a model directory from a Hugging Face transformers folder or a GGUF file."""

import argparse
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from famjax.cli.flags import add_memory_arguments, refuse, utf8
from famjax.config import ConfigError, MemoryConfig, ModelConfig, memory_overrides
from famjax.config.checks import at_least
from famjax.config.optimizer import FAM, MEMORY
from famjax.process.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from famjax.data.vocabulary import Vocabulary
    from famjax.pretrained.folder import Folder
    from famjax.storage.pieces import Piece

# Mistral's tokenizer file, which famjax does not read.
TEKKEN = "tekken.json"
NAME = "import-hf"
HELP = """Make a model directory from a Hugging Face folder or a GGUF file, and add FAM to the model.

  famjax import-hf ~/models/Llama-3.2-1B runs/llama
  famjax import-hf ~/models/gemma-3-1b-pt runs/gemma --fam-layers global
  famjax import-hf SmolLM2-135M-Instruct.Q4_1.gguf runs/smollm2 --block-size 256

Families: Llama 2 and 3, Mistral, Qwen 2, 2.5 and 3, Gemma 1, 2 and 3 (text). Weights keep their dtype (bf16
stays bf16; quantised weights of a GGUF file become float32), layers keep their sliding windows, and the
tokenizer's files are copied, or made from a GGUF file's metadata. FAM's prompt is initialised from a normal
distribution with mean and spread of the token embeddings, or with the embeddings of --fam-text. FAM's gate
is initially closed, so the model's outputs do not change; training opens it (docs/finetuning.md).
A folder written by `famjax export-hf` provides its memory settings and its prompt. DST is renamed into place
when it is complete; the same command resumes an interrupted import.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax import-hf`."""
    parser.add_argument("source", metavar="SRC", help="folder with config.json and safetensors, or a GGUF file")
    parser.add_argument("target", metavar="DST", help="the model directory to create; it must not exist yet")
    add_memory_arguments(parser)
    parser.add_argument(
        "--fam-layers", metavar="WHICH", help="layers that get a FAM: all, global, local, or a pattern such as -----+"
    )
    parser.add_argument(
        "--no-fam-gate",
        action="store_true",
        help="no gate: FAM is fully visible from the start, as in the paper, which degrades the model until trained",
    )
    parser.add_argument(
        "--fam-text", type=utf8, metavar="TEXT", help="initialise FAM's prompt with this text's embeddings"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of FAM's prompt (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Matches every tensor with a weight of the model, then reads and writes the tensors one by one."""
    with Progress(f"inspecting {args.source}") as progress:
        return _import(args, progress)


def _import(args: argparse.Namespace, progress: Progress) -> int:
    from famjax.pretrained.config_json import memory_of, model_config
    from famjax.pretrained.families import family_of
    from famjax.pretrained.gguf_file import folder_of
    from famjax.pretrained.match import IGNORED_ENDINGS, match

    if args.seed is not None:
        at_least("--seed", args.seed, 0)
    folder = folder_of(args.source)
    bare = model_config(folder.config)
    settings = memory_overrides(args) | ({"fam_layers": args.fam_layers} if args.fam_layers else {})
    settings |= {"fam_gate": False} if args.no_fam_gate else {}
    memory = imported_memory(bare, memory_of(folder.config), settings)
    # float32 represents every supported dtype exactly. Tensors that are ignored do not widen the others.
    types = {tensor.dtype for name, tensor in folder.tensors.items() if not name.endswith(IGNORED_ENDINGS)}
    dtype = "bfloat16" if types == {"BF16"} else "float32"
    config = dataclasses.replace(bare, memory=memory, param_dtype=dtype, dtype=dtype)
    config.validate()
    if not memory.fam_length:
        refuse(args, ("fam_layers", "no_fam_gate", "seed"), "without FAM (fam_length 0); leave it out")
    elif args.fam_text is not None:
        refuse(args, ("seed",), "with --fam-text, from which the prompt is made; leave it out")
    elif folder.fam:
        refuse(args, ("seed",), "on a folder that has FAM's prompt; leave it out")
    args.seed = args.seed or 0
    vocabulary = _vocabulary(folder, config)
    tokens = _tokens_of(args.fam_text, vocabulary, config) if args.fam_text is not None else None

    from famjax.nn.weights import parameter_shapes
    from famjax.storage.arrays import leaves, size_of
    from famjax.storage.pieces import write_model
    from famjax.storage.unfinished import resumable_directory

    shapes = parameter_shapes(config)
    every = {path: leaf.shape for path, leaf in leaves(shapes).items()}
    flat = {path: shape for path, shape in every.items() if not path.startswith(MEMORY)}
    pairs = match(family_of(folder.config), flat, folder.tensors)
    check_memory(folder, config, every)
    first_fam, total = _fam_of(folder, config, tokens, args.seed), size_of(shapes)
    what = _work(folder, config, args)
    with resumable_directory(args.target, what, total) as (partial, journal):
        progress.stage(f"importing {args.source}", total, "GB")
        if journal.goes_on:
            print(f"resuming the interrupted import: {partial}", file=sys.stderr)
        pieces = _pieces(folder, config, pairs, every, first_fam)
        write_model(partial, config, shapes, pieces, journal, progress.advance)
        _keep(folder, config, partial)
    return 0


def imported_memory(model: ModelConfig, kept: MemoryConfig | None, settings: dict[str, Any]) -> MemoryConfig:
    """Returns the memory settings of an imported model: from flags, else from an exported folder, else the paper's.

    Unless `settings` disable it, a FAM that the folder does not provide gets a gate, initially closed. If the model's
    own sliding windows are longer than the paper's three segments, the number of segments is raised to cover them.

    Raises:
      ConfigError: the settings are invalid or do not fit the folder's FAM.
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


def _vocabulary(folder: "Folder", config: ModelConfig) -> "Vocabulary":
    """Returns the folder's vocabulary. Raises `ConfigError` if it or its special tokens cannot be read, it has more
    tokens than the model, or a model that was not trained on bytes has none: text would be bytes."""
    from famjax.data.vocabulary import BYTE_VOCABULARY_SIZE, has_vocabulary, vocabulary_files, vocabulary_from
    from famjax.infer.codec import Codec, fit
    from famjax.pretrained.config_json import SECTION

    place = str(folder.path)
    kept = folder.vocabulary() or (vocabulary_files(place) if has_vocabulary(place) else {})
    if kept or config.vocab_size <= BYTE_VOCABULARY_SIZE or SECTION in folder.config:
        vocabulary = vocabulary_from(kept, place)
        if kept:  # a model without one may have fewer tokens than bytes; it is used with tokens alone
            fit(vocabulary, config.vocab_size, place)
        return Codec.of(vocabulary, folder.path, config.vocab_size).vocabulary
    if (folder.path / TEKKEN).is_file():
        raise ConfigError(
            f'{folder.path} has its tokenizer as {TEKKEN} alone; convert it: python -c "from transformers import '
            f"AutoTokenizer as T; d = '{folder.path}'; T.from_pretrained(d).save_pretrained(d, save_format='hf')\""
        )
    raise ConfigError(
        f"{folder.path} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json and merges.txt) for its "
        f"{config.vocab_size:,} tokens; is the download complete? If it is, copy the tokenizer's files there"
    )


def _tokens_of(text: str, vocabulary: "Vocabulary", config: ModelConfig) -> "np.ndarray":
    if not config.memory.fam_length:
        raise ConfigError("--fam-text is given, but --fam-length is 0; leave one of them out")
    tokens = vocabulary.encode(text)
    if not len(tokens) or tokens.max() >= config.vocab_size:
        raise ConfigError("--fam-text has no tokens of the model's vocabulary; give it some words")
    return tokens


# Maps the embedding [V, D] to FAM's prompt or prefix.
FirstFam = Callable[["np.ndarray"], "np.ndarray"]


def _fam_of(folder: "Folder", config: ModelConfig, tokens: "np.ndarray | None", seed: int) -> FirstFam:
    """Returns the initialiser of FAM's prompt or prefix: the folder's weights if it has any, else from embeddings.
    Raises `ConfigError` if the folder was exported with a FAM whose weights are missing, or have other shapes."""
    from famjax.pretrained import prompt
    from famjax.pretrained.config_json import SECTION, memory_of
    from famjax.pretrained.folder import FAM_FILE, FAM_PREFIX, FAM_PROMPT

    F, D = config.memory.fam_length, config.d_model
    kept = memory_of(folder.config)
    # Its settings may have no gate, so a random prompt in place of the trained one would change all outputs.
    if F and kept and kept.fam_length and not folder.fam and tokens is None:
        raise ConfigError(
            f"{folder.path} has no {FAM_FILE}, the FAM of its config.json; copy it there, or remove the section "
            f"{SECTION} from config.json for a new FAM"
        )
    kind = config.memory.fam_init
    name = FAM_PROMPT if kind == "prompt" else FAM_PREFIX
    if F and folder.fam and tokens is None:
        shape = folder.fam[name].shape if name in folder.fam else ()
        lead = () if kind == "prompt" else (config.num_layers,)
        if len(shape) != len(lead) + 2 or shape[:-2] != lead or shape[-1] != D or shape[-2] < F:
            raise ConfigError(f"{folder.path / FAM_FILE}: {name} is {list(shape)}, not {[*lead, F, D]}")
        return lambda _: finite(folder, name, folder.read(name)[..., -F:, :])
    if F and kind == "prefix":
        raise ConfigError("fam_init `prefix` needs a fam_prefix in the folder's fam.safetensors; use `prompt`")
    if tokens is not None:
        return lambda embedding: prompt.of_text(embedding, tokens, F)
    return lambda embedding: prompt.like_embeddings(embedding, F, seed)


def _work(folder: "Folder", config: ModelConfig, args: argparse.Namespace) -> str:
    """Returns the fingerprint of an import job; a changed size or mtime of a source file restarts it."""
    files = sorted({tensor.file for tensor in (*folder.tensors.values(), *folder.fam.values())})
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made = {"config": dataclasses.asdict(config), "text": args.fam_text, "seed": args.seed}
    return json.dumps({"folder": str(folder.path.absolute()), "files": stats, "hf": folder.config} | made)


def _pieces(
    folder: "Folder", config: ModelConfig, pairs: list[Any], shapes: dict[str, Any], first_fam: FirstFam
) -> "Iterator[Piece]":
    """Yields every weight of the model, one tensor at a time, in the model's `param_dtype`; the memory's in float32."""
    import ml_dtypes
    import numpy as np

    from famjax.pretrained.families import family_of
    from famjax.pretrained.match import copies
    from famjax.storage.pieces import Piece, layers_of

    dtype = np.dtype(ml_dtypes.bfloat16) if config.param_dtype == "bfloat16" else np.dtype(np.float32)
    same = {source: copy for copy, source in copies(family_of(folder.config), shapes, folder.tensors).items()}

    def ours(pair: Any) -> "np.ndarray":
        theirs = folder.read(pair.name)
        if pair.name in same and not np.array_equal(folder.read(same[pair.name]), theirs):
            raise ConfigError(
                f"{same[pair.name]} differs from {pair.name}, but config.json says tie_word_embeddings; set it to false"
            )
        return finite(folder, pair.name, pair.ours(theirs).astype(dtype, copy=False))

    embedding = next(pair.name for pair in pairs if pair.path == "embedding")
    for pair in pairs:
        size = math.prod(pair.shape) * dtype.itemsize
        yield Piece(pair.path, pair.layer, size, functools.partial(ours, pair))
    for path, shape in shapes.items():
        if path.startswith(FAM):
            read = lambda: first_fam(folder.read(embedding)).astype(np.float32)
            if path == "fam/gate":
                read = functools.partial(_gate, folder, shape)
            yield Piece(path, None, math.prod(shape) * 4, read)
        elif path.startswith(MEMORY):
            layers = list(layers_of(path, shape))
            for layer in layers:
                read = functools.partial(_of_memory, folder, path, layer)
                yield Piece(path, layer, math.prod(shape) * 4 // len(layers), read)


def check_memory(folder: "Folder", config: ModelConfig, shapes: dict[str, Any]) -> None:
    """Raises `ConfigError` unless the folder's memory weights match the model's in name and shape.

    FAM's own weights (`fam_*`) are not checked here, since they can be initialised. Weights of a memory that is
    switched off are ignored.
    """
    from famjax.pretrained.folder import FAM_FILE, memory_name

    others = tuple(prefix for prefix in MEMORY if prefix != FAM)
    wanted = {memory_name(path): shape for path, shape in shapes.items() if path.startswith(others)}
    there = {name: tensor.shape for name, tensor in folder.fam.items() if not name.startswith("fam_")}
    for name in sorted({**wanted, **there}):
        if name not in there:
            raise ConfigError(
                f"{folder.path / FAM_FILE} has no {name}, which the folder's memory needs; export it again"
            )
        if name in wanted and tuple(there[name]) != tuple(wanted[name]):
            raise ConfigError(f"{folder.path / FAM_FILE}: {name} is {list(there[name])}, not {list(wanted[name])}")
        if name not in wanted and (config.memory.fam_length or config.memory.kind != "fam"):
            raise ConfigError(f"{folder.path / FAM_FILE} has {name}, which this memory does not have; remove it there")


def _of_memory(folder: "Folder", path: str, layer: int | None) -> "np.ndarray":
    """Returns a weight of the folder's memory in float32; one layer of it if `layer` is not None."""
    import numpy as np

    from famjax.pretrained.folder import memory_name

    name = memory_name(path)
    found = folder.read(name) if layer is None else folder.read_layer(name, layer)
    return finite(folder, name, found.astype(np.float32))


def _gate(folder: "Folder", shape: tuple[int, ...]) -> "np.ndarray":
    """Returns the folder's gate of FAM, or a closed one (zeros), in float32."""
    import numpy as np

    from famjax.pretrained.folder import FAM_FILE, FAM_GATE

    if FAM_GATE not in folder.fam:
        return np.zeros(shape, np.float32)
    gate = folder.read(FAM_GATE)
    if gate.shape != shape:
        raise ConfigError(f"{folder.path / FAM_FILE}: {FAM_GATE} is {list(gate.shape)}, not {list(shape)}")
    return finite(folder, FAM_GATE, gate.astype(np.float32))


def finite(folder: "Folder", name: str, weights: "np.ndarray") -> "np.ndarray":
    """Returns the weights. Raises `ConfigError` if some are NaN or infinite, as after a training that diverged."""
    import numpy as np

    if count := int(weights.size - np.isfinite(weights).sum()):
        raise ConfigError(f"{folder.path}: {name} has {count:,} weights that are NaN or infinite; get the folder again")
    return weights


def _keep(folder: "Folder", config: ModelConfig, to: "Path") -> None:
    """Stores in `to` what an export restores: tokenizer files, config.json, and the dtypes of converted tensors."""
    from famjax.data.tokenizer_folder import family_file
    from famjax.pretrained.config_json import SECTION
    from famjax.pretrained.folder import KEPT_CONFIG, carry, write_json

    carry(folder.carried() | dict(family_file(folder.tokenizer_family())), to)
    kept = "BF16" if config.param_dtype == "bfloat16" else "F32"
    types = {name: tensor.dtype for name, tensor in folder.tensors.items() if tensor.dtype != kept}
    write_json(to / KEPT_CONFIG, folder.config | {SECTION: {"types": types}})
