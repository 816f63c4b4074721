"""The tokenizer of a Hugging Face folder, built from all of its files as transformers 5.23 does.

Several files determine the tokenizer, in addition to `tokenizer.json` or instead of it:

    tokenizer.json            the model, its other steps (normalizer to decoder), and added tokens
    vocab.json, merges.txt    only the model, of Qwen's tokenizers
    tokenizer.model           only the model, of SentencePiece; converted to one of `tokenizers`
    tokenizer_config.json     the class, special tokens by name, tokens to add (`added_tokens_decoder`)
    special_tokens_map.json   special tokens by name; used if there is no `added_tokens_decoder`
    added_tokens.json         tokens to add; used if there is no `added_tokens_decoder`
    tokenizer_family.json     written by famjax: `model_type` and `tokenizer_class` of the folder's config.json

Some classes of transformers use only vocabulary, merges and post-processor of `tokenizer.json`, and have their own
other steps. The class depends on `tokenizer_class` and on the model's type. Versions of transformers before 5 used all
steps of the file and `add_bos_token`, and `tokenizer_config.json` took precedence on special tokens. This module
follows version 5.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from famjax.config import ConfigError
from famjax.config.checks import reason_of
from famjax.config.text import checked, json_of, text_of
from famjax.data.special_tokens import BY_ID, EXTRA, FLAGS, NAMED, OLD_EXTRA, check_ids, check_special_tokens

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG, FAMILY = "tokenizer_config.json", "tokenizer_family.json"
SPECIAL_TOKENS, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
TOKENIZER_MODEL = "tokenizer.model"
BESIDE = (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS, FAMILY)

_CHECKS = {
    VOCAB: check_ids, ADDED_TOKENS: check_ids, TOKENIZER_CONFIG: check_special_tokens,
    SPECIAL_TOKENS: check_special_tokens,
}  # fmt: skip

# Classes that use tokenizer.json unchanged.
_PLAIN = ("PreTrainedTokenizer", "PythonBackend", "TokenizersBackend")
LLAMA, GEMMA, QWEN2 = "LlamaTokenizer", "GemmaTokenizer", "Qwen2Tokenizer"
# The class that transformers uses for a model type.
_OF_TYPE = {
    "gemma": GEMMA, "gemma2": GEMMA, "gemma3": GEMMA, "gemma3_text": GEMMA, "qwen2": QWEN2, "qwen3": QWEN2,
    "mistral": _PLAIN[-1],
}  # fmt: skip
# Model types whose folders are known to name a wrong class.
_WRONG_CLASS = ("qwen2",)
# Default special tokens of a class.
_OF_CLASS: Mapping[str, Mapping[str, str]] = {
    LLAMA: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    GEMMA: {
        "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "mask_token": "<mask>",
    },
    QWEN2: {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}  # fmt: skip
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# Removes spaces before punctuation in decoded text, except of BPE models.
CLEAN_UP = "clean_up_tokenization_spaces"


class Built(NamedTuple):
    """A `tokenizers.Tokenizer`, its special tokens by name, such as `eos_token`, and all of its special tokens."""

    tokenizer: Any
    names: dict[str, str]
    specials: tuple[str, ...]


def build(kept: Mapping[str, bytes], place: str) -> Built:
    """Builds the tokenizer from the contents of these files by name; `place` is their path, for messages. Raises
    `ConfigError` if a file is broken, or has an unknown setting."""
    whole = _whole(kept[TOKENIZER_JSON], place) if TOKENIZER_JSON in kept else None
    config = _object(kept, TOKENIZER_CONFIG, place)
    name = class_of(config, _object(kept, FAMILY, place), b'"ByteLevel"' in kept.get(TOKENIZER_JSON, b""), place)
    pieces = None if TOKENIZER_JSON in kept or TOKENIZER_MODEL not in kept else _Pieces(kept[TOKENIZER_MODEL], place)
    names, extra, added = _declared(kept, config, pieces.marked if pieces else None, place)
    if pieces is not None:
        names = {**(pieces.names if name in _PLAIN else {}), **names}
    names = {**_OF_CLASS.get(name, {}), **names}
    padding = json.loads(kept.get(TOKENIZER_JSON) or b"{}").get("padding")
    if padding and "pad_token" not in names:
        names["pad_token"] = padding["pad_token"]
    names = {**dict.fromkeys(NAMED), **names}
    names = {key: token for key, token in names.items() if token is not None}
    if pieces is not None and name in _PLAIN:
        tokenizer = pieces.tokenizer(added)
    else:
        tokenizer = _bare(kept, config, name, _content(names.get("unk_token")), whole, pieces, place)
    forced = config.get(f"{CLEAN_UP}_for_bpe_even_though_it_will_corrupt_output")
    if config.get(CLEAN_UP) and (forced or type(tokenizer.model).__name__ != "BPE"):
        raise ConfigError(f"{place}: {CLEAN_UP} is set, so decoded text loses spaces; set it to false there")
    tokenizer.no_truncation()  # a setting of the program that saved it; transformers sets its own for every call
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
    _add(tokenizer, list(names.values()), extra, added)
    if name == QWEN2:
        tokenizer.add_tokens([_token(str(_content(token)), special=True) for token in [*names.values(), *extra]])
    texts = {key: str(_content(token)) for key, token in names.items()}
    _begin_and_end(tokenizer, config, texts, TOKENIZER_JSON in kept)
    return Built(tokenizer, texts, (*texts.values(), *(str(_content(token)) for token in extra)))


def same_steps(one: Mapping[str, bytes], other: Mapping[str, bytes], place: str) -> bool:
    """Whether these files give the same tokenizer, but for its added tokens. Raises `ConfigError` as `build`."""
    steps = [json.loads(build(kept, place).tokenizer.to_str()) | {"added_tokens": None} for kept in (one, other)]
    return bool(steps[0] == steps[1])


def class_of(config: Mapping[str, Any], family: Mapping[str, Any], is_byte_level: bool, place: str) -> str:
    """Returns the class that transformers uses for a folder, without the suffix `Fast`. Raises `ConfigError` if it is
    unknown."""
    said, kind = config.get("tokenizer_class") or family.get("tokenizer_class"), family.get("model_type")
    said = str(said).removesuffix("Fast") if said else None
    of_type = _OF_TYPE.get(str(kind))
    if said == LLAMA and is_byte_level and kind not in _WRONG_CLASS:
        return _PLAIN[-1]
    name = said or of_type or _PLAIN[-1]
    if of_type is not None and said is not None and (of_type == _PLAIN[-1] or kind in _WRONG_CLASS):
        name = of_type
    if name in _PLAIN:
        return _PLAIN[-1]
    if name not in _OF_CLASS:
        raise ConfigError(
            f"{place}: the tokenizer class {name!r} is not known; known are {', '.join(_OF_CLASS)} and "
            f"PreTrainedTokenizerFast, which uses {TOKENIZER_JSON} unchanged"
        )
    return name


def _bare(
    kept: Mapping[str, bytes], config: Mapping[str, Any], name: str, unknown: str | None, whole: Any,
    pieces: "_Pieces | None", place: str,
) -> Any:  # fmt: skip
    """Returns the tokenizer before special tokens are added: at most with those of tokenizer.json, `whole`."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    if whole is not None:
        if name not in _OF_CLASS:
            return whole
        model = json.loads(kept[TOKENIZER_JSON])["model"]
        if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
            raise ConfigError(f"{place}: the tokenizer class {name!r} has a BPE model, {TOKENIZER_JSON} has another")
        vocab, after = model["vocab"], whole.post_processor
        merges: Any = [tuple(one.split(" ")) if isinstance(one, str) else tuple(one) for one in model.get("merges", ())]
    elif pieces is not None and name != QWEN2:
        vocab, merges, after = pieces.vocab, pieces.merges(), None
    elif name == QWEN2 and VOCAB in kept:
        vocab, after = _object(kept, VOCAB, place), None
        lines = text_of(kept[MERGES], f"{place}/{MERGES}").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    else:
        raise ConfigError(
            f"{place} has no {TOKENIZER_JSON}, and the tokenizer class is {name!r}, which needs one; write it with "
            f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    settings: dict[str, Any] = {"fuse_unk": name != QWEN2, "byte_fallback": name != QWEN2}
    if name == GEMMA:
        settings["unk_token"] = str(unknown)
        if unknown not in vocab:
            raise ConfigError(f"{place}: the vocabulary has no {unknown!r}, which the class {name!r} needs")
    try:
        tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, **settings))
    except Exception as error:  # the library raises bare Exceptions
        raise ConfigError(
            f"{place}: merges and vocabulary of the tokenizer do not fit each other ({reason_of(error)}); are both "
            f"files complete?"
        ) from error
    _steps(tokenizer, name, config)
    if after is not None:
        tokenizer.post_processor = after
    return tokenizer


