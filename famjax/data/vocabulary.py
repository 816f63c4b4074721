"""Vocabularies, which convert text to token ids and back: bytes, SentencePiece, Hugging Face `tokenizer.json`.
Those of synthetic tasks are in `symbols.py`."""

import bisect
import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from famjax.config import ConfigError
from famjax.data import files
from famjax.data.symbols import SYMBOLS_JSON, SymbolVocabulary
from famjax.data.tokenizer_folder import (
    BESIDE,
    FAMILY,
    MERGES,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    VOCAB,
    build,
    family_file,
)

BYTE_VOCABULARY_SIZE = 256

# Names of a vocabulary's files in a model directory. If there is none of them, tokens are bytes.
# Bytes with shifted ids, as JSON: {"offset": 3, "eos": 1, "size": 259}.
BYTE_VOCABULARY = "byte_vocabulary.json"
VOCABULARIES = (TOKENIZER_JSON, TOKENIZER_MODEL, BYTE_VOCABULARY, VOCAB, SYMBOLS_JSON)
_CONFIG_JSON = "config.json"
# Begin-of-text and end-of-text tokens of a tokenizer whose files do not name them.
BEGINNINGS = ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]")
ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]")


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
# GPT-2's characters for bytes: printable bytes stand for themselves, the others are mapped to 256 and up.
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTE_LEVEL = {chr(byte): byte for byte in _SEEN} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


def encode(text: str) -> np.ndarray:
    """Encodes text to int32 ids of the byte vocabulary: its UTF-8 bytes."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


def decode(tokens: np.ndarray) -> str:
    """Decodes ids of the byte vocabulary; invalid UTF-8 becomes replacement characters."""
    return np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")


def unfinished(data: bytes) -> bytes:
    """Returns the bytes of an incomplete UTF-8 character at the end of `data`; empty if there is none."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    return decoder.getstate()[0]


