"""Text to a model's tokens and back, with the vocabulary that its directory keeps; bytes where it keeps none.

Imports no jax, so that a text without tokens and a stop that cannot be are found before anything is loaded.
"""

import codecs
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from famjax.config import ConfigError
from famjax.data.vocabulary import (
    ByteVocabulary,
    TokenizerVocabulary,
    Vocabulary,
    vocabulary_of,
)
from famjax.infer.chat_template import ChatTemplate, chat_template
from famjax.infer.settings import RECENT
from famjax.infer.text import TextStream, TokenTextStream, without_stop
from famjax.pretrained.families import usual_end
from famjax.storage.model_dir import split_step

GENERATION_CONFIG = "generation_config.json"
# That of the folder a model was imported from is kept under the second name.
CONFIG_JSON, KEPT_CONFIG = "config.json", "hf_config.json"
# Text of so many characters is made to tokens at once, if it can be cut without changing them.
CHUNK_CHARACTERS = 2**16
_NEAR_THE_END = 512


class Stream(Protocol):
    """Tokens to text, as they come."""

    stopped: bool

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        """The text that is now certain."""
        ...

    def finish(self) -> str:
        """What was held back."""
        ...


class Codec:
    """What the verbs need of a vocabulary.

    Attributes:
      vocabulary: of the model directory.
      is_bytes: tokens are bytes, so any text can be cut anywhere.
      bos: the token that a fresh text begins with, where the tokenizer's configuration says so; else None.
      ends: tokens with which the model ends a text.

    Raises:
      ConfigError: the vocabulary has tokens that the model lacks.
    """

    def __init__(self, model_dir: str | Path, vocab_size: int):
        root, _ = split_step(model_dir)
        self._root: Path | None = root
        self.vocabulary: Vocabulary = vocabulary_of(root)
        self.is_bytes = _is_bytes(self.vocabulary)
        if isinstance(self.vocabulary, TokenizerVocabulary):
            self.vocabulary.limit(vocab_size)
        if self.vocabulary.size > vocab_size:
            what = "no tokenizer for text" if self.is_bytes else f"a tokenizer of {self.vocabulary.size}"
            need = f"it needs at least the {self.vocabulary.size} of the byte vocabulary"
            use = need if self.is_bytes else "give the model directory the tokenizer that it was trained with"
            raise ConfigError(f"the model has {vocab_size} tokens and {what}; {use}")
        self.bos = _begin(self.vocabulary)
        self.ends = _ends(root, self.vocabulary, vocab_size)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "Codec":
        """Of a vocabulary that is in no model directory (yet): texts begin and end as it says."""
        codec = cls.__new__(cls)
        codec._root = None
        codec.vocabulary, codec.is_bytes = vocabulary, _is_bytes(vocabulary)
        codec.bos = _begin(vocabulary)
        codec.ends = [] if vocabulary.eos is None else [vocabulary.eos]
        return codec

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template of the model directory; None if it has none."""
        return None if self._root is None else chat_template(self._root)

    @property
    def prefix(self) -> int:
        """What stands before a text that nothing is before: its usual first token, else an end, else a line's end."""
        known = [token for token in (self.vocabulary.bos, self.vocabulary.eos) if token is not None]
        return known[0] if known else int(self.vocabulary.encode("\n")[-1])

    def encode(self, text: str, fresh: bool = True) -> np.ndarray:
        """int32 ids; a fresh text begins with `bos`, if there is one."""
        ids = self.vocabulary.encode(text)
        if fresh and self.bos is not None:
            ids = np.concatenate([[self.bos], ids])
        return np.asarray(ids, np.int32)

    def chunks(self, pieces: Iterable[bytes], fresh: bool = True) -> Iterator[np.ndarray]:
        """Ids of a text that comes in pieces of any length, which may break characters.

        They are those of the whole text. With a tokenizer the text is cut where the tokens on both sides
        do not change by it; where no such place is found, more of the text is held in memory.
        """
        if fresh and self.bos is not None:
            yield np.array([self.bos], np.int32)
        if self.is_bytes:
            for piece in pieces:
                yield np.frombuffer(piece, np.uint8).astype(np.int32)
            return
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text, enough = "", CHUNK_CHARACTERS
        for piece in pieces:
            text += decoder.decode(piece)
            while len(text) >= enough:
                cut, ids = self._cut(text[:enough])
                if not cut:
                    enough *= 4
                    continue
                yield ids
                text, enough = text[cut:], CHUNK_CHARACTERS
        text += decoder.decode(b"", final=True)
        if text:
            yield np.asarray(self.vocabulary.encode(text), np.int32)

    def _cut(self, text: str) -> tuple[int, np.ndarray]:
        """A place in front of a word near the text's end, and the ids of what is before it; 0 where there is none.

        It is a good place if both sides, encoded by themselves, give the ids of the whole.
        """
        whole = self.vocabulary.encode(text)
        begin = len(text) - _NEAR_THE_END
        places = [at for at in range(begin, len(text) - 64) if text[at].isspace() and not text[at - 1].isspace()]
        for at in places[:8]:
            before, after = self.vocabulary.encode(text[:at]), self.vocabulary.encode(text[at:])
            if np.array_equal(np.concatenate([before, after]), whole):
                return at, np.asarray(before, np.int32)
        return 0, whole

    def token_stops(self, texts: Sequence[str]) -> list[list[int]]:
        """Token sequences that end a text, for the device. Stop texts are among them only where tokens are bytes.

        Raises:
          ConfigError: a stop text is empty, or too long to be found.
        """
        stops = [[token] for token in self.ends]
        for text in texts:
            stop = list(text.encode("utf-8", "surrogateescape"))
            if not 0 < len(stop) <= RECENT:
                raise ConfigError(f"--stop {text!r} has {len(stop)} bytes; it must have 1 to {RECENT}")
            stops += [stop] if self.is_bytes else []
        return stops

    def stream(self, texts: Sequence[str], before: Iterable[int] = ()) -> Stream:
        """Text of tokens that come; it ends before any of the stop texts."""
        stops = self.token_stops(texts)
        if self.is_bytes:
            return TextStream(stops, before)
        return TokenTextStream(self.vocabulary.certain, stops, texts, before)

    def answer(
        self, tokens: Sequence[int], stopped: bool, stops: Sequence[str], before: Any = ()
    ) -> tuple[str, list[int], bool]:
        """What was made, without its stop: its text, the tokens of that text, and whether a stop came.

        Args:
          tokens: all that was made.
          stopped: they end with one of `token_stops`.
          stops: stop texts, not part of the answer.
          before: the tokens in front of them.
        """
        ids = np.array(tokens, np.int32)
        if stopped:
            ids = without_stop(ids, self.token_stops(stops))
        if self.is_bytes:
            stream = self.stream((), before)
            return stream.feed(ids) + stream.finish(), ids.tolist(), stopped
        stream, text = self.stream(stops, before), ""
        for count, token in enumerate(ids, start=1):
            text += stream.feed([token])
            if stream.stopped:  # tokens that begin in the stop text are no part of the answer
                kept = next((n for n in range(count, -1, -1) if text.startswith(self.vocabulary.decode(ids[:n]))), 0)
                return text, ids[:kept].tolist(), True
        return text + stream.finish(), ids.tolist(), stopped