def _whole(content: bytes, place: str) -> Any:
    """Returns the tokenizer of a tokenizer.json alone."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exceptions
        file = place if place.endswith(".json") else f"{place.rstrip('/')}/{TOKENIZER_JSON}"
        raise ConfigError(
            f"{file} is not a Hugging Face tokenizer ({reason_of(error)}); is the file complete?"
        ) from error


class _Pieces:
    """A SentencePiece model, and its conversion to `tokenizers` as in transformers.

    Attributes:
      vocab: ids by piece.
      marked: control and user-defined pieces, which become added tokens.
      names: special tokens named in the model.
    """

    def __init__(self, content: bytes, place: str):
        from sentencepiece import sentencepiece_model_pb2

        format: Any = sentencepiece_model_pb2  # its classes are created at import time
        self._proto = format.ModelProto()
        try:
            self._proto.ParseFromString(content)
        except Exception as error:  # protobuf has no exception class for it
            raise ConfigError(f"{place} is not a SentencePiece model; is the file complete?") from error
        if not self._proto.pieces:
            raise ConfigError(f"{place} is not a SentencePiece model; is the file complete?")
        self.vocab = {piece.piece: n for n, piece in enumerate(self._proto.pieces)}
        control, user_defined = 3, 4
        self.marked = [
            _token(piece.piece, special=piece.type == control, normalized=False)
            for piece in self._proto.pieces
            if piece.type in (control, user_defined)
        ]
        spec = self._proto.trainer_spec
        has = {"bos_token": spec.bos_id >= 0, "eos_token": spec.eos_id >= 0, "unk_token": spec.unk_id >= 0}
        said = {"bos_token": spec.bos_piece, "eos_token": spec.eos_piece, "unk_token": spec.unk_piece}
        self.names = {key: said[key] for key in has if has[key]}

    def merges(self) -> list[tuple[str, str]]:
        """Returns every split of a piece into two pieces, sorted by the whole's id, then by the parts' lengths."""
        found = []
        for whole, n in self.vocab.items():
            cuts = [(whole[:at], whole[at:]) for at in range(1, len(whole))]
            cuts = [cut for cut in cuts if cut[0] in self.vocab and cut[1] in self.vocab]
            found += [(n, *cut) for cut in sorted(cuts, key=lambda cut: (self.vocab[cut[0]], self.vocab[cut[1]]))]
        found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])))
        return [(left, right) for _, left, right in found]

    def tokenizer(self, added: Mapping[int, Any]) -> Any:
        """Returns the tokenizer with SentencePiece's own normalizer and decoder; `added`: tokens to add, by id."""
        from tokenizers import Tokenizer, decoders, normalizers
        from tokenizers.models import BPE, Unigram

        spec, charsmap = self._proto.trainer_spec, self._proto.normalizer_spec.precompiled_charsmap
        if spec.model_type == 1:
            scores = [(piece.piece, piece.score) for piece in self._proto.pieces]
            tokenizer = Tokenizer(Unigram(scores, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback))
        else:
            merges, vocab = self.merges(), dict(self.vocab)
            at = {n: piece for piece, n in vocab.items()}
            for n, token in added.items():  # a placeholder is renamed to the token with its id
                if at.get(n) and at[n] != token.content and token.content not in vocab:
                    vocab[token.content] = vocab.pop(at[n])
            settings = {"unk_token": spec.unk_piece, "fuse_unk": True, "byte_fallback": spec.byte_fallback}
            tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, **settings))
        spaces = normalizers.Replace(" ", "▁")
        steps = [normalizers.Precompiled(charsmap), spaces] if charsmap else [spaces]
        tokenizer.normalizer = normalizers.Sequence(steps)
        shown = [decoders.ByteFallback(), decoders.Fuse()] if spec.byte_fallback else []
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *shown])
        return tokenizer


