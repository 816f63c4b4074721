"""Vocabularies: text to token ids and back. Bytes, SentencePiece models, Hugging Face `tokenizer.json`."""

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from famjax.config import ConfigError
from famjax.data import files
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

# Names under which a model directory keeps its vocabulary; without any of them its tokens are bytes.
# Bytes with other ids than their values, as JSON: {"offset": 3, "eos": 1, "size": 259}.
BYTE_VOCABULARY = "byte_vocabulary.json"
VOCABULARIES = (TOKENIZER_JSON, TOKENIZER_MODEL, BYTE_VOCABULARY, VOCAB)
_CONFIG_JSON = "config.json"
# Which token of a tokenizer begins and which ends a text, where no file says it.
BEGINNINGS = ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]")
ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]")


_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
# GPT-2's characters for bytes: themselves where they can be seen, else those from 256 on.
_SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
_BYTE_LEVEL = {chr(byte): byte for byte in _SEEN} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


def encode(text: str) -> np.ndarray:
    """Text to int32 ids of the byte-level vocabulary: the bytes of UTF-8."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


def decode(tokens: np.ndarray) -> str:
    """Ids of the byte-level vocabulary to text; bytes that are no UTF-8 become replacement characters."""
    return np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")


def unfinished(data: bytes) -> bytes:
    """The first bytes of a character that `data` ends with, if it does."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    return decoder.getstate()[0]


class Vocabulary(Protocol):
    """Text to ids and back.

    Attributes:
      size: all ids are below it.
      bos, eos: ids that begin and end a text, or None where the vocabulary has none.
    """

    size: int
    bos: int | None
    eos: int | None

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids, without `bos` and `eos`."""
        ...

    def decode(self, tokens: Any) -> str:
        """Ids to text."""
        ...

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """The beginning of `decode` that no further tokens change, and whether that is the text of all tokens.

        Args:
          tokens: ids.
          final: no further tokens come. Then it is all of `decode` but an unfinished character at the end.
        """
        ...


class ByteVocabulary:
    """Ids are the bytes of UTF-8, or lie behind a few special ones.

    Args:
      offset: id of byte 0; 3 in seqio's byte vocabulary.
      eos: id of the end of text.
      size: all ids are below it.
    """

    bos: int | None = None

    def __init__(self, offset: int = 0, eos: int | None = None, size: int = 0):
        self.offset, self.eos, self.size = offset, eos, size or offset + BYTE_VOCABULARY_SIZE

    def encode(self, text: str) -> np.ndarray:
        """The module's `encode`, and the offset."""
        return encode(text) + np.int32(self.offset)

    def decode(self, tokens: Any) -> str:
        """The module's `decode`, without the offset; special ids are left out."""
        return self._bytes(tokens).decode("utf-8", errors="replace")

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """See `Vocabulary`."""
        data = self._bytes(tokens)
        left = len(unfinished(data))
        return data[: len(data) - left].decode("utf-8", errors="replace"), not left

    def _bytes(self, tokens: Any) -> bytes:
        data = np.asarray(tokens, np.int64) - self.offset
        return data[(data >= 0) & (data < BYTE_VOCABULARY_SIZE)].astype(np.uint8).tobytes()


class SentencePieceVocabulary:
    """A SentencePiece model alone; one in a folder of Hugging Face is a `TokenizerVocabulary`.

    Args:
      content: of the `.model` file.
      place: its path, for messages.
    """

    def __init__(self, content: bytes, place: str):
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except RuntimeError as error:
            raise ConfigError(f"{place} is no SentencePiece model; is the file whole?") from error
        known = lambda token: token if token >= 0 else None
        self.size, self.bos, self.eos = len(self._model), known(self._model.bos_id()), known(self._model.eos_id())

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids."""
        return np.asarray(self._model.encode(text), np.int32)

    def decode(self, tokens: Any) -> str:
        """Ids to text."""
        return str(self._model.decode([int(token) for token in tokens]))

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """See `Vocabulary`. Each byte of a character that is not whole is shown by itself, so it is left off."""
        data = _run_of_bytes(tokens, self._model.id_to_piece)
        left = len(unfinished(data))
        return self.decode(tokens[: len(tokens) - left]), not left


class TokenizerVocabulary:
    """A Hugging Face tokenizer: `tokenizer.json` and what is beside it.

    Args:
      kept: contents by file name, see `vocabulary_files`.
      place: the path, for messages.

    Attributes:
      names: special tokens by name, such as `eos_token`.
      specials: ids that are no part of a text, such as `</s>` and what marks the turns of a conversation.
      begins: ids that the tokenizer itself puts in front of a text.
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
        """Text to int32 ids. Raises `ConfigError` on a token beyond those of the model (`limit`)."""
        ids = np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        if len(ids) and ids.max() >= self.size:
            name = self._tokenizer.id_to_token(int(ids.max()))
            raise ConfigError(
                f"a text has the token {name!r}, number {ids.max()}; the model has {self.size}; leave it out"
            )
        return ids

    def limit(self, tokens: int) -> None:
        """The model has so many tokens. Added ones may lie beyond them, such as an image's: only texts that have one
        are refused. Nothing changes if the tokenizer's own vocabulary is larger."""
        if self._tokenizer.get_vocab_size(with_added_tokens=False) <= tokens:
            self.size = min(self.size, tokens)

    def decode(self, tokens: Any) -> str:
        """Ids to text; tokens such as `</s>` are shown."""
        return str(self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False))

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """See `Vocabulary`."""
        if "ByteFallback" in self._decoders:
            # A run of bytes is text if all of it is UTF-8; else each of its bytes is a replacement character.
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
    """The types in a part of a tokenizer, such as its decoder, which may be a sequence of them."""
    state = json.loads(part.__getstate__()) if part is not None else {}
    return {one["type"] for one in (state, *state.get("decoders", ())) if "type" in one}


