"""The tokenizer in a GGUF file's metadata, as the files of a folder: `tokenizer.json` and `tokenizer_config.json`.

    tokenizer.ggml.model  gpt2: pairs of bytes are merged in a given order, after a text is cut as `tokenizer.ggml.pre`
                          says; llama: as SentencePiece's BPE, whose order of merges follows from scores

`tokenizer.json` has all steps, so nothing depends on a class of transformers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from famjax.pretrained.gguf_metadata import Metadata

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"


class Cut(NamedTuple):
    """How a text is cut before pairs are merged.

    Attributes:
      pattern: pieces; None is that of GPT-2.
      digits: digits stand alone first.
      whole: a piece that is a token is not merged from its parts.
      begins: a text begins with `bos` unless the file says otherwise.
      composed: characters are composed first (NFC).
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
# By `tokenizer.ggml.pre`. Its `default` is llama.cpp's guess for files that do not say, so it is not among them.
CUTS: Mapping[str, Cut] = {
    "gpt-2": Cut(None), "smollm": Cut(None, digits=True), "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3,
    "qwen2": Cut(_WORDS % r"\p{N}", composed=True), "tekken": Cut(_TEKKEN, whole=True, begins=True),
}  # fmt: skip

# Kinds of tokens in `tokenizer.ggml.token_type`; those that are added tokens of transformers.
_CONTROL, _USER_DEFINED = 3, 4
# Special tokens: names of transformers, names here (`seperator` is what the format says).
_NAMED = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "cls": "cls", "mask": "mask",
}  # fmt: skip
# What llama.cpp takes for SentencePiece models whose file does not say.
_USUAL = {"bos": 1, "eos": 2, "unk": 0}
# Tokens that end a turn or a text, beside `eos`.
_ENDS = ("eot", "eom")
# Tokens that only a program uses that fills in the middle of a text.
_INFILL = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle")


class TokenizerFiles(NamedTuple):
    """What a folder of transformers has of a tokenizer.

    Attributes:
      contents: by file name, `generation_config.json` among them.
      ids: of tokens that begin, end and fill up texts, by the names that a config.json has for them.
      size: number of tokens.
    """

    contents: dict[str, bytes]
    ids: dict[str, Any]
    size: int


def tokenizer_files(metadata: Metadata, is_gemma: bool) -> TokenizerFiles:
    """The tokenizer of a file.

    Args:
      metadata: of the file, those under `tokenizer.`; each is read or refused.
      is_gemma: merges follow the order of tokens, whatever their scores, and no space is put before a text.

    Raises:
      ConfigError: a kind of tokenizer that is not known, or one that is incomplete.
    """
    says = _Tokenizer(metadata, is_gemma)
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        **{f"{name}_token": says.tokens[n] for name, n in says.named.items()},
    }  # fmt: skip
    if template := _chat_template(metadata):
        described["chat_template"] = template
    made = says.byte_level() if says.kind == "gpt2" else says.sentencepiece()
    for name in _INFILL:
        metadata(f"ggml.{name}_token_id")
    metadata.refuse_unread()
    write = lambda values: json.dumps(values, ensure_ascii=False).encode()
    ids = says.generation()
    contents = {
        TOKENIZER_JSON: write(made), TOKENIZER_CONFIG: write(described), GENERATION_CONFIG: write(ids)
    }  # fmt: skip
    return TokenizerFiles(contents, ids, len(says.tokens))


def _chat_template(metadata: Metadata) -> Any:
    """One template, or several by name, as `tokenizer_config.json` has them."""
    metadata.texts("chat_templates")  # the names of those that follow
    others = metadata.under("chat_template.")
    named = {"default": metadata.text("chat_template")} | {key: others.text(key) for key in others.keys}
    found = {name: template for name, template in named.items() if template}
    if list(found) == ["default"]:
        return found["default"]
    return [{"name": name, "template": template} for name, template in found.items()]