class Vocabulary(Protocol):
    """Converts text to ids and back.

    Attributes:
      size: number of ids; all ids are below it.
      bos, eos: ids of the begin-of-text and end-of-text tokens, or None if the vocabulary has none.
    """

    size: int
    bos: int | None
    eos: int | None

    def encode(self, text: str) -> np.ndarray:
        """Encodes text to int32 ids, without `bos` and `eos`."""
        ...

    def decode(self, tokens: Any) -> str:
        """Decodes ids to text."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """Returns the UTF-8 bytes of a token, which may be a part of a character; else those of its decoded text."""
        ...

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """Returns the beginning of the decoded text that later tokens cannot change, and whether it covers all tokens.
        If none follow (`final`), the text is complete except for an incomplete last character."""
        ...


class ByteVocabulary:
    """Ids are UTF-8 bytes, optionally after a few special ids: byte 0 has the id `offset` (3 in seqio's byte
    vocabulary). A `size` of 0 is `offset` + 256."""

    bos: int | None = None

    def __init__(self, offset: int = 0, eos: int | None = None, size: int = 0):
        self.offset, self.eos, self.size = offset, eos, size or offset + BYTE_VOCABULARY_SIZE

    @classmethod
    def from_file(cls, content: bytes, place: str) -> "ByteVocabulary":
        """Parses the vocabulary's file; `place` is its path, for messages. Raises `ConfigError` if it is invalid."""
        try:
            says = json.loads(content)
        except ValueError:
            says = None
        whole = lambda key, value: (type(value) is int and value >= 0) or (key == "eos" and value is None)
        if (
            not isinstance(says, dict)
            or says.keys() - {"offset", "eos", "size"}
            or not all(whole(*one) for one in says.items())
        ):
            raise ConfigError(f"{place} has no byte vocabulary: restore {BYTE_VOCABULARY} from a copy")
        return cls(**says)

    def encode(self, text: str) -> np.ndarray:
        """Encodes text to int32 ids."""
        return encode(text) + np.int32(self.offset)

    def decode(self, tokens: Any) -> str:
        """Decodes ids to text, without special ids; invalid UTF-8 becomes replacement characters."""
        return self._bytes(tokens).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary`."""
        return self._bytes([token])

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """See `Vocabulary`."""
        data = self._bytes(tokens)
        left = len(unfinished(data))
        return data[: len(data) - left].decode("utf-8", errors="replace"), not left

    def _bytes(self, tokens: Any) -> bytes:
        data = np.asarray(tokens, np.int64) - self.offset
        return data[(data >= 0) & (data < BYTE_VOCABULARY_SIZE)].astype(np.uint8).tobytes()


class SentencePieceVocabulary:
    """A SentencePiece model without other files; one in a Hugging Face folder is a `TokenizerVocabulary`. Raises
    `ConfigError` if it is not a SentencePiece model."""

    def __init__(self, content: bytes, place: str):
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise ConfigError(f"{place} is not a SentencePiece model; is the file complete?") from error
        known = lambda token: token if token >= 0 else None
        self.size, self.bos, self.eos = len(self._model), known(self._model.bos_id()), known(self._model.eos_id())

    def encode(self, text: str) -> np.ndarray:
        """Encodes text to int32 ids."""
        return np.asarray(self._model.encode(text), np.int32)

    def decode(self, tokens: Any) -> str:
        """Decodes ids to text. An id without a piece, which a model with more tokens may generate, adds nothing."""
        return str(self._model.decode([int(token) for token in tokens if 0 <= token < self.size]))

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary`."""
        return _run_of_bytes([token], self._piece) or self.decode([token]).encode("utf-8")

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """See `Vocabulary`. An incomplete character is left out, since each of its bytes would be shown separately."""
        data = _run_of_bytes(tokens, self._piece)
        left = len(unfinished(data))
        return self.decode(tokens[: len(tokens) - left]), not left

    def other_text(self, other: Vocabulary) -> str | None:
        """Returns a text to which another vocabulary gives other ids; None if it agrees on every piece, alone and with
        spaces around it, and on all of them together, also with characters that normalization changes."""
        model = self._model
        of_text = lambda n: not (model.is_unknown(n) or model.is_control(n) or model.is_byte(n) or model.is_unused(n))
        pieces = [text for n in range(self.size) if of_text(n) and (text := self.decode([n]).strip())]
        several = (between.join([*pieces, "\ufb01", "\u00bd", "\uff21"]) for between in ("", " ", "  ", "\n"))
        texts = (*pieces, *(f" {text}" for text in pieces), *(f"{text} " for text in pieces), *several)
        return next((text for text in texts if not np.array_equal(self.encode(text), other.encode(text))), None)

    def _piece(self, token: int) -> str | None:
        return self._model.id_to_piece(token) if 0 <= token < self.size else None


class TokenizerVocabulary:
    """A Hugging Face tokenizer: `tokenizer.json` and the files next to it (`vocabulary_files`).

    Attributes:
      names: special tokens by name, such as `eos_token`.
      specials: ids that are not part of a text, such as `</s>` and the markers of turns in a conversation.
      begins: ids that the tokenizer itself adds before a text.
    """

    def __init__(self, kept: Mapping[str, bytes], place: str):
        self._tokenizer, self.names, specials = build(kept, place)
        self._decoders = _kinds(self._tokenizer.decoder)
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(ids.values()) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = frozenset(token for token, what in added.items() if what.special)
        self.specials |= {ids[token] for token in specials if token in ids}
        names_are_said = TOKENIZER_CONFIG in kept or SPECIAL_TOKENS in kept
        usual = lambda tokens: next((ids[token] for token in tokens if token in ids and not names_are_said), None)
        find = lambda key, tokens: ids.get(self.names[key]) if key in self.names else usual(tokens)
        self.bos, self.eos = find("bos_token", BEGINNINGS), find("eos_token", ENDS)
        with_specials = self._tokenizer.encode("a", add_special_tokens=True)
        first = next((n for n, special in enumerate(with_specials.special_tokens_mask) if not special), 0)
        self.begins = tuple(with_specials.ids[:first])

    def encode(self, text: str) -> np.ndarray:
        """Encodes text to int32 ids. Raises `ConfigError` on a token beyond the model's vocabulary (`limit`)."""
        ids = np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        if len(ids) and ids.max() >= self.size:
            name = self._tokenizer.id_to_token(int(ids.max()))
            raise ConfigError(
                f"a text has the token {name!r}, id {ids.max()}, but the model has {self.size} tokens; leave it out"
            )
        return ids

    def limit(self, tokens: int) -> None:
        """Limits `size` to `tokens`, the vocabulary size of the model. Added tokens, such as an image's, may be beyond
        it; `encode` then rejects texts that contain one. Has no effect if the tokenizer's own vocabulary is larger."""
        if self._tokenizer.get_vocab_size(with_added_tokens=False) <= tokens:
            self.size = min(self.size, tokens)

    def decode(self, tokens: Any) -> str:
        """Decodes ids to text, including special tokens such as `</s>`."""
        return str(self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False))

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary`."""
        if "ByteFallback" in self._decoders and (byte := _run_of_bytes([token], self._tokenizer.id_to_token)):
            return byte
        if "ByteLevel" in self._decoders:
            return _bytes_of_byte_level(self._tokenizer.id_to_token(token) or "")
        return self.decode([token]).encode("utf-8")

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """See `Vocabulary`."""
        if "ByteFallback" in self._decoders:
            # A run of byte tokens is text if all of it is valid UTF-8; else each becomes a replacement character.
            run = _run_of_bytes(tokens, self._tokenizer.id_to_token)
            left = unfinished(run) if final else run
            if left and not _is_utf8(run[: len(run) - len(left)]):
                left = b""
            return self.decode(tokens[: len(tokens) - len(left)]), not left
        if "ByteLevel" in self._decoders:
            names = (self._tokenizer.id_to_token(int(token)) or "" for token in tokens)
            if unfinished(b"".join(map(_bytes_of_byte_level, names))):
                return self.decode(tokens)[:-1], False
        return self.decode(tokens), True


def _kinds(part: Any) -> set[str]:
    """Returns the types in a part of a tokenizer, such as its decoder, which may be a sequence."""
    state = json.loads(part.__getstate__()) if part is not None else {}
    return {one["type"] for one in (state, *state.get("decoders", ())) if "type" in one}


def _run_of_bytes(tokens: Sequence[int], name: Callable[[int], str | None]) -> bytes:
    """Returns the bytes of the tokens like `<0x41>` at the end of `tokens`."""
    run = []
    for token in reversed(tokens):
        found = _BYTE_TOKEN.fullmatch(name(int(token)) or "")
        if not found:
            break
        run.append(int(found[1], 16))
    return bytes(reversed(run))


def _bytes_of_byte_level(name: str) -> bytes:
    """Returns the bytes of a byte-level token. Its name has one character per byte, except for added tokens."""
    data = [_BYTE_LEVEL.get(character) for character in name]
    return name.encode("utf-8") if None in data else bytes(byte for byte in data if byte is not None)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def load_vocabulary(spec: str) -> Vocabulary:
    """Loads a vocabulary: empty or `bytes`, or the path, local or remote, of a `.model` file of SentencePiece, of a
    `tokenizer.json`, or of a folder with one of these. Raises `ConfigError` if there is no such file, or it is invalid.
    """
    return vocabulary_from(vocabulary_files(spec), spec)


def vocabulary_files(spec: str) -> dict[str, bytes]:
    """Returns a vocabulary's files for a model directory, contents by name; empty for bytes. Raises `ConfigError`."""
    if spec in ("", "bytes"):
        return {}
    if files.exists(spec) and files.is_directory(spec):
        found = next((name for name in VOCABULARIES if files.exists(f"{spec.rstrip('/')}/{name}")), None)
        if found is None:
            raise ConfigError(f"{spec} has neither {TOKENIZER_JSON} nor {TOKENIZER_MODEL}")
        spec = f"{spec.rstrip('/')}/{found}"
    if not spec.endswith((".model", ".json")):
        raise ConfigError(
            f"vocabulary {spec!r} is neither bytes nor the path of a tokenizer.json or a SentencePiece .model"
        )
    folder, name = spec[: -len(spec.split("/")[-1])], spec.split("/")[-1]
    if name in (BYTE_VOCABULARY, SYMBOLS_JSON):
        return {name: files.read(spec)}
    beside = {other: files.read(folder + other) for other in BESIDE if files.exists(folder + other)}
    if FAMILY not in beside and files.exists(folder + _CONFIG_JSON):
        beside |= family_file(_json_or_nothing(files.read(folder + _CONFIG_JSON)))
    if name == VOCAB:
        if not files.exists(folder + MERGES):
            raise ConfigError(f"{spec} has no {MERGES} next to it")
        return {VOCAB: files.read(spec), MERGES: files.read(folder + MERGES)} | beside
    return {TOKENIZER_MODEL if name.endswith(".model") else TOKENIZER_JSON: files.read(spec)} | beside


def vocabulary_from(kept: dict[str, bytes], place: str) -> Vocabulary:
    """Builds the vocabulary from its files, as `vocabulary_files` returns them; `place` is their path, for messages."""
    if TOKENIZER_MODEL in kept and not any(name in kept for name in BESIDE):
        return SentencePieceVocabulary(kept[TOKENIZER_MODEL], place)
    if TOKENIZER_MODEL in kept or TOKENIZER_JSON in kept or VOCAB in kept:
        return TokenizerVocabulary(kept, place)
    if BYTE_VOCABULARY in kept:
        return ByteVocabulary.from_file(kept[BYTE_VOCABULARY], place)
    if SYMBOLS_JSON in kept:
        return SymbolVocabulary.from_file(kept[SYMBOLS_JSON], place)
    return ByteVocabulary()


def _json_or_nothing(content: bytes) -> dict[str, Any]:
    """Parses a config.json next to a vocabulary; returns {} if it is no JSON object, since any program may have
    written it."""
    try:
        values = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def vocabulary_of(model_dir: str | Path) -> Vocabulary:
    """Returns the vocabulary in a model directory; bytes if it has no files of one."""
    return load_vocabulary(str(model_dir)) if has_vocabulary(model_dir) else ByteVocabulary()


def has_vocabulary(model_dir: str | Path) -> bool:
    """Whether a model directory has files of a vocabulary."""
    return any(files.exists(f"{model_dir}/{name}") for name in VOCABULARIES)


def added_before(vocabulary: Vocabulary) -> int | None:
    """Returns the id that a tokenizer itself adds before a text, if any. Raises `ConfigError` if it adds several."""
    begins = vocabulary.begins if isinstance(vocabulary, TokenizerVocabulary) else ()
    if len(begins) > 1:
        raise ConfigError(f"the tokenizer adds {len(begins)} tokens before a text; famjax supports at most one")
    return next(iter(begins), None)


# --- indices of characters among the tokens of a text ---------------------------------------------


def inside(vocabulary: Vocabulary, tokens: np.ndarray, characters: int) -> int:
    """Returns the number of leading tokens that lie completely within the first `characters` characters."""
    length_of = lambda count: len(vocabulary.decode(tokens[:count]))
    return bisect.bisect_right(range(1, len(tokens) + 1), characters, key=length_of)


def with_characters(vocabulary: Vocabulary, tokens: np.ndarray, first: int, count: int) -> np.ndarray:
    """Returns the indices of the tokens that contain any of the `count` characters from `first` on, int [n]."""
    begin, end = inside(vocabulary, tokens, first), inside(vocabulary, tokens, first + count)
    cut_through = len(vocabulary.decode(tokens[:end])) < first + count
    return np.arange(begin, end + cut_through)