def _run_of_bytes(tokens: Sequence[int], name: Callable[[int], str | None]) -> bytes:
    """The bytes of the tokens `<0x41>` that `tokens` end with."""
    run = []
    for token in reversed(tokens):
        found = _BYTE_TOKEN.fullmatch(name(int(token)) or "")
        if not found:
            break
        run.append(int(found[1], 16))
    return bytes(reversed(run))


def _bytes_of_byte_level(name: str) -> bytes:
    """The bytes of a token of a byte-level tokenizer; its name has one character for each, but for added tokens."""
    data = [_BYTE_LEVEL.get(character) for character in name]
    return name.encode("utf-8") if None in data else bytes(byte for byte in data if byte is not None)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def load_vocabulary(spec: str) -> Vocabulary:
    """The vocabulary of a path.

    Args:
      spec: empty or `bytes`, a `.model` file of SentencePiece, a `tokenizer.json`, or a folder with one
        of these; local or remote.

    Raises:
      ConfigError: nothing there, or not what its name says.
    """
    return vocabulary_from(vocabulary_files(spec), spec)


def vocabulary_files(spec: str) -> dict[str, bytes]:
    """What a model directory keeps of a vocabulary: contents by file name; none for bytes."""
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
    if name == BYTE_VOCABULARY:
        return {BYTE_VOCABULARY: files.read(spec)}
    beside = {other: files.read(folder + other) for other in BESIDE if files.exists(folder + other)}
    if FAMILY not in beside and files.exists(folder + _CONFIG_JSON):
        beside |= family_file(_json_or_nothing(files.read(folder + _CONFIG_JSON)))
    if name == VOCAB:
        if not files.exists(folder + MERGES):
            raise ConfigError(f"{spec} has no {MERGES} beside it")
        return {VOCAB: files.read(spec), MERGES: files.read(folder + MERGES)} | beside
    return {TOKENIZER_MODEL if name.endswith(".model") else TOKENIZER_JSON: files.read(spec)} | beside


def vocabulary_from(kept: dict[str, bytes], place: str) -> Vocabulary:
    """The vocabulary of what `vocabulary_files` gave; `place` is for messages."""
    if TOKENIZER_MODEL in kept and not any(name in kept for name in BESIDE):
        return SentencePieceVocabulary(kept[TOKENIZER_MODEL], place)
    if TOKENIZER_MODEL in kept or TOKENIZER_JSON in kept or VOCAB in kept:
        return TokenizerVocabulary(kept, place)
    if BYTE_VOCABULARY in kept:
        return ByteVocabulary(**json.loads(kept[BYTE_VOCABULARY]))
    return ByteVocabulary()


def _json_or_nothing(content: bytes) -> dict[str, Any]:
    """A config.json beside a vocabulary; that of another program may be anything."""
    try:
        values = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def vocabulary_of(model_dir: str | Path) -> Vocabulary:
    """The vocabulary that a model directory was trained with; bytes where it keeps none."""
    return load_vocabulary(str(model_dir)) if has_vocabulary(model_dir) else ByteVocabulary()


def has_vocabulary(model_dir: str | Path) -> bool:
    """A model directory keeps a vocabulary."""
    return any(files.exists(f"{model_dir}/{name}") for name in VOCABULARIES)
