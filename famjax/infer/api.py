"""The Python API: `famjax.load`, `famjax.score` and `famjax.generate`, as the commands `famjax score` and `generate`.

`famjax/__init__.py` imports this module when one of these functions is first used.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias, overload

import jax
import numpy as np

from famjax.config import DTYPES, OVERRIDES, ConfigError, InferConfig, ModelConfig, check_mesh
from famjax.config.checks import one_of
from famjax.config.text import without_mark
from famjax.infer import load as loading
from famjax.infer import session as sessions
from famjax.infer.answers import Answer, answer_side_by_side, read_side_by_side, stream
from famjax.infer.codec import Codec
from famjax.infer.prefill import prefill
from famjax.infer.scoring import score_in_batches
from famjax.infer.session import Session
from famjax.infer.settings import MOST_TOKENS, Sampling, check_whole
from famjax.nn.model import Transformer

CHUNK_BYTES = 2**16
_BYTES = (bytes, bytearray, memoryview)  # no documents, though NumPy reads the last two as numbers
# A text, its UTF-8 bytes, or a file opened in binary mode, which is read in chunks.
Prompt: TypeAlias = str | bytes | IO[bytes]
Document: TypeAlias = str | Sequence[int] | np.ndarray


@functools.partial(jax.tree_util.register_dataclass, data_fields=("memory", "recent"), meta_fields=("origin",))
@dataclasses.dataclass(frozen=True)
class OwnSession(Session):
    """A session of one row with the model that made it, since no other model can continue it.

    Attributes:
      origin: static in a pytree. `generate` computes with the plain `Session`, so that models share compiled programs.
    """

    origin: sessions.Origin


class LoadedModel:
    """A loaded model directory: the model and its tokenizer.

    Attributes:
      model_dir: the directory.
      model: the network with its weights (`famjax/nn/model.py`).
    """

    def __init__(self, model: Transformer, model_dir: str | Path):
        self.model, self.model_dir = model, Path(model_dir)

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model, including the memory settings given to `load`."""
        return self.model.config

    @functools.cached_property
    def codec(self) -> Codec:
        """The model's tokenizer. Raises `ConfigError` if the directory has none that fits the model."""
        return Codec(self.model_dir, self.config.vocab_size)

    def save_session(self, path: str | Path, session: Session) -> None:
        """Writes a session of one row to a file; `load_session` or `famjax generate --state-in` continues from it.

        Raises:
          ConfigError: another model or other memory settings made the session.
        """
        self.check_session(session)
        sessions.save(path, session, self.model, self._fingerprints)

    def load_session(self, path: str | Path) -> Session:
        """Returns the session in a file.

        Raises:
          ConfigError: the file is missing or damaged, or another model or other memory settings wrote it.
        """
        return self.own(sessions.restore(sessions.read_file(path), self.model, self._fingerprints))

    def check_session(self, session: Session) -> None:
        """Raises `ConfigError` if another model or other memory settings made the session."""
        if not isinstance(session, OwnSession):
            raise ConfigError(
                f"session is a {type(session).__name__} that names no model; "
                "give one from Answer.session or LoadedModel.load_session(FILE)"
            )
        sessions.check_origin("the session", session.origin, self.model, self._fingerprints)

    def own(self, session: Session) -> OwnSession:
        """Returns a session that this model made, with its origin."""
        return OwnSession(session.memory, session.recent, sessions.Origin.of(self.model, self._fingerprints))

    @functools.cached_property
    def _fingerprints(self) -> Mapping[str, str]:
        """Fingerprints of the model: a pass over all weights, once."""
        return sessions.fingerprints(self.model)


class Score(NamedTuple):
    """The log probabilities of a document.

    Attributes:
      logprobs: float32 [n - 1], natural-log probability of tokens 1..n-1, each given all tokens before it.
      tokens: n, the number of tokens.
    """

    logprobs: np.ndarray
    tokens: int

    @property
    def sum(self) -> float:
        """The natural-log probability of the document given its first token."""
        return math.fsum(self.logprobs.tolist())


def load(
    model_dir: str | Path, *, mesh: Mapping[str, int] | None = None, dtype: str | None = None, **memory: int | None
) -> LoadedModel:
    """Loads a model directory that `famjax train` or `famjax import-hf` wrote.

    Args:
      model_dir: the directory, or one of its checkpoints: `runs/fam/checkpoints/400`.
      mesh: number of devices along `data`, `fsdp` and `tensor`, such as {"tensor": 2}; None is one device.
      dtype: compute dtype, `float32` or `bfloat16`; None is the model's own, or float32 instead of bfloat16 on a CPU.
      **memory: `block_size`, `memory_segments` or `fam_length` override the model's own; `fam_length=0` disables FAM.

    Raises:
      ConfigError: there is no such model, its weights do not support these settings, or a setting is unknown.

    Example:
      >>> model = famjax.load("runs/fam")
      >>> model.config.memory.fam_length
      8
    """
    for name, value in memory.items():
        one_of("memory setting", name, OVERRIDES)
        if value is not None:
            check_whole(name, value, 0, MOST_TOKENS)
    if dtype is not None:
        one_of("dtype", dtype, DTYPES)
    check_mesh(dict(mesh or {}))
    return LoadedModel(loading.load(model_dir, mesh, dtype, **memory), model_dir)


