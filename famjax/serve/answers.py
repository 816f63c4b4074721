"""Builds responses in the API's format from the engine's events: whole answers, and the chunks of a stream."""

import copy
import dataclasses
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from famjax.infer.codec import Stream
from famjax.infer.rows import Scored
from famjax.serve.fields import Asked
from famjax.serve.jobs import Event, Generated, Read
from famjax.serve.service import Service


@dataclasses.dataclass
class Choice:
    """One sample of a prompt, as generated so far.

    Attributes:
      text: the text that later tokens cannot change.
      tokens: the token ids, including a stop.
      scores: log probabilities of the tokens, one entry per event; empty if the request wants none.
      characters: decodes the tokens, to count the characters before each; None if no offsets are shown.
      offsets: for each token, the index in the returned text at which it begins: the number of complete characters
        before it. Tokens that are parts of one character have the same offset.
      ended: `stop` or `length` at the end; else empty.
      told: number of tokens whose scores have been sent in chunks.
      before: the last tokens before the answer.
    """

    text: str = ""
    tokens: list[int] = dataclasses.field(default_factory=list)
    scores: list[Scored] = dataclasses.field(default_factory=list)
    characters: Stream | None = None
    offsets: list[int] = dataclasses.field(default_factory=list)
    ended: str = ""
    told: int = 0
    before: Sequence[int] | np.ndarray = ()
    _at: int = 0  # number of characters before the next token

    def begin(self, characters: Stream, at: int) -> None:
        """Sets the decoder that counts characters, of which `at` come before the first token."""
        self.characters, self._at = characters, at

    def add(self, tokens: list[int]) -> None:
        """Adds tokens, and their offsets if these are shown."""
        self.tokens += tokens
        if self.characters is not None:
            more, self._at = _offsets(self.characters, tokens, self._at)
            self.offsets += more


