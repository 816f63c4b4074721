"""Bytes to text while they come: whole characters, and nothing of a stop sequence."""

import numpy as np
import pytest

from famjax.infer.text import TextStream

TEXT = "Grüße, 世界! 🙂 e\u0301nd"


def pieces(data: bytes, seed: int) -> list[bytes]:
    cuts = np.random.default_rng(seed).integers(0, len(data) + 1, 8)
    edges = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize("seed", range(5))
def test_characters_are_never_broken(seed: int) -> None:
    """However the bytes are cut, every piece of text is a prefix of what is left, and nothing is lost."""
    stream, out = TextStream(), ""
    for piece in [bytes([b]) for b in TEXT.encode()] if seed == 0 else pieces(TEXT.encode(), seed):
        out += stream.feed(piece)
        assert TEXT.startswith(out)
    assert out + stream.finish() == TEXT


def test_a_character_across_two_streams() -> None:
    """A session that ends within a character gives nothing of it; the next one gives it whole."""
    data = TEXT.encode()
    for cut in range(len(data) + 1):
        first = TextStream()
        begin = first.feed(data[:cut]) + first.finish()
        rest = TextStream(before=[-1, *data[:cut]])
        assert begin + rest.feed(data[cut:]) + rest.finish() == TEXT


def test_bytes_that_are_no_text_are_replaced() -> None:
    """Stray continuation bytes, broken characters and tokens beyond the bytes; the text after them is whole."""
    assert TextStream().feed([0x41, 0x80, 0x42, 300, 0xE4, 0xB8, 0x43]) == "A\ufffdB\ufffd\ufffdC"


@pytest.mark.parametrize("seed", range(5))
def test_stops_are_held_back_until_decided(seed: int) -> None:
    """Nothing of a stop is shown, however it is cut; what only began like one is shown in the end."""
    stops = [list(b"\n\nUser:"), list("ß!".encode())]
    data = "a\n\nUse\n\nß?\n\nUser:".encode()
    stream, out = TextStream(stops), ""
    for piece in pieces(data[:-1], seed):
        out += stream.feed(piece)
        assert "a\n\nUse\n\nß?".startswith(out)
    out += stream.feed(data[-1:], stopped=True)
    assert out + stream.finish() == "a\n\nUse\n\nß?"
    unfinished = TextStream(stops)
    assert unfinished.feed(b"a\n\nUse") == "a"
    assert unfinished.finish() == "\n\nUse"


def test_the_longest_stop_is_taken_away() -> None:
    stops = [list(b"b"), list(b"ab"), list(b"zab")]
    stream = TextStream(stops)
    assert stream.feed(b"xab", stopped=True) + stream.finish() == "x"