class _Tokenizer:
    """What all kinds have.

    Attributes:
      kind: gpt2 or llama.
      tokens: texts by id.
      types: kinds of tokens by id.
      named: ids of special tokens by their names in transformers.
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
            raise self._says.refused("token_type", "has not a number for each token")
        self.named = {name: n for name, ours in _NAMED.items() if (n := self._id(ours, name)) is not None}
        self._ends = [n for name in _ENDS if (n := self._id(name)) is not None]
        # Neither changes a token where it has this value, which is what all files of these kinds have.
        self._says.must_be("remove_extra_whitespaces", False)
        self._says.must_be("escape_whitespaces", True)
        self._says.must_be("add_sep_token", False)

    def generation(self) -> dict[str, Any]:
        """`generation_config.json`: tokens by id; of several that end a text, all."""
        ends = list(dict.fromkeys([*([self.named["eos"]] if "eos" in self.named else []), *self._ends]))
        ids: dict[str, Any] = {f"{name}_token_id": self.named[name] for name in ("bos", "pad") if name in self.named}
        return ids | ({"eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else {})

    def byte_level(self) -> dict[str, Any]:
        """`tokenizer.json` of a byte-level BPE."""
        pre = self._says.text("pre")
        if pre is None or pre not in CUTS:
            what = "does not say how a text is cut" if pre in (None, "default") else f"is {pre!r}"
            raise self._says.refused("pre", f"{what}; known are {', '.join(CUTS)}")
        self._says.must_be("add_space_prefix", False)
        self._says("scores")  # of no use with merges
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
        """`tokenizer.json` of a BPE over characters, with bytes for what no token has."""
        self._says("pre")  # llama.cpp cuts nothing here, whatever it says
        leading = self._says.flag("add_space_prefix", not self._is_gemma)
        # Runs of spaces are written with spaces here, and with the mark of a space in a tokenizer.json.
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
        """The id of a special token."""
        n = self._says(f"{name}_token_id")
        if n is None and self.kind == "llama" and usual in _USUAL:
            n = _USUAL[usual]
        if n is not None and not (isinstance(n, int) and 0 <= n < len(self.tokens)):
            raise self._says.refused(f"{name}_token_id", f"is {n}, of {len(self.tokens)} tokens")
        return n

    def _merges(self, tokens: Sequence[str]) -> list[list[str]]:
        """Pairs in their order: the file's, else those that scores imply."""
        given, scores = self._says.texts("merges"), self._says.numbers("scores")
        if given is not None:
            # The first character may be the space itself in an odd vocabulary; the next space parts the two.
            pairs = [[merge[: (at := merge.find(" ", 1))], merge[at + 1 :]] for merge in given if " " in merge[1:]]
            if len(pairs) != len(given):
                raise self._says.refused("merges", "has a merge that is no pair")
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
        # A run of spaces that was respelled is merged from shorter ones.
        added = [
            {"id": n, "content": token, "special": kind == _CONTROL, "normalized": False, "single_word": False,
             "lstrip": False, "rstrip": False}
            for n, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED) and token in model["vocab"]
        ]  # fmt: skip
        ends = {"bos": begins, "eos": False}
        around = {
            name: self.tokens[self.named[name]]
            for name, usual in ends.items()
            if self._says.flag(f"add_{name}_token", usual) and name in self.named
        }
        return {
            "version": "1.0", "added_tokens": added, **steps, "post_processor": self._around(around), "model": model,
        }  # fmt: skip

    def _around(self, around: Mapping[str, str]) -> dict[str, Any]:
        """What stands around a text."""
        special = lambda name: [{"SpecialToken": {"id": around[name], "type_id": 0}}] if name in around else []
        text = lambda which, kind: {"Sequence": {"id": which, "type_id": kind}}
        single = [*special("bos"), text("A", 0), *special("eos")]
        ids = {token: {"id": token, "ids": [self.named[name]], "tokens": [token]} for name, token in around.items()}
        pair = [*single, *special("bos"), text("B", 1), *special("eos")]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}


def _byte_level_step(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def merges_of(scores: Mapping[str, float]) -> list[list[str]]:
    """Every way to cut a token in two others; better tokens first, of one token the longest left part first.

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
