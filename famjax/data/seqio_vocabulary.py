"""Adapters from vocabularies of famjax to seqio and back. Imports seqio, and therefore tensorflow."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from famjax.data import files, vocabulary
from famjax.data.tokenizer_folder import TOKENIZER_MODEL
from famjax.data.vocabulary import BYTE_VOCABULARY, Vocabulary


class FileVocabulary(seqio.Vocabulary):
    """A vocabulary for `seqio.Feature`: bytes, a `tokenizer.json` or a SentencePiece `.model`, as named by
    `DataConfig.vocabulary`."""

    def __init__(self, spec: str = "bytes"):
        super().__init__()
        self.spec, self.ours = spec, vocabulary.load_vocabulary(spec)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, FileVocabulary) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec)

    @property
    def bos_id(self) -> int | None:
        """The id of the begin-of-text token; None if there is none."""
        return self.ours.bos

    @property
    def eos_id(self) -> int | None:
        """The id of the end-of-text token; None if there is none."""
        return self.ours.eos

    @property
    def unk_id(self) -> int | None:
        """None: there is no unknown token."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.ours.size

    def _encode(self, s: str) -> list[int]:
        return self.ours.encode(s).tolist()

    def _decode(self, ids: Any) -> str:
        return self.ours.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        if isinstance(self.ours, vocabulary.ByteVocabulary):
            return tf.cast(tf.io.decode_raw(s, tf.uint8), tf.int32) + self.ours.offset
        tokens = tf.py_function(lambda text: self.ours.encode(text.numpy().decode("utf-8")), [s], tf.int32)
        tokens.set_shape([None])
        return tokens

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.py_function(lambda tokens: self.ours.decode(tokens.numpy()), [ids], tf.string)


class _Other:
    """Adapts any other vocabulary of seqio to `Vocabulary`."""

    def __init__(self, theirs: seqio.Vocabulary):
        self._theirs, self.size = theirs, theirs.vocab_size
        self.bos: int | None = None
        self.eos: int | None = theirs.eos_id

    def encode(self, text: str) -> np.ndarray:
        """Encodes text to int32 ids."""
        return np.asarray(self._theirs.encode(text), np.int32)

    def decode(self, tokens: Any) -> str:
        """Decodes ids to text, up to the first end-of-text token."""
        return str(self._theirs.decode([int(token) for token in tokens]))

    def token_bytes(self, token: int) -> bytes:
        """See `Vocabulary`."""
        return self.decode([token]).encode("utf-8")

    def certain(self, tokens: Sequence[int], final: bool = False) -> tuple[str, bool]:
        """See `Vocabulary`. Any text may change with further tokens, so none is certain until the end."""
        return (self.decode(tokens), True) if final else ("", False)


def ours_of(theirs: seqio.Vocabulary) -> tuple[Vocabulary, dict[str, bytes] | None]:
    """Converts a vocabulary of seqio; returns it and its files for a model directory (None: it cannot be saved)."""
    if isinstance(theirs, FileVocabulary):
        return theirs.ours, vocabulary.vocabulary_files(theirs.spec)
    if isinstance(theirs, seqio.SentencePieceVocabulary):
        content = files.read(theirs.sentencepiece_model_file)
        model = vocabulary.SentencePieceVocabulary(content, theirs.sentencepiece_model_file)
        model.size = theirs.vocab_size  # with seqio's extra ids
        return model, {TOKENIZER_MODEL: content}
    if isinstance(theirs, seqio.ByteVocabulary):
        settings = {"offset": 3, "eos": theirs.eos_id, "size": theirs.vocab_size}
        return vocabulary.ByteVocabulary(**settings), {BYTE_VOCABULARY: json.dumps(settings).encode()}
    return _Other(theirs), None