def _is_bytes(vocabulary: Vocabulary) -> bool:
    return isinstance(vocabulary, ByteVocabulary) and vocabulary.offset == 0


def _begin(vocabulary: Vocabulary) -> int | None:
    """The token that a tokenizer itself puts in front of a text."""
    begins = vocabulary.begins if isinstance(vocabulary, TokenizerVocabulary) else ()
    if len(begins) > 1:
        raise ConfigError(f"the tokenizer puts {len(begins)} tokens in front of a text; one is all that is known here")
    return next(iter(begins), None)


def _ends(model_dir: Path, vocabulary: Vocabulary, vocab_size: int) -> list[int]:
    """`eos_token_id`, a number or several, of the generation settings, else of config.json. Where both say nothing, the
    one of the model's family, with which transformers ends a text, and the one that the tokenizer names."""
    configs = [_json(model_dir / name) for name in (CONFIG_JSON, KEPT_CONFIG)]
    said = (one.get("eos_token_id") for one in (_json(model_dir / GENERATION_CONFIG), *configs))
    found: Any = next((one for one in said if one is not None), None)
    if found is None:
        found = [end for end in (*map(usual_end, configs), vocabulary.eos) if end is not None]
    every = dict.fromkeys(found if isinstance(found, list) else [found])
    return [token for token in every if type(token) is int and 0 <= token < vocab_size]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it from a copy") from None
    return values if isinstance(values, dict) else {}
