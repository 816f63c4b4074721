"""Converts the tokenizer in a GGUF file's metadata to `tokenizer.json` and `tokenizer_config.json`.

    tokenizer.ggml.model  gpt2: byte-level BPE with given merges, after pre-tokenization by `tokenizer.ggml.pre`;
                          llama: SentencePiece's BPE, whose merges follow from scores

`tokenizer.json` has all steps, so the result does not depend on transformers' tokenizer classes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from famjax.pretrained.gguf_metadata import Metadata

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"


class Cut(NamedTuple):
    """Settings of pre-tokenization, which splits a text into pieces before pairs are merged.

    Attributes:
      pattern: regular expression of pieces; None: GPT-2's.
      digits: whether digits are split off first.
      whole: whether a piece that is a token is used directly, not merged from its parts.
      begins: whether a text begins with `bos` if the file does not specify it.
      composed: whether characters are composed first (NFC).
    """

    pattern: str | None
    digits: bool = False
    whole: bool = False
    begins: bool = False
    composed: bool = False


_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = Cut(_WORDS % r"\p{N}{1,3}", whole=True, begins=True)
# By `tokenizer.ggml.pre`. Its value `default` is not supported: llama.cpp uses it as a guess for files without the key.
CUTS: Mapping[str, Cut] = {
    "gpt-2": Cut(None), "smollm": Cut(None, digits=True), "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3,
    "qwen2": Cut(_WORDS % r"\p{N}", composed=True), "tekken": Cut(_TEKKEN, whole=True, begins=True),
}  # fmt: skip

# Token types in `tokenizer.ggml.token_type` that are added tokens in transformers.
_CONTROL, _USER_DEFINED = 3, 4
# Special tokens: their names in transformers and in GGUF (`seperator` is the format's spelling).
_NAMED = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
# llama.cpp's defaults for SentencePiece models.
_USUAL = {"bos": 1, "eos": 2, "unk": 0}
# Tokens that end a turn or a text, in addition to `eos`: by key, and by name, as llama.cpp finds them, since most files
# lack these keys.
_ENDS = ("eot", "eom")
_NAMED_ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>",
)  # fmt: skip
# Tokens for infilling, which are not used here.
_INFILL = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle")


class TokenizerFiles(NamedTuple):
    """The tokenizer files of a transformers folder.

    Attributes:
      contents: contents by file name, including `generation_config.json`.
      ids: ids of special tokens, by their keys in config.json.
      size: number of tokens.
    """

    contents: dict[str, bytes]
    ids: dict[str, Any]
    size: int


def tokenizer_files(metadata: Metadata, is_gemma: bool) -> TokenizerFiles:
    """Returns the tokenizer of a GGUF file as files of a folder.

    Args:
      metadata: the metadata under `tokenizer.`; every key is read or rejected.
      is_gemma: whether the model is a Gemma: merges follow the order of tokens, not their scores, and by default no
        space is inserted before a text.

    Raises:
      ConfigError: the tokenizer is of an unknown kind, incomplete, or has an unknown setting.
    """
    says = _Tokenizer(metadata, is_gemma)
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        **{f"{name}_token": says.tokens[n] for name, n in says.named.items()},
    }  # fmt: skip
    if template := _chat_template(metadata):
        described["chat_template"] = template
    tokenizer = says.byte_level() if says.kind == "gpt2" else says.sentencepiece()
    for name in _INFILL:
        metadata(f"ggml.{name}_token_id")
    metadata.refuse_unread()
    write = lambda values: json.dumps(values, ensure_ascii=False).encode()
    ids = says.generation()
    contents = {TOKENIZER_JSON: write(tokenizer), TOKENIZER_CONFIG: write(described), GENERATION_CONFIG: write(ids)}
    return TokenizerFiles(contents, ids, len(says.tokens))


def _chat_template(metadata: Metadata) -> Any:
    """Returns the chat template, or a list of named ones, in the format of `tokenizer_config.json`; [] if none."""
    metadata.texts("chat_templates")  # the names of those that follow
    others = metadata.under("chat_template.")
    named = {"default": metadata.text("chat_template")} | {key: others.text(key) for key in others.keys}
    found = {name: template for name, template in named.items() if template}
    if list(found) == ["default"]:
        return found["default"]
    return [{"name": name, "template": template} for name, template in found.items()]


class _Tokenizer:
    """Reads a tokenizer from metadata.

    Attributes:
      kind: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
      tokens: strings by id.
      types: token types by id.
      named: ids of special tokens, by name in transformers.
    """

    def __init__(self, metadata: Metadata, is_gemma: bool):
        self._says, self._is_gemma = metadata.under("ggml."), is_gemma
        self.kind = self._says.text("model")
        if self.kind not in ("gpt2", "llama"):
            raise self._says.refused("model", f"is {self.kind!r}; known are gpt2 and llama")
        self.tokens = self._says.texts("tokens") or []
        if not self.tokens:
            raise self._says.refused("tokens", "has no tokens")
        self.types = self._says.numbers("token_type") or [1] * len(self.tokens)
        if len(self.types) != len(self.tokens):
            raise self._says.refused("token_type", "does not have a number for each token")
        self.named = {name: n for name, ours in _NAMED.items() if (n := self._id(ours, name)) is not None}
        self._ends = [n for name in _ENDS if (n := self._id(name)) is not None]
        self._ends += [n for n, token in enumerate(self.tokens) if token in _NAMED_ENDS]
        # These keys have no effect with these values, which all files of these kinds have.
        self._says.must_be("remove_extra_whitespaces", False)
        self._says.must_be("escape_whitespaces", True)
        self._says.must_be("add_sep_token", False)

    def generation(self) -> dict[str, Any]:
        """Returns the content of `generation_config.json`: ids of `bos`, `pad`, and all tokens that end a text."""
        ends = list(dict.fromkeys([*([self.named["eos"]] if "eos" in self.named else []), *self._ends]))
        ids: dict[str, Any] = {f"{name}_token_id": self.named[name] for name in ("bos", "pad") if name in self.named}
        return ids | ({"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {})

    def byte_level(self) -> dict[str, Any]:
        """Returns the content of `tokenizer.json` of a byte-level BPE."""
        pre = self._says.text("pre")
        if pre is None or pre not in CUTS:
            what = "does not name a pre-tokenization" if pre in (None, "default") else f"is {pre!r}"
            raise self._says.refused("pre", f"{what}; known are {', '.join(CUTS)}")
        self._says.must_be("add_space_prefix", False)
        self._says("scores")  # not used if there are merges
        cut = CUTS[pre]
        steps: list[dict[str, Any]] = []
        if cut.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if cut.pattern is not None:
            split = {"type": "Split", "pattern": {"Regex": cut.pattern}, "behavior": "Isolated", "invert": False}
            steps.append(split)
        steps.append(_byte_level_step(use_regex=cut.pattern is None))
        return self._whole(
            begins=cut.begins,
            normalizer={"type": "NFC"} if cut.composed else None,
            pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
            decoder=_byte_level_step(use_regex=True),
            model=self._model(self.tokens, self._merges(self.tokens), ignore_merges=cut.whole),
        )

    def sentencepiece(self) -> dict[str, Any]:
        """Returns the content of `tokenizer.json` of a BPE over characters, with byte tokens for unknown characters."""
        self._says("pre")  # llama.cpp ignores it here
        leading = self._says.flag("add_space_prefix", not self._is_gemma)
        # Tokens of spaces only are spelled with spaces in GGUF, with ▁ in a tokenizer.json.
        respelled = lambda token: "▁" * len(token) if self._is_gemma and not token.strip(" ") else token
        tokens = [respelled(token) for token in self.tokens]
        scheme = "first" if leading else "never"
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
        ]  # fmt: skip
        if leading:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        unknown = tokens[self.named["unk"]] if "unk" in self.named else None
        merges = self._merges(tokens)
        return self._whole(
            begins=True,
            normalizer=None,
            pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
            decoder={"type": "Sequence", "decoders": decoders},
            model=self._model(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
        )

    # --- parts ------------------------------------------------------------------------------------

    def _id(self, name: str, usual: str = "") -> int | None:
        """Returns the id of a special token, or None; `usual`: its key in `_USUAL`, a default for SentencePiece."""
        n = self._says(f"{name}_token_id")
        if n is None and self.kind == "llama" and usual in _USUAL:
            n = _USUAL[usual]
        if n is not None and not (type(n) is int and 0 <= n < len(self.tokens)):
            raise self._says.refused(f"{name}_token_id", f"is {n}, of {len(self.tokens)} tokens")
        return n

    def _merges(self, tokens: Sequence[str]) -> list[list[str]]:
        """Returns the merges (left, right) in order: the file's, or those implied by scores."""
        given, scores = self._says.texts("merges"), self._says.numbers("scores")
        if given is not None:
            # The left part may itself be a space; the next space is the separator.
            pairs = [[merge[: (at := merge.find(" ", 1))], merge[at + 1 :]] for merge in given if " " in merge[1:]]
            if len(pairs) != len(given):
                raise self._says.refused("merges", "has a merge that is not a pair")
            known = set(tokens)
            for left, right in pairs:
                if left not in known or right not in known or left + right not in known:
                    raise self._says.refused("merges", f"has {left + ' ' + right!r}, which is not of its tokens")
            return pairs
        if self.kind == "gpt2":
            raise self._says.refused("merges", "is missing")
        if self._is_gemma:
            scores = [-n for n in range(len(tokens))]
        if not scores or len(scores) != len(tokens) or len(set(scores)) < 2:
            raise self._says.refused("scores", "has no order of tokens")
        return merges_of(dict(zip(tokens, scores, strict=True)))

    def _model(self, tokens: Sequence[str], merges: list[list[str]], **settings: Any) -> dict[str, Any]:
        vocab = {token: n for n, token in enumerate(tokens)}
        if len(vocab) != len(tokens):
            twice = next(token for n, token in enumerate(tokens) if vocab[token] != n)
            raise self._says.refused("tokens", f"has {twice!r} twice")
        return {"type": "BPE", "vocab": vocab, "merges": merges, **settings}

    def _whole(self, begins: bool, model: dict[str, Any], **steps: Any) -> dict[str, Any]:
        # A respelled run of spaces is not added; it is merged from shorter runs.
        added = [
            {"id": n, "content": token, "special": kind == _CONTROL, "normalized": False, "single_word": False,
             "lstrip": False, "rstrip": False}
            for n, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED) and token in model["vocab"]
        ]  # fmt: skip
        ends = {"bos": begins, "eos": False}
        added_to_all = [name for name, usual in ends.items() if self._says.flag(f"add_{name}_token", usual)]
        for name in added_to_all:
            if name not in self.named:
                raise self._says.refused(f"{name}_token_id", "is missing, but every text gets this token; add the key")
        around = {name: self.tokens[self.named[name]] for name in added_to_all}
        return {
            "version": "1.0", "added_tokens": added, **steps, "post_processor": self._around(around), "model": model,
        }  # fmt: skip

    def _around(self, around: Mapping[str, str]) -> dict[str, Any]:
        """Returns the post-processor that adds special tokens around a text; `around`: token by `bos` and `eos`."""
        special = lambda name: [{"SpecialToken": {"id": around[name], "type_id": 0}}] if name in around else []
        text = lambda which, kind: {"Sequence": {"id": which, "type_id": kind}}
        single = [*special("bos"), text("A", 0), *special("eos")]
        ids = {token: {"id": token, "ids": [self.named[name]], "tokens": [token]} for name, token in around.items()}
        pair = [*single, *special("bos"), text("B", 1), *special("eos")]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}


def _byte_level_step(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def merges_of(scores: Mapping[str, float]) -> list[list[str]]:
    """Returns every split of a token into two tokens, by descending score, then by descending length of the left part.

    "ab" with score 5 and "abc" with score 7 give [["ab", "c"], ["a", "bc"]] for "abc" (if "bc" is a token), then
    [["a", "b"]].
    """
    found = [
        (score, at, len(whole) - at, whole[:at], whole[at:])
        for whole, score in scores.items()
        for at in range(1, len(whole))
        if whole[:at] in scores and whole[at:] in scores
    ]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [[left, right] for *_, left, right in found]
