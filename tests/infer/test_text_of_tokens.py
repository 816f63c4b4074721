"""Streamed text is a function of the tokens: however they are split over calls, it is that of decoding all at once."""

import io
from typing import Any

import numpy as np
import pytest

from famjax.data.vocabulary import ByteVocabulary, Vocabulary, load_vocabulary
from famjax.infer.text import TextStream, TokenTextStream
from tests.pretrained import tokenizers_of_ours

KINDS = ("byte-level", "metaspace", "SentencePiece", "shifted bytes")
REAL = [
    "a 😀 b",
    "👩‍👩‍👧 b", "Grüße, 世界! 🙂 end", "  two  spaces ", "नमस्ते दुनिया", "🏳️‍🌈🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "\ufffd and \ufffd", "e\u0301\n\n\tx", "",
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """One of every kind; each has a token for every byte."""
    if request.param == "shifted bytes":
        return ByteVocabulary(offset=3, eos=1)
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param != "SentencePiece":
        return load_vocabulary(str(tokenizers_of_ours.write(folder, request.param)))
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tokenizers_of_ours.TEXTS), model_writer=model, vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return load_vocabulary(str(folder))


def bytes_as_tokens(vocabulary: Any) -> np.ndarray:
    """The id of every byte, int [256]."""
    if isinstance(vocabulary, ByteVocabulary):
        return np.arange(256) + vocabulary.offset
    from famjax.data.vocabulary import _BYTE_LEVEL

    names = {byte: name for name, byte in _BYTE_LEVEL.items()}
    if hasattr(vocabulary, "_model"):
        return np.array([vocabulary._model.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)])
    find = vocabulary._tokenizer.token_to_id
    return np.array(
        [find(f"<0x{byte:02X}>") if find("<0x00>") is not None else find(names[byte]) for byte in range(256)]
    )


def split(ids: list[int], rng: np.random.Generator) -> list[list[int]]:
    cuts = np.sort(rng.integers(0, len(ids) + 1, rng.integers(0, 6)))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


def sequences(vocabulary: Vocabulary, rng: np.random.Generator) -> list[list[int]]:
    """Real texts, real texts with bytes lost, any tokens, bytes alone, and the hardest bytes among words."""
    tokens = bytes_as_tokens(vocabulary)
    lead = [0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xC3, 0xA9, 0xED, 0xA0, 0xFF, 0x41]
    words = vocabulary.encode("the lazy fox ").tolist()
    found = [vocabulary.encode(text).tolist() for text in REAL]
    for _ in range(25):
        text = vocabulary.encode("".join(rng.choice(REAL, 3))).tolist()
        found.append([token for token in text if rng.random() > 0.1])
        found.append(rng.integers(0, vocabulary.size, 30).tolist())
        found.append(tokens[rng.integers(0, 256, 30)].tolist())
        hard = [tokens[rng.choice(lead, rng.integers(1, 9))].tolist() + words[: rng.integers(0, 3)] for _ in range(5)]
        found.append([token for part in hard for token in part])
    return found


@pytest.mark.parametrize("seed", range(2))
def test_text_is_that_of_decoding_at_once(vocabulary: Vocabulary, seed: int) -> None:
    """Nothing that was shown changes, nothing stops the text; only an unfinished character at the end is left off."""
    rng = np.random.default_rng(seed)
    for ids in sequences(vocabulary, rng):
        whole = vocabulary.decode(ids)
        texts = []
        for calls in (split(ids, rng), [[token] for token in ids], [ids]):
            stream, text = TokenTextStream(vocabulary.certain), ""
            for call in calls:
                text += stream.feed(call)
                assert whole.startswith(text)
            texts.append(text + stream.finish())
        assert len(set(texts)) == 1
        # The bytes of an unfinished character are left off; each may be a replacement character, or all of them one.
        shorter = [vocabulary.decode(ids[: len(ids) - n]) for n in range(min(4, len(ids) + 1))]
        assert texts[0] in (*shorter, whole[:-1])
        if texts[0] != whole:  # one more token makes that certain
            again = TokenTextStream(vocabulary.certain)
            more = [*ids, int(vocabulary.encode("x")[-1])]
            assert again.feed(more) + again.finish() == vocabulary.decode(more)


