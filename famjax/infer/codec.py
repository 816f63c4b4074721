"""Converts text to a model's tokens and back, with the vocabulary of its directory, or as bytes if it has none.

Does not import jax, so that invalid texts and stop texts are reported before anything is loaded.
"""

import copy
import functools
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from famjax.config import ConfigError
from famjax.config.text import texts_of
from famjax.data.chat_template import ChatTemplate, chat_template
from famjax.data.vocabulary import ByteVocabulary, TokenizerVocabulary, Vocabulary, added_before, vocabulary_of
from famjax.infer.settings import RECENT
from famjax.infer.text import TextStream, TokenTextStream, without_stop
from famjax.pretrained.folder import CONFIG_JSON, KEPT_CONFIG, json_object
from famjax.storage.model_dir import split_step

GENERATION_CONFIG = "generation_config.json"
# Number of characters that are encoded at once, if the text can be split there without changing the tokens.
CHUNK_CHARACTERS = 2**16
_NEAR_THE_END = 512


class Stream(Protocol):
    """Incremental decoding of tokens to text."""

    stopped: bool
    taken: int  # number of tokens so far, up to the one that completed a stop text

    def feed(self, tokens: Iterable[int], stopped: bool = False) -> str:
        """Returns the text that later tokens cannot change."""
        ...

    def finish(self) -> str:
        """Returns the text that was held back."""
        ...


