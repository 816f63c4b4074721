"""Parses and checks the fields of a request. An unsupported field is refused by name unless its value has no effect."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from famjax.config import ConfigError
from famjax.infer.settings import FLOATS, MOST_TOKENS, RECENT, Sampling
from famjax.serve.errors import ApiError

COMPLETION_TOKENS = 16  # the API's default for completions
MOST_PROMPTS, MOST_STOPS, MOST_TOP, MOST_COMPLETION_TOP = 1024, 16, 20, 5

# Unsupported fields of the API, and the values that are accepted because they have no effect. null is always accepted.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "best_of": (1,), "logit_bias": ({},), "suffix": ("",),
    "tools": ([],), "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},), "functions": ([],),
    "modalities": (["text"],), "parallel_tool_calls": (True, False), "service_tier": ("auto", "default"),
    "store": (False,), "function_call": ("none", "auto"), "audio": (), "prediction": (), "reasoning_effort": ("none",),
    "verbosity": ("medium",), "web_search_options": (), "prompt_cache_retention": (), "moderation": (),
}  # fmt: skip
# Fields that label a request for the provider's records. They are accepted, have no effect, and are not stored.
_LABELS = ("user", "safety_identifier", "prompt_cache_key", "metadata")
_SHARED = (
    "model", "n", "stop", "seed", "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "stream",
    "stream_options", "session", "logprobs",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """A parsed request.

    Attributes:
      model: name of the model; None if the request has none.
      prompts: prompts of a completion request, texts or token ids; empty for a chat.
      messages: `role` and `content` of each message of a chat; empty for completions.
      n: number of samples per prompt.
      max_tokens: maximum tokens per answer; None is the server's default.
      sampling, seed: sampling settings; a request without a seed gets a random one.
      stops: stop texts.
      echo: whether the returned text begins with the prompt.
      top: number of alternatives to return with the scores of each token; None: no scores.
      stream: whether the answer is sent as server-sent events.
      include_usage: whether the last event has the usage.
      session: name of the session to continue, or None.
    """

    model: str | None
    prompts: list[str | list[int]]
    messages: list[dict[str, str]]
    n: int
    max_tokens: int | None
    sampling: Sampling
    seed: int
    stops: list[str]
    echo: bool
    top: int | None
    stream: bool
    include_usage: bool
    session: str | None


def completion(body: Any, vocab_size: int) -> Asked:
    """Parses the JSON body of a completion request. Raises `ApiError` 400 if a field is invalid."""
    fields = _object(body, (*_SHARED, "prompt", "echo"))
    top = _integer(fields, "logprobs", None, 0, MOST_COMPLETION_TOP)
    return _asked(
        fields, prompts=_prompts(fields.get("prompt"), vocab_size), messages=[], echo=_flag(fields, "echo"), top=top,
        max_tokens=_integer(fields, "max_tokens", COMPLETION_TOKENS, 0, MOST_TOKENS),
    )  # fmt: skip


def chat(body: Any) -> Asked:
    """Parses the JSON body of a chat request. Raises `ApiError` 400 if a field is invalid."""
    fields = _object(body, (*_SHARED, "messages", "max_completion_tokens", "top_logprobs"))
    top = _integer(fields, "top_logprobs", None, 0, MOST_TOP)
    wanted = _flag(fields, "logprobs")
    if top is not None and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    names = [name for name in ("max_completion_tokens", "max_tokens") if fields.get(name) is not None]
    if len(names) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens are the same; give one", param="max_tokens")
    most = _integer(fields, names[0], None, 1, MOST_TOKENS) if names else None
    return _asked(
        fields, prompts=[], messages=_messages(fields.get("messages")), echo=False, max_tokens=most,
        top=(top or 0) if wanted else None,
    )  # fmt: skip


def _asked(fields: Mapping[str, Any], **own: Any) -> Asked:
    sampling = Sampling(
        temperature=_number(fields, "temperature", 1.0), top_k=_integer(fields, "top_k", 0, 0, MOST_TOKENS) or 0,
        top_p=_number(fields, "top_p", 1.0), repetition_penalty=_number(fields, "repetition_penalty", 1.0),
    )  # fmt: skip
    try:
        sampling.validate()
    except ConfigError as error:
        raise ApiError(400, str(error), param=str(error).split()[0]) from error
    options = fields.get("stream_options", {})
    stream = _flag(fields, "stream")
    if isinstance(options, dict):
        options = {key: x for key, x in options.items() if x is not None and (key, x) != ("include_obfuscation", False)}
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise ApiError(400, "stream_options takes include_usage: true or false", param="stream_options")
    if options and not stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
    seed = _integer(fields, "seed", None, 0, 2**32 - 1)
    return Asked(
        model=_text(fields, "model"), n=_integer(fields, "n", 1, 1, 128) or 1, sampling=sampling,
        seed=int.from_bytes(os.urandom(4), "little") if seed is None else seed, stops=_stops(fields.get("stop")),
        stream=stream, include_usage=_flag(options, "include_usage"), session=_text(fields, "session"), **own,
    )  # fmt: skip


def _object(body: Any, supported: Sequence[str]) -> dict[str, Any]:
    """Returns the supported fields that are not null. Raises `ApiError` if another field may have an effect."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    for name, value in body.items():
        if name in (*supported, *_LABELS) or value is None or _is_neutral(name, value):
            continue
        what = "is not supported here" if name in _NEUTRAL else "is no field of this request"
        raise ApiError(400, f"{name!r} {what}; leave it out", param=name, code="unsupported_field")
    return {name: value for name, value in body.items() if name in supported and value is not None}