def score(
    model: LoadedModel, documents: Sequence[Document], *, streaming: bool = False,
    batch_size: int = InferConfig.batch_size, on_tokens: Callable[[int], None] | None = None,
) -> list[Score]:  # fmt: skip
    """Returns the log probabilities of the tokens of each document, in order, as `famjax score` does.

    Args:
      model: from `famjax.load`.
      documents: texts or sequences of token ids, at least one token each.
      streaming: read block by block, in memory that does not grow with the documents. Results are equal up to
        float32 rounding.
      batch_size: maximum number of documents per batch.
      on_tokens: called with the number of tokens of each batch or window, for a progress bar.

    Raises:
      ConfigError: a document is empty or has a token outside the vocabulary, a log probability is not finite, or the
        directory has no tokenizer that fits the model (for texts).

    Example:
      >>> [found] = famjax.score(model, ["Once upon a time"])
      >>> found.tokens, found.logprobs.shape
      (16, (15,))
    """
    if isinstance(documents, str):
        raise ConfigError("documents is one text; give famjax.score a list of texts or of token ids")
    if not isinstance(documents, Iterable) or isinstance(documents, (Mapping, set, frozenset, *_BYTES)):
        raise ConfigError(f"documents is a {type(documents).__name__}; give a list of texts or of token ids")
    check_whole("batch_size", batch_size, 1, MOST_TOKENS)
    ids = [_ids(model, document, f"document {number}") for number, document in enumerate(documents, start=1)]
    scores: list[Score | None] = [None] * len(ids)
    for index, logprobs in score_in_batches(model.model, ids, batch_size, streaming, on_tokens):
        scores[index] = Score(np.array(logprobs), len(ids[index]))
    return [one for one in scores if one is not None]


