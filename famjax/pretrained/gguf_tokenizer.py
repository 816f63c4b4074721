"""The tokenizer in a GGUF file's metadata, as the files of a folder of transformers."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from famjax.config import ConfigError
from famjax.data.tokenizer_folder import TOKENIZER_CONFIG, TOKENIZER_JSON, TOKENIZER_MODEL

# In front of all keys; those of a file come here without it.
TOKENIZER = "tokenizer."

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
# How a text is cut before pairs are merged, by `tokenizer.ggml.pre`: whether digits stand alone, then a pattern; None
# is GPT-2's, which ByteLevel has itself.
_CUTS: Mapping[str, tuple[bool, str | None]] = {
    "default": (False, None), "gpt-2": (False, None), "gpt2": (False, None), "smollm": (True, None),
    "llama-bpe": (False, _LLAMA3_WORDS), "llama3": (False, _LLAMA3_WORDS), "llama-v3": (False, _LLAMA3_WORDS),
    "qwen2": (False, _QWEN2_WORDS),
}  # fmt: skip
# Whole words that are in the vocabulary are not merged from their parts.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")
# Kinds of tokens, the same numbers in GGUF and SentencePiece.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_NAMED = ("bos", "eos", "unknown", "seperator", "padding", "mask")
_THEIRS = {"unknown": "unk", "seperator": "sep", "padding": "pad"}
_KEYS = frozenset({
    "ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.merges", "ggml.scores", "ggml.add_bos_token",
    "ggml.add_eos_token", "ggml.add_space_prefix", "chat_template", *(f"ggml.{name}_token_id" for name in _NAMED),
})  # fmt: skip
# Tokens for filling in the middle, for ends of turns (`config.json` has them), and other programs' copies.
_NO_EFFECT = (
    "ggml.fim_", "ggml.prefix_token_id", "ggml.suffix_token_id", "ggml.middle_token_id", "ggml.eot_token_id",
    "ggml.eom_token_id", "ggml.token_type_count", "huggingface.json", "chat_templates", "chat_template.",
)  # fmt: skip


def tokenizer_files(says: Mapping[str, Any], config: Mapping[str, Any], place: str) -> dict[str, bytes]:
    """Contents by file name.

    Args:
      says: the metadata behind `tokenizer.`.
      config: the model's config.json.
      place: where they are, for messages.

    Raises:
      ConfigError: a kind of tokenizer that is not known here, or one that is incomplete.
    """
    unknown = [name for name in says if name not in _KEYS and not name.startswith(_NO_EFFECT)]
    # SentencePiece's own normalisation: extra spaces are kept, and no table of characters is applied.
    harmless = {"ggml.remove_extra_whitespaces": False}
    unknown = [name for name in unknown if name not in harmless or says[name] != harmless[name]]
    if unknown:
        names = ", ".join(f"{TOKENIZER}{name}" for name in unknown)
        raise ConfigError(
            f"{place}: the metadata {names} are not known here and may change tokens; take a file without"
        )
    kind, tokens = says.get("ggml.model"), says.get("ggml.tokens")
    if kind not in ("gpt2", "llama"):
        raise ConfigError(f"{place}: the tokenizer is of the kind {kind!r}; known are gpt2 and llama")
    if not isinstance(tokens, list) or len(tokens) != config["vocab_size"]:
        has = len(tokens) if isinstance(tokens, list) else 0
        raise ConfigError(
            f"{place}: the tokenizer has {has} tokens, the model {config['vocab_size']}; is the file whole?"
        )
    kinds = says.get("ggml.token_type", [_NORMAL] * len(tokens))
    named = {
        f"{_THEIRS.get(name, name)}_token": tokens[int(says[f"ggml.{name}_token_id"])]
        for name in _NAMED
        if f"ggml.{name}_token_id" in says
    }
    begins = {f"add_{end}_token": says[key] for end in ("bos", "eos") if (key := f"ggml.add_{end}_token") in says}
    described: dict[str, Any] = {**named, **begins}
    if "chat_template" in says:
        described["chat_template"] = says["chat_template"]
    if kind == "gpt2":
        made = {TOKENIZER_JSON: _byte_level(says, tokens, kinds, named, place)}
        described["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        made = {TOKENIZER_MODEL: _sentencepiece(says, tokens, kinds, place)}
        is_gemma = str(config["model_type"]).startswith("gemma")
        described["tokenizer_class"] = "GemmaTokenizer" if is_gemma else "LlamaTokenizer"
        described["add_prefix_space"] = bool(says.get("ggml.add_space_prefix", not is_gemma))
        described["legacy"] = False
        # What llama.cpp does where the file is silent.
        described.setdefault("add_bos_token", True)
    return made | {TOKENIZER_CONFIG: json.dumps(described, ensure_ascii=False).encode()}


def _byte_level(
    says: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], named: Mapping[str, str], place: str
) -> bytes:
    """tokenizer.json of a byte-level BPE."""
    pre = str(says.get("ggml.pre", "default"))
    if pre not in _CUTS:
        raise ConfigError(f"{place}: {TOKENIZER}ggml.pre is {pre!r}; known are {', '.join(_CUTS)}")
    if "ggml.merges" not in says:
        raise ConfigError(f"{place} has no {TOKENIZER}ggml.merges in its metadata; is the file whole?")
    digits, words = _CUTS[pre]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words is None}
    steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if digits else []
    steps += [{"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}] if words else []
    whole = {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": kind == _CONTROL}
            for n, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        "post_processor": _ends(says, tokens, named),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "vocab": {token: n for n, token in enumerate(tokens)}, "merges": says["ggml.merges"],
            "ignore_merges": pre in _WHOLE_WORDS,
        },
    }  # fmt: skip
    return json.dumps(whole, ensure_ascii=False).encode()


def _ends(says: Mapping[str, Any], tokens: Sequence[str], named: Mapping[str, str]) -> dict[str, Any]:
    """What is put around a text: nothing unless the file says so."""
    around = [named.get(f"{end}_token") if says.get(f"ggml.add_{end}_token") else None for end in ("bos", "eos")]
    special = lambda token: [{"SpecialToken": {"id": token, "type_id": 0}}] if token else []
    text = lambda name, kind: [{"Sequence": {"id": name, "type_id": kind}}]
    first, last = special(around[0]), special(around[1])
    ids = {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for token in around if token}
    return {
        "type": "TemplateProcessing", "single": [*first, *text("A", 0), *last],
        "pair": [*first, *text("A", 0), *last, *first, *text("B", 1), *last], "special_tokens": ids,
    }  # fmt: skip


# --- SentencePiece --------------------------------------------------------------------------------


def _sentencepiece(says: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], place: str) -> bytes:
    """A SentencePiece model: BPE by scores with bytes to fall back on, which is what llama.cpp computes."""
    scores = says.get("ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ConfigError(f"{place}: {TOKENIZER}ggml.scores has not a number for each token; is the file whole?")
    pieces = b"".join(
        _field(1, _field(1, token.encode()) + _float(2, score) + _number(3, kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    ids = {name: int(says.get(f"ggml.{theirs}_token_id", -1)) for name, theirs in
           (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}  # fmt: skip
    trainer = _number(3, 2) + _number(35, _BYTE in kinds)
    for at, name in enumerate(("unk", "bos", "eos", "pad")):
        piece = tokens[ids[name]].encode() if ids[name] >= 0 else b""
        trainer += _number(40 + at, ids[name]) + (_field(45 + at, piece) if piece else b"")
    normalizer = _field(1, b"identity") + _number(3, bool(says.get("ggml.add_space_prefix", True))) + _number(4, False)
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _number(field: int, value: int) -> bytes:
    """A whole number in protobuf's encoding; negative ones have 64 bits."""
    return _varint(field << 3) + _varint(int(value) % (1 << 64))


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes(_sevens(value))


def _sevens(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value