@pytest.mark.parametrize("seed", range(2))
def test_text_of_sessions(vocabulary: Vocabulary, seed: int) -> None:
    """A stream that gets the tokens before it continues the text where the previous one stopped."""
    rng = np.random.default_rng(seed)
    for ids in sequences(vocabulary, rng):
        cut = int(rng.integers(0, len(ids) + 1))
        first, rest = TokenTextStream(vocabulary.certain), TokenTextStream(vocabulary.certain, before=[-1, *ids[:cut]])
        text = first.feed(ids[:cut]) + first.finish() + rest.feed(ids[cut:]) + rest.finish()
        whole = vocabulary.decode(ids)
        shorter = [vocabulary.decode(ids[: len(ids) - n]) for n in range(min(4, len(ids) + 1))]
        if "\ufffd" in whole:  # a run of bytes that later proves to be no text may have been shown as text before
            assert len(text) in {len(whole) - 1, *map(len, shorter)}
        else:
            assert text == whole


@pytest.mark.parametrize("seed", range(2))
def test_stop_texts_in_any_tokens(vocabulary: Vocabulary, seed: int) -> None:
    """The text ends before the first stop in the text of all tokens."""
    rng = np.random.default_rng(seed)
    for ids in sequences(vocabulary, rng):
        whole = vocabulary.decode(ids).rstrip("\ufffd")
        if len(whole) < 4:
            continue
        at = int(rng.integers(0, len(whole) - 2))
        stop = whole[at : at + 2]
        stream, text = TokenTextStream(vocabulary.certain, texts=[stop]), ""
        for call in split(ids, rng):
            text += stream.feed(call)
        assert text + stream.finish() == whole[: whole.find(stop)]
        assert stream.stopped


@pytest.mark.parametrize("stops", [["X", "Yd"], ["Yd", "X"]])
def test_of_two_stops_in_one_token_the_first_ends_the_text(stops: list[str]) -> None:
    words = ["a", "bXcYde", "f"]
    stream = TokenTextStream(lambda ids, final: ("".join(words[i] for i in ids), True), texts=stops)
    assert stream.feed([0, 1, 2]) + stream.finish() == "ab"
    assert stream.stopped and stream.taken == 2


def test_tokens_that_end_a_text_are_counted(vocabulary: Vocabulary) -> None:
    """A stop that the device has found is not shown, but taken, as all tokens before it."""
    ids, stop = vocabulary.encode("the lazy fox").tolist(), vocabulary.encode(" jumps").tolist()
    stream = TokenTextStream(vocabulary.certain, stops=[stop])
    text = stream.feed(ids[:2])
    assert stream.taken == 2 and not stream.stopped
    text += stream.feed([*ids[2:], *stop], stopped=True)
    assert text + stream.finish() == vocabulary.decode(ids)
    assert stream.taken == len(ids) + len(stop) and stream.stopped


def test_tokens_that_only_the_model_has(vocabulary: Vocabulary) -> None:
    """A model's vocabulary may be padded: its tokens beyond the tokenizer's have no text, and break no answer."""
    ids = vocabulary.encode("the lazy fox").tolist()
    padded = [part for token in ids for part in (token, vocabulary.size, vocabulary.size + 5)]
    stream = TokenTextStream(vocabulary.certain)
    assert stream.feed(padded) + stream.finish() == vocabulary.decode(padded) == vocabulary.decode(ids)
    assert vocabulary.token_bytes(vocabulary.size + 5) == b""


def test_the_stop_that_is_complete_first_ends_the_text(vocabulary: Vocabulary) -> None:
    """Of two stops that overlap, whichever way the tokens come; tokens after it change nothing."""
    ids = vocabulary.encode("the lazy fox jumps over").tolist()
    texts = []
    for calls in ([[token] for token in ids], [ids]):
        stream = TokenTextStream(vocabulary.certain, texts=["lazy fox jumps", "azy f"])
        texts.append("".join(map(stream.feed, calls)) + stream.finish())
    assert texts == ["the l", "the l"]


def test_bytes_in_any_split() -> None:
    """The same for models of plain bytes."""
    rng = np.random.default_rng(0)
    for ids in sequences(ByteVocabulary(), rng):
        stream, text = TextStream(), ""
        for call in split(ids, rng):
            text += stream.feed(call)
        whole = bytes(ids).decode(errors="replace")
        assert whole.startswith(text + stream.finish()) and len(whole) - len(text) <= 1