class Codec:
    """Converts text to tokens and back for one model directory, with special tokens and stop texts.

    Attributes:
      vocabulary: vocabulary of the model directory.
      is_bytes: whether tokens are bytes, so that a text can be split anywhere.
      bos: the token that the tokenizer adds before a new text, or None.
      ends: end-of-text tokens of the model.

    Raises:
      ConfigError: if the vocabulary, a JSON file or its `eos_token_id` is invalid, the vocabulary has more tokens than
        the model, or the tokenizer adds more than one token before a text.
    """

    _warned = False  # whether `_check_begin` has warned

    def __init__(self, model_dir: str | Path, vocab_size: int):
        root, _ = split_step(model_dir)
        self._root: Path | None = root
        self.vocabulary: Vocabulary = vocabulary_of(root)
        self.is_bytes = _is_bytes(self.vocabulary)
        fit(self.vocabulary, vocab_size, str(root))
        self.bos = added_before(self.vocabulary)
        self.ends = _ends(root, self.vocabulary, vocab_size)

    @classmethod
    def of(cls, vocabulary: Vocabulary, folder: Path | None = None, vocab_size: int | None = None) -> "Codec":
        """Returns a codec for a vocabulary outside a model directory, with the vocabulary's own special tokens, or the
        chat template and end-of-text tokens of its `folder`, as if that were the model's, of `vocab_size` tokens
        (default: the vocabulary's). Raises `ConfigError` if a JSON file or its `eos_token_id` is invalid."""
        codec = cls.__new__(cls)
        codec._root = folder
        codec.vocabulary, codec.is_bytes = vocabulary, _is_bytes(vocabulary)
        codec.bos = added_before(vocabulary)
        own = [] if vocabulary.eos is None else [vocabulary.eos]
        codec.ends = own if folder is None else _ends(folder, vocabulary, vocab_size or vocabulary.size)
        return codec

    def copy(self) -> "Codec":
        """Returns a codec with `ends` of its own, to which a chat template may add."""
        codec = copy.copy(self)
        codec.ends = list(self.ends)
        return codec

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template of the model directory; None if it has none."""
        return None if self._root is None else chat_template(self._root)

    @property
    def prefix(self) -> int:
        """The token before a text that has nothing before it: BOS, else EOS, else a newline."""
        known = [token for token in (self.vocabulary.bos, self.vocabulary.eos) if token is not None]
        return known[0] if known else int(self.vocabulary.encode("\n")[-1])

    def encode(self, text: str, fresh: bool = True) -> np.ndarray:
        """Returns int32 ids of a text; if `fresh`, they begin with `bos`, if there is one."""
        ids = self.vocabulary.encode(text)
        if fresh and self.bos is not None:
            self._check_begin(ids)
            ids = np.concatenate([[self.bos], ids])
        return np.asarray(ids, np.int32)

    def chunks(self, pieces: Iterable[bytes], fresh: bool = True) -> Iterator[np.ndarray]:
        """Yields the int32 ids of a text that arrives in pieces of UTF-8, which may end within a character.

        Together they are the ids of the whole text. With a tokenizer, the text is split where this does not change the
        tokens on either side; if there is no such place, more of the text is buffered.

        Raises:
          BadText: with a tokenizer, if the text is not UTF-8. Without one, any bytes are tokens.
        """
        if fresh and self.bos is not None:
            yield np.array([self.bos], np.int32)
        if self.is_bytes:
            for piece in pieces:
                yield np.frombuffer(piece, np.uint8).astype(np.int32)
            return
        parts = self._in_parts(pieces)
        for ids in itertools.islice(parts, 1):
            if fresh and self.bos is not None:
                self._check_begin(ids)
            yield ids
        yield from parts

    def _in_parts(self, pieces: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yields the int32 ids of a text that arrives in pieces, split where this does not change them."""
        text, enough = "", CHUNK_CHARACTERS
        for more in texts_of(pieces, "the prompt"):
            text += more
            while len(text) >= enough:
                cut, ids = self._cut(text[:enough])
                if not cut:
                    enough *= 4
                    continue
                yield ids
                text, enough = text[cut:], CHUNK_CHARACTERS
        if text:
            yield np.asarray(self.vocabulary.encode(text), np.int32)

    def _check_begin(self, ids: Sequence[int] | np.ndarray) -> None:
        """Warns once if a new text begins with `bos` itself, and so will have it twice."""
        if not self._warned and len(ids) and int(ids[0]) == self.bos:
            self._warned = True
            shown = self.vocabulary.decode([int(ids[0])])
            what = f"a text begins with {shown!r}, which the tokenizer adds too"
            print(f"{what}: the model reads it twice; leave it out", file=sys.stderr)

    def _cut(self, text: str) -> tuple[int, np.ndarray]:
        """Returns (position, ids of the text before it) of a word boundary near the end; position 0 if there is none.

        Both sides of the boundary, encoded separately, must have the ids of the whole text.
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
        """Returns the token sequences that stop decoding on the device: `ends`, and stop texts if tokens are bytes.

        Raises:
          ConfigError: if a stop text is empty or longer than the recent tokens of a session.
        """
        stops = [[token] for token in self.ends]
        for text in texts:
            stop = list(text.encode("utf-8", "surrogateescape"))
            if not 0 < len(stop) <= RECENT:
                raise ConfigError(f"--stop {text!r} has {len(stop)} bytes; it must have 1 to {RECENT}")
            stops += [stop] if self.is_bytes else []
        return stops

    def stream(self, texts: Sequence[str], before: Iterable[int] = ()) -> Stream:
        """Returns an incremental decoder whose text ends before any of the stop texts `texts`; `before`: the last
        tokens before the text. Raises `ConfigError` as `token_stops` does."""
        stops = self.token_stops(texts)
        if self.is_bytes:
            return TextStream(stops, before)
        return TokenTextStream(self.vocabulary.certain, stops, texts, before)

    def answer(
        self, tokens: Sequence[int], stopped: bool, stops: Sequence[str], before: Any = ()
    ) -> tuple[str, list[int], bool]:
        """Returns (text, its tokens, whether it was stopped) of a generated answer, without its stop token or text.

        Args:
          tokens: all generated tokens.
          stopped: whether they end with one of `token_stops`.
          stops: stop texts, which are not part of the answer.
          before: the tokens before the answer.
        """
        ids = np.array(tokens, np.int32)
        if stopped:
            ids = without_stop(ids, self.token_stops(stops))
        if self.is_bytes:
            stream = self.stream((), before)
            return stream.feed(ids) + stream.finish(), ids.tolist(), stopped
        stream = self.stream(stops, before)
        text = stream.feed(ids)
        text += stream.finish()  # may find a stop text in the text that was held back
        if stream.stopped:  # tokens from the stop text on are not part of the answer
            return text, ids[: self._tokens_within(text, ids[: stream.taken], before)].tolist(), True
        return text, ids.tolist(), stopped

    def _tokens_within(self, text: str, ids: np.ndarray, before: Any) -> int:
        """Returns the number of tokens `ids` in `text`, the beginning of their text after the tokens `before`.

        They are decoded after `before`, since a tokenizer may drop the space at the beginning of a text.
        """
        known = [int(token) for token in before if token >= 0]
        begin = len(self.vocabulary.certain(known, True)[0])
        for count in range(len(ids), 0, -1):
            shown, whole = self.vocabulary.certain([*known, *ids[:count].tolist()], True)
            if whole and text.startswith(shown[begin:]):
                return count
        return 0


def fit(vocabulary: Vocabulary, vocab_size: int, place: str) -> None:
    """Limits the vocabulary in the folder `place` to the tokens of its model, see `TokenizerVocabulary.limit`. Raises
    `ConfigError` if it has more than the model, or begins a text with another one."""
    if isinstance(vocabulary, TokenizerVocabulary):
        vocabulary.limit(vocab_size)
    if vocabulary.size > vocab_size:
        is_bytes = _is_bytes(vocabulary)
        what = "no tokenizer for text" if is_bytes else f"a tokenizer of {vocabulary.size}"
        need = f"it needs at least the {vocabulary.size} of the byte vocabulary"
        use = need if is_bytes else "give it the tokenizer that it was trained with"
        raise ConfigError(f"{place}: the model has {vocab_size} tokens and {what}; {use}")
    if (begin := added_before(vocabulary)) is not None and begin >= vocab_size:
        raise ConfigError(
            f"{place}: the tokenizer begins a text with token {begin}, but the model has {vocab_size} tokens; "
            f"give it the tokenizer that it was trained with"
        )


def _is_bytes(vocabulary: Vocabulary) -> bool:
    return isinstance(vocabulary, ByteVocabulary) and vocabulary.offset == 0


def _ends(model_dir: Path, vocabulary: Vocabulary, vocab_size: int) -> list[int]:
    """Returns the end-of-text ids: `eos_token_id` of generation_config.json, else of config.json.

    If both are missing, the tokenizer's EOS token. (`from_pretrained` of transformers ignores the default of the
    family's configuration, too.) Raises `ConfigError` if `eos_token_id` is neither an id below `vocab_size` nor a list
    of such ids, since the model would not stop.
    """
    for path in (model_dir / name for name in (GENERATION_CONFIG, CONFIG_JSON, KEPT_CONFIG)):
        found: Any = json_object(path).get("eos_token_id") if path.is_file() else None
        if found is None:
            continue
        every = found if isinstance(found, list) else [found]
        if not all(type(token) is int and 0 <= token < vocab_size for token in every):
            raise ConfigError(
                f"{path}: eos_token_id is {found!r}; it must be the id of one of the model's {vocab_size} tokens, "
                f"or a list of ids"
            )
        return list(dict.fromkeys(every))
    if vocabulary.eos is not None and vocabulary.eos >= vocab_size:
        raise ConfigError(
            f"{model_dir}: the tokenizer's end-of-text token has id {vocabulary.eos}, but the model has {vocab_size} "
            f"tokens; set eos_token_id in {GENERATION_CONFIG} to one of them"
        )
    return [] if vocabulary.eos is None else [vocabulary.eos]
