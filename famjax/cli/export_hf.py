"""`famjax export-hf`: writes a model directory as a folder that Hugging Face transformers loads."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from famjax.config import ConfigError, LoraConfig, ModelConfig
from famjax.config.optimizer import LORA, MEMORY
from famjax.process import interrupts
from famjax.process.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from famjax.pretrained.folder import Written
    from famjax.pretrained.match import Pair
    from famjax.storage.pieces import Weights

NAME = "export-hf"
HELP = """Write a model directory as a folder that transformers loads: weights, config.json, tokenizer.

  famjax export-hf runs/llama exported
  famjax export-hf runs/llama adapter --adapter-only

transformers runs the base model alone, without FAM. FAM's prompt is written to fam.safetensors
(fam_prompt [F, D]) and the memory settings to config.json under "famjax"; `famjax import-hf` reads both.
An imported model gets its original config.json and tokenizer back, and bit-identical tensors if it was not
trained. Weights that were trained keep the type of the training. LoRA is merged into the weights;
--adapter-only writes LoRA alone in peft's layout (adapter_model.safetensors, adapter_config.json), and FAM.
DST is renamed into place when it is complete.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax export-hf`."""
    parser.add_argument("source", metavar="SRC", help="a model directory")
    parser.add_argument("target", metavar="DST", help="the folder to create; it must not exist yet")
    parser.add_argument(
        "--adapter-only", action="store_true", help="write LoRA in peft's layout, and FAM, without the base"
    )
    parser.add_argument(
        "--base-model", metavar="NAME", help="with --adapter-only: name of the base model in adapter_config.json"
    )


def run(args: argparse.Namespace) -> int:
    """Finds a family that can express this model, then writes the shards one by one."""
    from famjax.storage.model_dir import read_config, split_step

    config = read_config(args.source)
    root, _ = split_step(args.source)
    if args.base_model is not None and not args.adapter_only:
        raise ConfigError("--base-model is given, but not --adapter-only; leave it out")
    hf, types = their_config(root, config)
    if args.adapter_only:
        write_adapter(args, config, hf)
        return 0

    check_tokenizer(root, hf)
    from famjax.data.tokenizer_folder import FAMILY
    from famjax.pretrained.config_json import with_memory
    from famjax.pretrained.families import family_of
    from famjax.pretrained.folder import (
        CONFIG_JSON,
        Written,
        carried_files,
        carry,
        write_json,
        write_memory,
        write_tensors,
    )
    from famjax.pretrained.match import pairs
    from famjax.storage.pieces import Weights
    from famjax.storage.unfinished import atomic_directory

    weights = Weights(args.source)
    shapes = {p: shape for p, shape in weights.shapes.items() if not p.startswith((*MEMORY, LORA))}
    by_name = {pair.name: pair for pair in pairs(family_of(hf), shapes)}
    trained = {name for name, pair in by_name.items() if pair.path in weights.trained}
    imported = {kind for name, kind in types.items() if name in trained}
    types = {name: kind for name, kind in types.items() if name not in trained}
    written = [Written(p.name, p.their_shape, _dtype(p, weights, types)) for p in by_name.values()]
    if trained or weights.converted:
        hf = with_dtype(hf, written, imported)
    total = sum(tensor.nbytes for tensor in written)
    read = lambda name: _theirs(by_name[name], weights, types, config.lora)
    with (
        atomic_directory(args.target, needed_bytes=total) as partial,
        Progress(f"writing {args.target}", total, "GB") as progress,
    ):
        for done in write_tensors(partial, written, read):
            progress.advance(done)
            interrupts.check()
        if memory := _memory(weights, config):
            write_memory(partial, memory)
        write_json(partial / CONFIG_JSON, with_memory(hf, config.memory))
        carry({name: content for name, content in carried_files(root).items() if name != FAMILY}, partial)
    return 0


def their_config(model_dir: Path, config: ModelConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the config.json of the transformers folder, and the dtypes of tensors that the import converted.

    It is the config.json that the model was imported with if that still describes the model. Otherwise it is generated,
    with the keys of the former that do not describe the model, such as its end-of-text tokens; without one, with the
    special tokens of the vocabulary.

    Raises:
      ConfigError: the stored file is not JSON, or no family of transformers can express the model.
    """
    from famjax.data.vocabulary import vocabulary_of
    from famjax.pretrained.config_json import NO_EFFECT, SECTION, config_json, describes, with_tokens
    from famjax.pretrained.folder import KEPT_CONFIG

    path = model_dir / KEPT_CONFIG
    if not path.is_file():
        vocabulary = vocabulary_of(model_dir)
        return with_tokens(config_json(config), vocabulary.bos, vocabulary.eos), {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        section = kept.pop(SECTION, {})
    except (ValueError, AttributeError):
        raise ConfigError(f"{path} is not JSON; restore it from a copy, or remove it") from None
    if not describes(kept, config):
        others = {key: value for key, value in kept.items() if key in NO_EFFECT - {"torch_dtype"}}
        return others | config_json(config), {}
    return kept, section.get("types", {})


def check_tokenizer(model_dir: Path, hf: dict[str, Any]) -> None:
    """Raises `ConfigError` if config.json would make another tokenizer of the model's files: its `model_type` selects
    the class, and some classes define steps themselves. None keeps all settings of a SentencePiece model."""
    from famjax.data.symbols import SYMBOLS_JSON
    from famjax.data.tokenizer_folder import FAMILY, TOKENIZER_MODEL, family_file, same_steps
    from famjax.data.vocabulary import (
        BYTE_VOCABULARY,
        SentencePieceVocabulary,
        TokenizerVocabulary,
        has_vocabulary,
        vocabulary_files,
        vocabulary_from,
    )

    kept = vocabulary_files(str(model_dir)) if has_vocabulary(model_dir) else {}
    said = dict(family_file(hf))
    if not kept or {BYTE_VOCABULARY, SYMBOLS_JSON} & set(kept) or kept.get(FAMILY) == said.get(FAMILY):
        return
    theirs = {name: kept[name] for name in kept if name != FAMILY} | said
    ours = vocabulary_from(kept, str(model_dir))
    if isinstance(ours, SentencePieceVocabulary):
        text = ours.other_text(TokenizerVocabulary(theirs, str(model_dir)))
        if text is not None:
            raise ConfigError(
                f"{model_dir}: transformers would read {text!r} of {TOKENIZER_MODEL} as other tokens, as it does not "
                f"keep all settings of SentencePiece, such as add_dummy_prefix and remove_extra_whitespaces; move the "
                f"file away and load it with the library sentencepiece"
            )
    elif not same_steps(kept, theirs, str(model_dir)):
        raise ConfigError(
            f"{model_dir}: transformers would make another tokenizer of its files, as model_type is "
            f"{hf['model_type']}; set tokenizer_class in tokenizer_config.json to PreTrainedTokenizerFast if it is "
            f"another, or move the tokenizer's files away and load them on their own"
        )


def with_dtype(hf: dict[str, Any], written: "Iterable[Written]", imported: set[str]) -> dict[str, Any]:
    """Returns config.json with the dtype of the written tensors, of several the one that represents all their values.

    Prints a line if it is not the dtype of config.json, or of the tensors of the import, `imported` (of `DTYPES`).
    """
    from famjax.pretrained.folder import DTYPES, common_dtype

    dtype = common_dtype(tensor.dtype for tensor in written)
    key = "torch_dtype" if "torch_dtype" in hf else "dtype"
    before = {DTYPES[kind].name for kind in imported} or {str(hf.get(key, dtype))}
    if others := sorted(before - {dtype}):
        print(
            f"the weights are written as {dtype}, in which they were trained, also in config.json; they were imported "
            f"as {' and '.join(others)}",
            file=sys.stderr,
        )
    return hf | {key: dtype}


def write_adapter(args: argparse.Namespace, config: ModelConfig, hf: dict[str, Any]) -> None:
    """Writes LoRA and FAM, without the base. Raises `ConfigError` if the model has no LoRA, or if other weights were
    trained with it, which an adapter does not have."""
    if not config.lora.rank:
        raise ConfigError(f"{args.source} has no LoRA (its rank is 0); leave --adapter-only out")

    from famjax.pretrained import adapter
    from famjax.pretrained.families import family_of
    from famjax.pretrained.folder import write_memory
    from famjax.storage.pieces import Weights
    from famjax.storage.unfinished import atomic_directory

    weights = Weights(args.source)
    part: Weights | None = weights
    while part is not None and any(path.startswith(LORA) for path in part.own):
        if more := sorted(path for path in part.trained & part.own if not path.startswith((LORA, *MEMORY))):
            raise ConfigError(f"{args.source} was not trained by LoRA alone: an adapter cannot have {more[0]}; leave "
                              f"--adapter-only out")  # fmt: skip
        part = part.base
    tensors = adapter.tensors(family_of(hf), config, weights.shapes, weights.read)
    with atomic_directory(args.target, needed_bytes=sum(tensor.nbytes for tensor in tensors.values())) as partial:
        adapter.write(partial, config, tensors, args.base_model)
        if memory := _memory(weights, config):
            write_memory(partial, memory)


def _memory(weights: "Weights", config: ModelConfig) -> dict[str, "np.ndarray"]:
    """Returns the weights of the model's memory by their names in `fam.safetensors`."""
    from famjax.nn.weights import parameter_shapes
    from famjax.pretrained.folder import memory_name
    from famjax.storage.arrays import leaves

    paths = [path for path in leaves(parameter_shapes(config)) if path.startswith(MEMORY)]
    return {memory_name(path): weights.read(path) for path in paths}


def _theirs(pair: "Pair", weights: "Weights", types: dict[str, str], lora: LoraConfig) -> "np.ndarray":
    """Returns one tensor of the exported folder, with LoRA merged into it, in its dtype there."""
    from famjax.nn.lora import merged, of_base

    ours = weights.read(pair.path, pair.layer)
    a = of_base(pair.path, "a")
    if a in weights.shapes and pair.layer is not None and lora.in_layer(pair.layer):
        # The sum is rounded once, to the dtype of the file.
        ours = ours.astype("float32")
        ours = merged(ours, weights.read(a, pair.layer), weights.read(of_base(pair.path, "b"), pair.layer), lora.scale)
    return pair.theirs(ours).astype(_dtype(pair, weights, types), copy=False)


def _dtype(pair: "Pair", weights: "Weights", types: dict[str, str]) -> Any:
    from famjax.pretrained.folder import DTYPES

    return DTYPES[types[pair.name]] if pair.name in types else weights.dtypes[pair.path]
