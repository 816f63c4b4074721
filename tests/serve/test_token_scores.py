"""The scores of tokens in responses: the same in a stream as in a whole answer, in text that any tokens decode to."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from famjax.data.vocabulary import ByteVocabulary, Vocabulary
from famjax.infer.codec import Codec
from famjax.infer.rows import Scored
from famjax.infer.settings import RECENT
from famjax.serve import fields
from famjax.serve.answers import Answer
from famjax.serve.jobs import Generated, Read
from tests.infer.test_text_of_tokens import bytes_as_tokens, sequences, split
from tests.infer.test_text_of_tokens import vocabulary as vocabulary  # a fixture


def scored(tokens: list[int]) -> Scored:
    """A score for each token that names it, and no alternatives."""
    none = np.zeros((len(tokens), 0), np.int32)
    return Scored(-np.asarray(tokens, np.float32), none, none.astype(np.float32))


def respond(
    vocabulary: Vocabulary, body: dict, prompt: list[int], calls: list[list[int]], stops: Sequence[str] = ()
) -> tuple[Any, list[Any]]:  # fmt: skip
    """The choice of a whole response, and those of the chunks of its stream, for tokens that come in these calls."""
    codec = Codec.of(vocabulary)
    service: Any = SimpleNamespace(
        codec_for=lambda asked: codec, stops=lambda asked: list(stops), max_tokens=lambda asked: asked.max_tokens,
        config=SimpleNamespace(name="tiny"),
    )  # fmt: skip
    asked = fields.chat(body) if "messages" in body else fields.completion(body, vocabulary.size)
    answer = Answer(service, asked, [np.array(prompt, np.int32)])
    before = np.array(([-1] * RECENT + prompt)[-RECENT:], np.int32)
    stream = codec.stream(stops, before)
    chunks = list(answer.take(0, Read(0, before, scored(prompt[1:]) if asked.echo else None)))
    for call in calls:
        text, ended = stream.feed(call), "stop" if stream.stopped else ""
        chunks += answer.take(0, Generated(0, text, np.array(call, np.int32), scored(call), ended))
        if stream.stopped:
            return answer.whole()["choices"][0], []
    if asked.max_tokens:
        chunks += answer.take(0, Generated(0, stream.finish(), np.zeros(0, np.int32), scored([]), "length"))
    return answer.whole()["choices"][0], [chunk["choices"][0] for chunk in chunks]


@pytest.mark.parametrize("echo", [False, True])
def test_offsets(vocabulary: Vocabulary, echo: bool) -> None:
    """A stream's text and scores are those of the whole answer. Offsets ascend, the answer's from the end of the echoed
    prompt; at a token's offset is its text, and parts of a character have the offset of the character."""
    rng = np.random.default_rng(0)
    for ids in sequences(vocabulary, rng):
        ids = [token for token in ids if token != vocabulary.eos]
        if len(ids) < 2:
            continue
        cut = int(rng.integers(1, len(ids)))
        prompt, rest = ids[:cut], ids[cut:]
        body = {"prompt": prompt, "logprobs": 0, "echo": echo}
        whole, chunks = respond(vocabulary, body, prompt, split(rest, rng))
        assert "".join(one["text"] for one in chunks) == whole["text"]
        for name, values in whole["logprobs"].items():
            assert [x for one in chunks if one["logprobs"] for x in one["logprobs"][name]] == values
        offsets, shown = whole["logprobs"]["text_offset"], whole["logprobs"]["tokens"]
        assert len(offsets) == len(ids if echo else rest) and offsets == sorted(offsets)
        first = len(prompt) if echo else 0
        assert offsets[first] == (len(vocabulary.decode(prompt)) if echo else 0)
        if "\ufffd" not in vocabulary.decode(ids) and "\ufffd" not in vocabulary.decode(prompt):
            for at, token in zip(offsets[first:], shown[first:], strict=True):
                text = whole["text"][at:]
                assert "\ufffd" in token or text.lstrip(" ").startswith(token.lstrip(" "))


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("top", [{}, {"logprobs": 5}])
def test_an_answer_without_tokens_is_the_same_in_a_stream(top: dict, echo: bool) -> None:
    """`max_tokens` 0: the only chunk is the whole choice, with the same scores: null, none, or the prompt's."""
    body = {"prompt": "ab", "max_tokens": 0, "echo": echo, **top}
    whole, chunks = respond(ByteVocabulary(), body, list(b"ab"), [])
    assert chunks == [whole] and whole["finish_reason"] == "length"
    assert whole["logprobs"] is None if not top else len(whole["logprobs"]["tokens"]) == 2 * echo


def test_offsets_of_a_character_in_parts() -> None:
    """ "a世b", in bytes after the prompt "é": with echo, at 1, 2, 2, 2 and 3."""
    answer = [[97, 0xE4], [0xB8], [0x96, 98]]
    body = {"prompt": "é", "logprobs": 0, "echo": True}
    whole, _ = respond(ByteVocabulary(), body, list("é".encode()), answer)
    assert whole["text"] == "éa世b" and whole["logprobs"]["text_offset"] == [0, 0, 1, 2, 2, 2, 3]


def test_the_tokenizer_s_bos_token_takes_no_place(vocabulary: Vocabulary) -> None:
    """It is among the tokens of a prompt given as text, but not in that text."""
    codec = Codec.of(vocabulary)
    prompt = codec.encode("the fox").tolist()
    whole, _ = respond(vocabulary, {"prompt": "the fox", "logprobs": 0, "echo": True}, prompt, [prompt[-1:]])
    offsets, added = whole["logprobs"]["text_offset"], codec.bos is not None
    assert offsets[: added + 1] == [0] * (added + 1) and offsets[-1] == len("the fox")


def test_bytes_of_parts_of_characters(vocabulary: Vocabulary) -> None:
    """Joined, the bytes of a chat's tokens are its text."""
    tokens = [int(bytes_as_tokens(vocabulary)[byte]) for byte in "世é😀".encode()]
    body = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 0}
    whole, _ = respond(vocabulary, body, [tokens[0]], [[5], tokens])
    found = [one["bytes"] for one in whole["logprobs"]["content"]]
    assert found[1:] == [[byte] for byte in "世é😀".encode()]
    assert bytes(found[0]).decode() == vocabulary.decode([5])


def test_a_stop_at_a_space_has_no_score(vocabulary: Vocabulary) -> None:
    """The space at the beginning of an answer is a part of its stop, though a text alone would not show it."""
    prompt, answer = (vocabulary.encode(text).tolist() for text in ("the lazy", " fox"))
    text = vocabulary.decode([*prompt, *answer])[len(vocabulary.decode(prompt)) :]
    calls = [[token] for token in answer]
    whole, _ = respond(vocabulary, {"prompt": prompt, "logprobs": 0}, prompt, calls, [text])
    assert (whole["text"], whole["finish_reason"], whole["logprobs"]["tokens"]) == ("", "stop", [])