def _steps(tokenizer: Any, name: str, config: Mapping[str, Any]) -> None:
    """Sets the normalizer, pre-tokenizer and decoder of a class of transformers."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    space = config.get("add_prefix_space")
    if name == LLAMA:
        leading = space is None or bool(space)
        scheme = ("always" if config.get("legacy") else "first") if leading else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Sequence([
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            *([decoders.Strip(content=" ", left=1)] if leading else []),
        ])  # fmt: skip
    elif name == GEMMA:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=bool(space), use_regex=False),
        ])  # fmt: skip
        tokenizer.decoder = decoders.ByteLevel()


def _declared(
    kept: Mapping[str, bytes], config: Mapping[str, Any], marked: list[Any] | None, place: str
) -> tuple[dict[str, Any], list[Any], dict[int, Any]]:
    """Returns special tokens by name (None: there is none), those without a name, and tokens to add by id."""
    found = dict(config)
    if OLD_EXTRA in found and not found.get(EXTRA):
        found[EXTRA] = found.pop(OLD_EXTRA)
    own = {key: token for key, token in found.items() if _is_own(key) and isinstance(token, str)}
    if isinstance(found.get(EXTRA), dict):
        own |= found.pop(EXTRA)
    added: dict[int, Any] = {}
    if BY_ID in found:
        added |= {int(index): _token(**token) for index, token in found[BY_ID].items()}
    else:
        for key, value in _object(kept, SPECIAL_TOKENS, place).items():
            if key == EXTRA and isinstance(value, list):
                here = list(found.get(EXTRA) or [])
                found[key] = here + [token for token in value if token not in here]
            elif key == EXTRA and isinstance(value, dict):
                own |= value
            else:
                found[key] = {**value, "special": True} if isinstance(value, dict) else value
        special = {str(_content(found[key])) for key in NAMED if found.get(key)}
        special |= {str(_content(token)) for token in found.get(EXTRA) or ()}
        for text, index in _object(kept, ADDED_TOKENS, place).items():
            added[index] = _token(text, special=text in special, normalized=text not in special)
        for token in json.loads(kept.get(TOKENIZER_JSON, b"{}")).get("added_tokens", ()):
            added[token["id"]] = _token(**token)
    if marked is not None:
        found[OLD_EXTRA] = marked
    if OLD_EXTRA in found and EXTRA not in found:
        found[EXTRA] = found.pop(OLD_EXTRA)
    own |= {key: token for key, token in found.items() if _is_own(key) and isinstance(token, str)}
    by_text = {token.content: token for token in added.values()}
    names = {key: found[key] for key in NAMED if key in found}
    of_text = lambda token: by_text.get(str(_content(token)), token)
    names = {key: None if token is None else of_text(token) for key, token in names.items()}
    as_token = lambda token: _token(**token) if isinstance(token, dict) else token
    named = {key: as_token(token) for key, token in (names | own).items()}
    return named, [as_token(token) for token in found.get(EXTRA) or ()], added


def _is_own(key: str) -> bool:
    """Whether a key names a special token that is specific to this model."""
    return key.endswith("_token") and key not in NAMED and not key.startswith("add_")


def _add(tokenizer: Any, named: list[Any], extra: list[Any], added: Mapping[int, Any]) -> None:
    """Adds the tokens that the tokenizer lacks, in the order of transformers, which determines their ids."""
    has = tokenizer.get_added_tokens_decoder()
    known = {repr(token) for token in has.values()}
    wanted = [token for _, token in sorted(added.items()) if repr(token) not in known]
    texts = {token.content for token in has.values()} | {token.content for token in wanted}
    for token in (*named, *extra):
        if _content(token) not in texts and token not in wanted:
            wanted.append(token)
    names = {_content(token) for token in named}
    for n, token in enumerate(wanted):
        if isinstance(token, str):
            wanted[n] = _token(token, special=True)
        elif not token.special and token.content in names:
            token.special = True
    if wanted:
        tokenizer.add_tokens(wanted)


def _begin_and_end(tokenizer: Any, config: Mapping[str, Any], names: Mapping[str, str], from_file: bool) -> None:
    """Adds the post-processor for begin and end of text, unless tokenizer.json determines it."""
    from tokenizers.processors import TemplateProcessing

    if from_file and tokenizer.post_processor is not None:
        return
    puts = lambda key: not from_file and bool(config.get(f"add_{key}_token")) and f"{key}_token" in names
    first, last = ([names[f"{key}_token"]] if puts(key) else [] for key in ("bos", "eos"))
    special = [(token, tokenizer.token_to_id(token)) for token in (*first, *last)]
    tokenizer.post_processor = TemplateProcessing(single=[*first, "$A", *last], special_tokens=special)


def _token(content: str, special: bool = False, **says: Any) -> Any:
    from tokenizers import AddedToken

    flags = {name: says[name] for name in FLAGS if name in says}
    return AddedToken(content, special=special, **flags)


def _content(token: Any) -> Any:
    """Returns the text of a token that a file gives as a string or an object."""
    return token.get("content") if isinstance(token, dict) else getattr(token, "content", token)


def _object(kept: Mapping[str, bytes], name: str, place: str) -> dict[str, Any]:
    """Returns the JSON object in a file; {} if there is no file. Raises `ConfigError` if the file holds something else,
    or its tokens or ids are malformed."""
    file = f"{place}: {name} next to it"
    values = checked(json_of(kept.get(name) or b"{}", file), file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file} does not hold an object; is it the right file?")
    if name in _CHECKS:
        _CHECKS[name](values, file)
    return values


def family_file(config: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yields (name, content) of the file that keeps the tokenizer's settings of a config.json, if it has any."""
    says = {key: config[key] for key in ("model_type", "tokenizer_class") if config.get(key)}
    if says:
        yield FAMILY, json.dumps(says).encode()