@overload
def generate(
    model: LoadedModel, prompt: Prompt, max_tokens: int = ..., *, session: Session | None = ...,
    temperature: float = ..., top_k: int = ..., top_p: float = ..., repetition_penalty: float = ..., seed: int = ...,
    stop: Sequence[str] = ..., on_text: Callable[[str], None] | None = ...,
) -> Answer: ...  # fmt: skip
@overload
def generate(
    model: LoadedModel, prompt: list[str], max_tokens: int = ..., *, session: Session | None = ...,
    temperature: float = ..., top_k: int = ..., top_p: float = ..., repetition_penalty: float = ..., seed: int = ...,
    stop: Sequence[str] = ..., on_text: None = ...,
) -> list[Answer]: ...  # fmt: skip
def generate(
    model: LoadedModel, prompt: Prompt | list[str], max_tokens: int = InferConfig.max_tokens, *,
    session: Session | None = None, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
    repetition_penalty: float = 1.0, seed: int = 0, stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> Answer | list[Answer]:  # fmt: skip
    """Prefills a prompt of any length in constant memory and generates text, as `famjax generate` does.

    Args:
      model: from `famjax.load`.
      prompt: a text, its UTF-8 bytes, or a file opened in binary mode, which is read in chunks; or a list of texts,
        which are answered in one batch, each as if it were alone. With a session it may be empty. A byte order mark of
        bytes or a file is removed.
      max_tokens: maximum number of tokens to generate; 0 only prefills the prompt.
      session: the text to continue, from `Answer.session` or `LoadedModel.load_session`; it is not donated. None starts
        a new text.
      temperature: logits are divided by it; 0 is greedy.
      top_k, top_p, repetition_penalty: see `famjax.infer.settings.Sampling`.
      seed: sampling seed, 0..2^32-1; equal seeds give equal texts.
      stop: texts that end an answer; they are not part of it.
      on_text: called with each piece of text as it is generated. One prompt only.

    Returns:
      An `Answer`: text, token ids, `finish` (`stop` or `length`) and the session to continue from. For a list of
      prompts, a list of answers, whose sessions are None.

    Raises:
      ConfigError: an invalid setting, an empty prompt without a session, a session that another model or other memory
        settings made, no tokenizer that fits the model, or NaN logits.

    Example:
      >>> with open("book.txt", "rb") as book:
      ...     read = famjax.generate(model, book, max_tokens=0)
      >>> famjax.generate(model, "Who did it?", 20, session=read.session).text
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    stops = _check(sampling, max_tokens, seed, stop)
    model.codec.token_stops(stops)
    if session is not None:
        model.check_session(session)
    # A copy, since prefill and decoding donate their session.
    start = sessions.start(model.model) if session is None else sessions.join_rows([session])
    if not isinstance(prompt, (str, bytes, list)) and not hasattr(prompt, "read"):
        raise ConfigError(
            f"prompt is a {type(prompt).__name__}; give a text, bytes, a file opened in binary mode, or a list of texts"
        )
    if not isinstance(prompt, list):
        return _one(model, _pieces(prompt), start, session is None, max_tokens, sampling, seed, stops, on_text)
    _check_prompts(prompt, session is None, on_text)
    if not prompt:
        return []
    after = read_side_by_side(model.model, model.codec, start, prompt, fresh=session is None)
    found = answer_side_by_side(model.model, model.codec, after, len(prompt), max_tokens, sampling, seed=seed,
                                stops=stops)  # fmt: skip
    return [answer for (answer,) in found]


def _one(
    model: LoadedModel, pieces: Iterator[bytes], session: Session, fresh: bool, max_tokens: int, sampling: Sampling,
    seed: int, stops: list[str], on_text: Callable[[str], None] | None,
) -> Answer:  # fmt: skip
    first = next(pieces, b"")
    if fresh and not first:
        raise ConfigError("the prompt is empty: give it a character, or a session to continue from")
    chunks = model.codec.chunks(itertools.chain([first] if first else [], pieces), fresh)
    session = prefill(model.model, session, [chunks])
    before, tokens, stopped = np.asarray(session.recent[0]), [], False
    for piece in stream(model.model, model.codec, session, max_tokens, sampling, seed=seed, stops=stops, exact=True):
        session, stopped = piece.session, stopped or bool(piece.stopped[0])
        tokens += piece.tokens[0].tolist()
        if on_text is not None and piece.texts[0]:
            on_text(piece.texts[0])
    text, ids, ended = model.codec.answer(tokens, stopped, stops, before)
    return Answer(text, ids, "stop" if ended else "length", model.own(session))


def _pieces(prompt: Prompt) -> Iterator[bytes]:
    if isinstance(prompt, str):
        return iter([_utf8(prompt, "the prompt", "surrogateescape")])
    return without_mark([prompt] if isinstance(prompt, bytes) else _read(prompt), "the prompt")


def _read(prompt: IO[bytes]) -> Iterator[bytes]:
    while piece := prompt.read(CHUNK_BYTES):
        if not isinstance(piece, bytes):
            raise ConfigError('the prompt is a file opened in text mode; open it with open(path, "rb")')
        yield piece


def _ids(model: LoadedModel, document: Document, what: str) -> np.ndarray:
    if isinstance(document, str):
        _utf8(document, what)
        tokens = model.codec.encode(document)
    else:
        try:
            tokens = np.asarray(document)
        except ValueError:  # lists of unequal lengths
            tokens = np.zeros((0, 0))
        whole = not tokens.size or np.issubdtype(tokens.dtype, np.integer)
        if isinstance(document, _BYTES) or tokens.ndim != 1 or not whole:
            raise ConfigError(f"{what} is neither a text nor a sequence of token ids")
        outside = tokens[(tokens < 0) | (tokens >= model.config.vocab_size)]
        if outside.size:
            raise ConfigError(f"{what}: token {outside[0]} is outside the vocabulary 0..{model.config.vocab_size - 1}")
    if not len(tokens):
        raise ConfigError(f"{what} is empty; leave it out or give it a token")
    return tokens.astype(np.int32)


def _check(sampling: Sampling, max_tokens: int, seed: int, stop: Sequence[str]) -> list[str]:
    """Returns the stop texts. Raises `ConfigError` on the first invalid setting."""
    sampling.validate()
    check_whole("max_tokens", max_tokens, 0, MOST_TOKENS)
    check_whole("seed", seed, 0, 2**32 - 1)
    if isinstance(stop, str):
        raise ConfigError(f'stop is the text {stop!r}; give a list of texts, ["{stop}"]')
    stops = list(stop) if isinstance(stop, Iterable) else [stop]
    for text in stops:
        if not isinstance(text, str):
            raise ConfigError(f"stop has {text!r}, which is not a text; give a list of texts")
        _utf8(text, "a stop text", "surrogateescape")
    return stops


def _utf8(text: str, what: str, errors: str = "strict") -> bytes:
    """Returns the UTF-8 bytes of a text. Raises `ConfigError` if it has a surrogate, which is no character."""
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} has the lone surrogate {ascii(text[error.start])} at index {error.start}; it is not a character, "
            "remove it"
        ) from None


def _check_prompts(prompts: list[str], fresh: bool, on_text: Callable[[str], None] | None) -> None:
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt {number} is not a text; a list of prompts has texts only")
        _utf8(prompt, f"prompt {number}")
        if fresh and not prompt:
            raise ConfigError(f"prompt {number} is empty: give it a character, or a session to continue from")
    if on_text is not None:
        raise ConfigError("on_text is for one prompt; prompts that are answered side by side come all at once")
