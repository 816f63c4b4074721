"""Tiny GGUF files, written with the library's writer as llama.cpp's converter writes them.

The converter's rules are implemented here independently, in its direction: rows of heads are interleaved for `llama`,
Gemma's norms get their 1, Llama 3's scaling becomes a tensor.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.pretrained.theirs import Case, build

# Maps the name of a tensor and its array to the type in which it is stored.
Kind = Callable[[str, np.ndarray], gguf.GGMLQuantizationType]
F32, F16, BF16 = (getattr(gguf.GGMLQuantizationType, name) for name in ("F32", "F16", "BF16"))
ARCHITECTURES = {
    "Llama": "llama", "Mistral": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3", "Gemma": "gemma", "Gemma2": "gemma2",
    "Gemma3Text": "gemma3",
}  # fmt: skip


def all_of(kind: gguf.GGMLQuantizationType) -> Kind:
    """Matrices in one type, vectors in float32, as the converter stores them."""
    return lambda name, array: kind if array.ndim > 1 else F32


_IN_FLOAT32 = all_of(F32)


def write(
    path: Path, case: Case, kind: Kind = _IN_FLOAT32, change: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None, tensors: Callable[[dict[str, np.ndarray]], object] | None = None,
    model: Any = None,
) -> Any:  # fmt: skip
    """Writes a file of the case's model; returns the model with the file's values, so after quantisation.

    Args:
      path: of the file.
      case: of `theirs.CASES`.
      kind: see `Kind`.
      change: metadata to add or replace; None removes a key.
      tokenizer: its metadata, after `tokenizer.`; by default characters.
      tensors: changes the file's tensors, by their names in the file.
      model: of transformers, if not that of the case.
    """
    model = model or build(case)
    settings, arch = model.config, ARCHITECTURES[case.family]
    stored = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and settings.tie_word_embeddings:
            continue
        ours = _name(name, arch, settings.num_hidden_layers)
        stored[ours] = _as_stored(ours, weight.numpy().copy(), arch, settings)
    if (rope := dict(settings.rope_parameters)).get("rope_type") == "llama3":
        stored["rope_freqs.weight"] = _factors(rope, settings.head_dim)
    if tensors is not None:
        tensors(stored)
    metadata = _metadata(case, settings, arch) | (change or {})
    metadata |= {f"tokenizer.{k}": v for k, v in (tokenizer or characters(settings.vocab_size, arch)).items()}
    write_file(path, metadata, stored, kind)
    _round(model, stored, kind, arch)
    return model


def write_file(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], kind: Kind) -> None:
    """Writes a file with these, through the library's writer."""
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]))
    for key, value in metadata.items():
        if value is not None and key != "general.architecture":
            _add(writer, key, value)
    for name, array in tensors.items():
        quantised = gguf.quants.quantize(np.ascontiguousarray(array), kind(name, array))
        writer.add_tensor(name, quantised, raw_dtype=kind(name, array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _name(theirs: str, arch: str, layers: int) -> str:
    """Returns the library's name of a tensor of transformers."""
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    found = gguf.get_tensor_name_map(number, layers).get_name(theirs, try_suffixes=(".weight", ".bias"))
    assert found is not None, theirs
    return str(found)


def _as_stored(name: str, array: np.ndarray, arch: str, settings: Any) -> np.ndarray:
    if arch == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = settings.num_attention_heads if ".attn_q." in name else settings.num_key_value_heads
        halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
        array = np.swapaxes(halves, 1, 2).reshape(array.shape)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        array = array + np.float32(1)
    return array


def _factors(rope: Mapping[str, Any], H: int) -> np.ndarray:
    """Returns Llama 3's divisors of the frequencies, one after the other."""
    found = []
    for n in range(H // 2):
        length = 2 * math.pi * rope["rope_theta"] ** (2 * n / H)
        low, high = (rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"] for end in ("low", "high"))
        if length < high:
            found.append(1.0)
        elif length > low:
            found.append(rope["factor"])
        else:
            smooth = rope["original_max_position_embeddings"] / length - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, np.float32)


def _metadata(case: Case, settings: Any, arch: str) -> dict[str, Any]:
    """Returns the converter's metadata for a config.json."""
    rope = dict(settings.rope_parameters)
    full = rope.get("full_attention", rope)
    says: dict[str, Any] = {
        "general.architecture": arch, "general.type": "model", "general.name": "tiny", "general.file_type": 0,
        f"{arch}.block_count": settings.num_hidden_layers, f"{arch}.context_length": 64,
        f"{arch}.embedding_length": settings.hidden_size, f"{arch}.feed_forward_length": settings.intermediate_size,
        f"{arch}.attention.head_count": settings.num_attention_heads,
        f"{arch}.attention.head_count_kv": settings.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": float(settings.rms_norm_eps),
        f"{arch}.rope.freq_base": float(full["rope_theta"]),
        f"{arch}.vocab_size": settings.vocab_size,
    }  # fmt: skip
    H = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    if H * settings.num_attention_heads != settings.hidden_size:
        says |= {f"{arch}.attention.key_length": H, f"{arch}.attention.value_length": H}
    if full["rope_type"] == "linear":
        says |= {f"{arch}.rope.scaling.type": "linear", f"{arch}.rope.scaling.factor": float(full["factor"])}
    if full["rope_type"] == "llama3":
        says[f"{arch}.rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
    if case.family in ("Gemma2", "Gemma3Text", "Mistral") and settings.sliding_window:
        says[f"{arch}.attention.sliding_window"] = settings.sliding_window
    if case.family == "Gemma2":
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            says[f"{arch}.{cap}"] = getattr(settings, cap)
    if case.family == "Gemma3Text":
        says[f"{arch}.rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
        says[f"{arch}.attention.sliding_window_pattern"] = [t == "sliding_attention" for t in settings.layer_types]
    return says


def _round(model: Any, stored: Mapping[str, np.ndarray], kind: Kind, arch: str) -> None:
    """Sets the model's weights to the values in its file."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            ours = _name(name, arch, model.config.num_hidden_layers)
            if ours not in stored or kind(ours, stored[ours]) == F32:
                continue
            shape, type_of = weight.shape, kind(ours, stored[ours])
            heads = _heads(ours, model.config) if arch == "llama" else 0
            found = gguf.quants.dequantize(gguf.quants.quantize(stored[ours], type_of), type_of)
            if heads:
                pairs = found.reshape(heads, shape[0] // heads // 2, 2, -1)
                found = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(shape)
            weight.copy_(torch.as_tensor(found))


def _heads(name: str, settings: Any) -> int:
    counts = {".attn_q.": settings.num_attention_heads, ".attn_k.": settings.num_key_value_heads}
    return next((count for part, count in counts.items() if part in name), 0)


# --- tokenizers -----------------------------------------------------------------------------------


def characters(vocab_size: int, arch: str = "llama") -> dict[str, Any]:
    """Returns metadata of a SentencePiece-like tokenizer: special tokens, then characters."""
    tokens = ["<unk>", "<s>", "</s>", "▁", *(chr(97 + n) for n in range(vocab_size - 4))]
    return {
        "ggml.model": "llama", "ggml.pre": "default", "ggml.tokens": tokens,
        "ggml.scores": [-float(n) for n in range(vocab_size)], "ggml.token_type": [2, 3, 3, *[1] * (vocab_size - 3)],
        "ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0, "ggml.add_bos_token": True,
        "ggml.add_space_prefix": not arch.startswith("gemma"),
    }  # fmt: skip


def of_tokenizer(tokenizer: Any, kind: str, special: Sequence[str], **more: Any) -> dict[str, Any]:
    """Returns metadata of a tokenizer of the library `tokenizers`: tokens in order; merges of gpt2, scores of llama."""
    import json

    model = json.loads(tokenizer.to_str())["model"]
    ids = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(ids, key=ids.__getitem__)
    is_byte = lambda token: kind == "llama" and len(token) == 6 and token.startswith("<0x")
    says: dict[str, Any] = {
        "ggml.model": kind, "ggml.tokens": tokens,
        "ggml.token_type": [3 if t in special else 2 if t == "<unk>" else 6 if is_byte(t) else 1 for t in tokens],
    }  # fmt: skip
    if kind == "gpt2":
        says["ggml.merges"] = [" ".join(merge) for merge in model["merges"]]
    else:
        rank = {"".join(merge): -float(n) for n, merge in reversed(list(enumerate(model["merges"])))}
        says["ggml.scores"] = [rank.get(token, -1e6) for token in tokens]
    return says | {f"ggml.{key}": value for key, value in more.items()}
