"""Vocabularies: text to token ids and back. Bytes, SentencePiece models, Hugging Face `tokenizer.json`."""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from famjax.config import ConfigError
from famjax.data import files

BYTE_VOCABULARY_SIZE = 256

# Names under which a model directory keeps its vocabulary; without either its tokens are bytes.
TOKENIZER_JSON, TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"
# Bytes with other ids than their values, as JSON: {"offset": 3, "eos": 1, "size": 259}.
BYTE_VOCABULARY = "byte_vocabulary.json"
# Beside a tokenizer.json: which of its tokens begins and which ends a text. Without it, by these names.
TOKENIZER_CONFIG = "tokenizer_config.json"
BEGINNINGS = ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]")
ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]")


def encode(text: str) -> np.ndarray:
    """Text to int32 ids of the byte-level vocabulary: the bytes of UTF-8."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


def decode(tokens: np.ndarray) -> str:
    """Ids of the byte-level vocabulary to text; bytes that are no UTF-8 become replacement characters."""
    return np.asarray(tokens, np.uint8).tobytes().decode("utf-8", errors="replace")


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
        bytes_alone = np.asarray(tokens, np.int64) - self.offset
        return decode(bytes_alone[(bytes_alone >= 0) & (bytes_alone < BYTE_VOCABULARY_SIZE)])


class SentencePieceVocabulary:
    """A SentencePiece model.

    Args:
      content: of the `.model` file.
      place: its path, for messages.
    """

    def __init__(self, content: bytes, place: str):
        try:
            import sentencepiece
        except ImportError as error:
            raise ConfigError(f"{place} needs sentencepiece: pip install -e '.[tokenizers]'") from error
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


class TokenizerVocabulary:
    """A Hugging Face `tokenizer.json`.

    Args:
      content: of the file.
      config: of the `tokenizer_config.json` beside it, empty where there is none.
      place: the file's path, for messages.
    """

    def __init__(self, content: bytes, config: bytes, place: str):
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigError(f"{place} needs tokenizers: pip install -e '.[tokenizers]'") from error
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exceptions
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"{place} is no tokenizer.json ({reason})") from error
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(ids.values()) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        # Ids that are no part of a text, such as `</s>` and what marks the turns of a conversation.
        self.specials = frozenset(token for token, what in added.items() if what.special)
        names = json.loads(config) if config else {}
        self.bos = self._special(ids, names, "bos_token", BEGINNINGS)
        self.eos = self._special(ids, names, "eos_token", ENDS)

    @staticmethod
    def _special(ids: dict[str, int], names: dict[str, Any], key: str, usual: tuple[str, ...]) -> int | None:
        if key in names:  # null says that there is none
            name = names[key].get("content") if isinstance(names[key], dict) else names[key]
            return ids.get(name)
        return next((ids[name] for name in usual if name in ids), None)

    def encode(self, text: str) -> np.ndarray:
        """Text to int32 ids."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def begins_with_bos(self) -> bool:
        """Whether the tokenizer itself puts `bos` in front of a text."""
        return self._tokenizer.encode("a", add_special_tokens=True).ids[:1] == [self.bos]

    def decode(self, tokens: Any) -> str:
        """Ids to text; tokens such as `</s>` are shown."""
        return str(self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False))


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
        inside = [f"{spec.rstrip('/')}/{name}" for name in (TOKENIZER_JSON, TOKENIZER_MODEL, BYTE_VOCABULARY)]
        found = [path for path in inside if files.exists(path)]
        if not found:
            raise ConfigError(f"{spec} has neither {TOKENIZER_JSON} nor {TOKENIZER_MODEL}")
        spec = found[0]
    if spec.endswith(".model"):
        return {TOKENIZER_MODEL: files.read(spec)}
    if spec.endswith(BYTE_VOCABULARY):
        return {BYTE_VOCABULARY: files.read(spec)}
    if not spec.endswith(".json"):
        raise ConfigError(
            f"vocabulary {spec!r} is neither bytes nor the path of a tokenizer.json or a SentencePiece .model"
        )
    kept = {TOKENIZER_JSON: files.read(spec)}
    config = spec[: -len(spec.split("/")[-1])] + TOKENIZER_CONFIG
    return kept | ({TOKENIZER_CONFIG: files.read(config)} if files.exists(config) else {})


def vocabulary_from(kept: dict[str, bytes], place: str) -> Vocabulary:
    """The vocabulary of what `vocabulary_files` gave; `place` is for messages."""
    if TOKENIZER_MODEL in kept:
        return SentencePieceVocabulary(kept[TOKENIZER_MODEL], place)
    if TOKENIZER_JSON in kept:
        return TokenizerVocabulary(kept[TOKENIZER_JSON], kept.get(TOKENIZER_CONFIG, b""), place)
    if BYTE_VOCABULARY in kept:
        return ByteVocabulary(**json.loads(kept[BYTE_VOCABULARY]))
    return ByteVocabulary()


def vocabulary_of(model_dir: str | Path) -> Vocabulary:
    """The vocabulary that a model directory was trained with; bytes where it keeps none."""
    return load_vocabulary(str(model_dir)) if has_vocabulary(model_dir) else ByteVocabulary()


def has_vocabulary(model_dir: str | Path) -> bool:
    """A model directory keeps a vocabulary."""
    names = (TOKENIZER_JSON, TOKENIZER_MODEL, BYTE_VOCABULARY)
    return any(files.exists(f"{model_dir}/{name}") for name in names)