class Answer:
    """Collects the events of a request, whose prompts are given as token ids, and builds its response."""

    def __init__(self, service: Service, asked: Asked, prompts: list[np.ndarray]):
        self._service, self._asked, self._prompts = service, asked, prompts
        self._codec = service.codec_for(asked)
        self._stops = service.stops(asked)
        self._is_chat = bool(asked.messages)
        self._choices = [Choice() for _ in range(len(prompts) * asked.n)]
        self._read: list[Read | None] = [None] * len(prompts)
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def take(self, prompt: int, event: Event) -> Iterator[dict[str, Any]]:
        """Records an event of prompt number `prompt`, and yields the chunks that a stream sends for it."""
        n = self._asked.n
        if isinstance(event, Read):
            self._read[prompt] = event
            reads_only = self._service.max_tokens(self._asked) == 0
            for index in range(prompt * n, prompt * n + n):
                self._choices[index].ended = "length" if reads_only else ""
                self._choices[index].before = event.before
                if self._asked.top is not None and not self._is_chat:
                    before = self._codec.stream((), event.before)
                    self._choices[index].begin(before, len(self._echo(prompt)))
                yield from self._first_chunk(index, prompt)
        elif isinstance(event, Generated):
            index = prompt * n + event.sample
            choice = self._choices[index]
            choice.text += event.text
            choice.add(event.tokens.tolist())
            if event.scores is not None:
                choice.scores.append(event.scores)
            choice.ended = event.ended
            if event.text or event.ended or self._asked.top is not None:
                yield self._chunk(index, event.text, self._new_scores(choice), event.ended or None)

    # --- a whole answer ---------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """Returns the whole response. Call it after `take` has processed all events."""
        kind = "chat.completion" if self._is_chat else "text_completion"
        choices = [self._choice(index) for index in range(len(self._choices))]
        return {**self._head(kind), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Returns the API's `usage` object: numbers of prompt tokens, generated tokens and cached prompt tokens."""
        given, made = sum(map(len, self._prompts)), sum(len(choice.tokens) for choice in self._choices)
        cached = sum(read.cached for read in self._read if read is not None)
        return {
            "prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip

    def _choice(self, index: int) -> dict[str, Any]:
        choice, prompt = self._choices[index], index // self._asked.n
        scores = self._shown_scores(choice, self._kept(choice), prompt if self._asked.echo else None)
        ended = {"index": index, "finish_reason": choice.ended, "logprobs": scores}
        if self._is_chat:
            return {**ended, "message": {"role": "assistant", "content": choice.text, "refusal": None}}
        return {**ended, "text": self._echo(prompt) + choice.text}

    def _kept(self, choice: Choice) -> int:
        """Returns the number of tokens whose scores are shown: all tokens, or all before the stop."""
        if self._asked.top is None or choice.ended != "stop":
            return len(choice.tokens)
        stopped = choice.tokens[-1:] != [] and any(
            choice.tokens[-len(stop) :] == list(stop) for stop in self._codec.token_stops(self._stops)
        )
        return len(self._codec.answer(choice.tokens, stopped, self._stops, choice.before)[1])

    def _echo(self, prompt: int) -> str:
        if not self._asked.echo:
            return ""
        given = self._asked.prompts[prompt]
        return given if isinstance(given, str) else self._codec.vocabulary.decode(given)

    # --- a stream ---------------------------------------------------------------------------------

    def last_chunk(self) -> dict[str, Any]:
        """Returns the last chunk, which has the usage and no choices."""
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage()}

    def _first_chunk(self, index: int, prompt: int) -> Iterator[dict[str, Any]]:
        ended = self._choices[index].ended or None
        if self._is_chat:
            yield self._chunk(index, "", None, None, role=True)
        elif self._asked.echo or ended:
            scores = self._shown_scores(self._choices[index], 0, prompt if self._asked.echo else None)
            yield self._chunk(index, self._echo(prompt), scores, ended)

    def _new_scores(self, choice: Choice) -> dict[str, Any] | None:
        """Returns the scores of the tokens since the last chunk. If the request has stop texts, which may remove tokens
        from the end, all scores are in the choice's last chunk."""
        if self._asked.top is None or (self._stops and not choice.ended):
            return None
        begin, choice.told = choice.told, self._kept(choice)
        return self._shown_scores(choice, choice.told, None, begin)

    def _chunk(
        self, index: int, text: str, scores: dict[str, Any] | None, ended: str | None, role: bool = False
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": ended, "logprobs": scores}
        if self._is_chat:
            delta = {"role": "assistant", "content": ""} if role else {"content": text} if text else {}
            return {**self._head("chat.completion.chunk"), "choices": [{**choice, "delta": delta}]}
        return {**self._head("text_completion"), "choices": [{**choice, "text": text}]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._service.config.name}

    # --- scores -----------------------------------------------------------------------------------

    def _shown_scores(self, choice: Choice, end: int, echo: int | None, begin: int = 0) -> dict[str, Any] | None:
        """Returns the scores of generated tokens `begin` to `end`, preceded by those of prompt number `echo` unless it
        is None. Returns None if the request wants no scores."""
        if self._asked.top is None:
            return None
        places: list[_Place] = []
        offsets: list[int] = []
        if echo is not None and (read := self._read[echo]) is not None and read.scores is not None:
            given = self._prompts[echo].tolist()
            unknown = len(given) - len(read.scores.logprob)  # the first token of a text has no score
            places += [_Place(token, None) for token in given[: max(unknown, 0)]]
            places += _places(given[max(unknown, 0) :], read.scores, max(-unknown, 0))
            offsets += [] if self._is_chat else self._prompt_offsets(echo)
        if choice.scores:
            together = Scored(*(np.concatenate(parts) for parts in zip(*choice.scores, strict=True)))
            places += _places(choice.tokens[:end], together)[begin:]
        if self._is_chat:
            return self._chat_scores(places)
        return {
            "tokens": [self._token(place.token) for place in places],
            "token_logprobs": [place.logprob for place in places],
            "top_logprobs": [self._best(place) for place in places],
            "text_offset": offsets + choice.offsets[begin:end],
        }

    def _token(self, token: int) -> str:
        return self._codec.vocabulary.decode([token])

    def _prompt_offsets(self, prompt: int) -> list[int]:
        """Returns the index in the echoed text at which each token of a prompt begins."""
        tokens, text = self._prompts[prompt].tolist(), self._echo(prompt)
        # The tokenizer's BOS token is before the text, not in it.
        added = tokens[:1] == [self._codec.bos] and not text.startswith(self._token(tokens[0]))
        offsets, _ = _offsets(self._codec.stream(()), tokens[added:], 0)
        return [0] * added + [min(offset, len(text)) for offset in offsets]

    def _best(self, place: "_Place") -> dict[str, float] | None:
        """Returns log probabilities by token text, of the alternatives and the token itself; None without a score."""
        if place.logprob is None:
            return None
        best: dict[str, float] = {}
        for token, logprob in place.best[: self._asked.top]:
            best.setdefault(self._named(token, best), logprob)
        if place.token not in [token for token, _ in place.best[: self._asked.top]]:
            best.setdefault(self._named(place.token, best), place.logprob)
        return best

    def _named(self, token: int, taken: dict[str, float]) -> str:
        """Returns a token's text, or `token_id:N` if another token in `taken` has the same text, as parts of characters
        have."""
        text = self._token(token)
        return text if text not in taken else f"token_id:{token}"

    def _chat_scores(self, places: list["_Place"]) -> dict[str, Any]:
        # Joined, the bytes of tokens that are parts of a character are that character.
        one = lambda token, logprob: {
            "token": self._token(token), "logprob": logprob, "bytes": list(self._codec.vocabulary.token_bytes(token))
        }  # fmt: skip
        return {
            "content": [
                {**one(place.token, place.logprob), "top_logprobs": [one(*b) for b in place.best[: self._asked.top]]}
                for place in places
            ],
            "refusal": None,
        }


@dataclasses.dataclass(frozen=True)
class _Place:
    """A token, its natural-log probability (or None), and the most likely (token, logprob) at its position."""

    token: int
    logprob: float | None
    best: list[tuple[int, float]] = dataclasses.field(default_factory=list)


def _offsets(characters: Stream, tokens: list[int], at: int) -> tuple[list[int], int]:
    """Returns the number of characters before each token, of which `at` come before the first, and that after them."""
    offsets = []
    for token in tokens:
        # A copy, since the text goes on. Bytes that are held back, as they may yet prove to be no text, count as text.
        offsets.append(at + len(copy.copy(characters).finish()))
        at += len(characters.feed([token]))
    return offsets, at


def _places(tokens: list[int], scores: Scored, skip: int = 0) -> list[_Place]:
    """Returns tokens with their scores. The first `skip` scores belong to earlier tokens and are left out."""
    parts = (np.asarray(x)[skip:] for x in scores)
    return [
        _Place(token, float(logprob), list(zip(best.tolist(), map(float, best_logprob), strict=True)))
        for token, logprob, best, best_logprob in zip(tokens, *parts, strict=False)
    ]