def _is_neutral(name: str, value: Any) -> bool:
    """Returns whether the value of an unsupported field has no effect. Here True does not equal 1, nor False 0."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in _NEUTRAL.get(name, ()))


def _integer(fields: Mapping[str, Any], name: str, default: int | None, least: int, most: int) -> int | None:
    value = fields.get(name, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ApiError(400, f"{name} is {_shown(value)}; it must be a whole number", param=name)
    if not least <= value <= most:
        raise ApiError(400, f"{name} is {_shown(value)}; it must be {least} to {most}", param=name)
    return value


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ApiError(400, f"{name} is {_shown(value)}; it must be a number", param=name)
    least, most = FLOATS
    if value != 0 and not least <= abs(value) <= most:
        raise ApiError(400, f"{name} is {_shown(value)}; it must be 0, or {least:g} to {most:g}", param=name)
    return float(value)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} is {_shown(value)}; it must be true or false", param=name)
    return value


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, f"{name} is {_shown(value)}; it must be a text", param=name)
    return value


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ApiError(400, f"stop is {_shown(value)}; it must be a text or a list of texts", param="stop")
    if len(stops) > MOST_STOPS:
        raise ApiError(400, f"stop has {len(stops)} texts; give at most {MOST_STOPS}", param="stop")
    for stop in stops:
        if not 0 < len(stop.encode("utf-8")) <= RECENT:
            raise ApiError(400, f"stop {_shown(stop)} must have 1 to {RECENT} bytes", param="stop")
    return stops


def _prompts(value: Any, vocab_size: int) -> list[str | list[int]]:
    """Returns the prompts of the field `prompt`: a text, a list of token ids, or a list of these."""
    if value is None:
        raise ApiError(400, "there is no prompt; give a text, token ids, or a list of such", param="prompt")
    is_ids = lambda x: isinstance(x, list) and bool(x) and all(type(token) is int for token in x)
    prompts = [value] if isinstance(value, str) or is_ids(value) else value
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) or is_ids(p) for p in prompts):
        raise ApiError(400, "prompt must be a text, token ids, or a list of such, and not empty", param="prompt")
    if len(prompts) > MOST_PROMPTS:
        raise ApiError(400, f"prompt has {len(prompts)} texts; give at most {MOST_PROMPTS} a request", param="prompt")
    for prompt in prompts:
        if not isinstance(prompt, str) and not (min(prompt) >= 0 and max(prompt) < vocab_size):
            raise ApiError(400, f"a token of the prompt is outside the vocabulary 0..{vocab_size - 1}", param="prompt")
    return prompts


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages must be a list of at least one message", param="messages")
    return [_message(one, f"messages[{i}]") for i, one in enumerate(value)]


def _message(one: Any, place: str) -> dict[str, str]:
    """Returns `role` and `content` of a message, whose content may be a list of parts of type text."""
    if not isinstance(one, dict) or not isinstance(one.get("role"), str):
        raise ApiError(400, f"{place} must be an object with role and content", param=place)
    if extra := [name for name, x in one.items() if name not in ("role", "content") and x not in (None, [], "")]:
        raise ApiError(400, f"{place}.{extra[0]} is not supported; leave it out", param=f"{place}.{extra[0]}")
    content = one.get("content")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise ApiError(400, f"{place}.content: only parts of type text are supported", param=f"{place}.content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(400, f"{place}.content must be a text", param=f"{place}.content")
    return {"role": one["role"], "content": content}


def _shown(value: Any) -> str:
    """Formats a value for an error message, as one short line. Of lists and objects, which may be large, only the size
    is shown."""
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)} fields"
    text = ascii(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."
