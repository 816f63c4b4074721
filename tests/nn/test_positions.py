"""RoPE depends on position differences only: a text's position, or a random offset, changes nothing but rounding."""

import dataclasses

import numpy as np
import pytest

from famjax.config import ModelConfig
from tests import reference, tiny

LENGTH = 22
FAR = 10_000_000
CASES = {
    "last": tiny.config(),
    "float-three-fams-segments3": tiny.config(fam_position="float", previous_fams=3, memory_segments=3),
    "last-segments0-real-base": tiny.config(memory_segments=0, rope_base=10000.0),
    "bswa-segments3": tiny.config(fam_length=0, memory_segments=3),
}


@pytest.mark.parametrize("name", CASES)
def test_ten_millionth_token(name: str) -> None:
    """A memory with the same contents and a position 10,000,000 tokens higher gives the same outputs.

    10,000,000 is a multiple of the ring's length here, so every block keeps its slot.
    """
    config = CASES[name]
    ring = config.memory.block_size * (config.memory.memory_segments + 1)
    assert FAR % ring == 0
    params, text = tiny.parameters(config), tiny.tokens(config, 4, LENGTH, seed=1)
    for read in (ring, ring + 3):
        _, near = tiny.stream(config, params, tiny.tokens(config, 4, read))
        far = dataclasses.replace(near, position=near.position + FAR, fam_updates=near.fam_updates + FAR // 4)
        expected, _ = tiny.stream(config, params, text, near)
        actual, after = tiny.stream(config, params, text, far)
        tiny.assert_close(actual, expected)
        assert after.position.tolist() == [FAR + read + LENGTH] * 4
        if read == ring:
            tiny.assert_close(tiny.whole(config, params, text, far)[0], expected)


def test_ten_millionth_token_is_like_the_first() -> None:
    """Without memory segments, the first tokens of a text have the same outputs at position 0 and at 10,000,000.

    Only the number of FAM updates would distinguish them (the first update has no residual): it is kept at 0.
    """
    config = CASES["last-segments0-real-base"]
    params, text = tiny.parameters(config), tiny.tokens(config, 4, LENGTH)
    start = tiny.initial_state(config, params, 4)
    far = dataclasses.replace(start, position=start.position + FAR)
    expected = np.stack([reference.run(config, params, row).hidden_TD for row in text])
    tiny.assert_close(tiny.stream(config, params, text, far)[0], expected)
    tiny.assert_close(tiny.whole(config, params, text, far)[0], expected)


@pytest.mark.parametrize("name", ["last", "float-three-fams-segments3"])
def test_reference_is_shift_invariant(name: str) -> None:
    """The paper's equations with absolute positions in float64 are invariant to a common shift."""
    config = CASES[name]
    params, text = tiny.parameters(config), tiny.tokens(config, 1, LENGTH)[0]
    near, far = (reference.run(config, params, text, start=start) for start in (0, FAR))
    tiny.assert_close(far.hidden_TD, near.hidden_TD, 1e-7)
    tiny.assert_close(far.fam_LPFD, near.fam_LPFD, 1e-7)


def offsets(config: ModelConfig) -> np.ndarray:
    """Returns one random position offset per row, as in training: 0 to 2 pi base; the first row's is 0."""
    return np.array([0, 1, 50, int(2 * np.pi * config.rope_base)], np.int32)


@pytest.mark.parametrize("position", ["last", "float"])
def test_random_offset_changes_nothing(position: str) -> None:
    """Paper section 2: under these schemes, an offset of all positions changes no score."""
    config = tiny.config(fam_position=position)
    params, text = tiny.parameters(config), tiny.tokens(config, 4, LENGTH)
    plain, _ = tiny.whole(config, params, text)
    shifted, _ = tiny.whole(config, params, text, shift_B=offsets(config))
    tiny.assert_close(shifted, plain)
    streamed, _ = tiny.stream(config, params, text, shift_B=offsets(config))
    tiny.assert_close(streamed, plain)


def test_random_offset_under_zero_positions() -> None:
    """With FAM always at position 0 and tokens at t + offset, the offset has an effect, as in the reference."""
    config = tiny.config(fam_position="zero")
    params, text = tiny.parameters(config), tiny.tokens(config, 4, LENGTH)
    rows = zip(text, offsets(config).tolist(), strict=True)
    expected = np.stack([reference.run(config, params, row, start=start).hidden_TD for row, start in rows])
    unshifted = reference.run(config, params, text[2]).hidden_TD
    assert np.abs(expected[2] - unshifted).max() > 0.01
    tiny.assert_close(tiny.whole(config, params, text, shift_B=offsets(config))[0], expected)
    tiny.assert_close(tiny.stream(config, params, text, shift_B=offsets(config))[0], expected)
