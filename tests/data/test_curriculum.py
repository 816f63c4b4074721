"""The curriculum over filler: which stages are drawn, when the next one opens, and running means of recent answers."""

import collections

import numpy as np
import pytest

from famjax.config import PassKeyConfig
from famjax.data.curriculum import Curriculum, straddle, with_answer

S = 8


def curriculum(**settings) -> Curriculum:
    return Curriculum.of(PassKeyConfig(stages=(1, 2, 4, 8), **settings), S, lambda filler: True)


def drawn(made: Curriculum, open_stages: int, most: int, count: int = 4000) -> dict[tuple[int, int] | None, float]:
    """Returns the frequency of each range of lengths."""
    rng = np.random.default_rng(0)
    found = collections.Counter(made.lengths(rng, open_stages, most) for _ in range(count))
    return {lengths: number / count for lengths, number in found.items()}


@pytest.mark.parametrize(("share", "open_stages"), [(0.6, 3), (0.0, 4), (1.0, 2), (0.6, 1)])
def test_the_newest_stage_is_drawn_as_often_as_asked(share, open_stages):
    """With `newest_share` the newest open stage, else one of all open ones, each as often: 4,000 draws, within 4
    standard errors. A stage begins after the longest filler of the one before and has every alignment of its own."""
    ranges = [(0, 2 * S - 1), (2 * S, 3 * S - 1), (3 * S, 5 * S - 1), (5 * S, 9 * S - 1)][:open_stages]
    expected = dict.fromkeys(ranges, (1 - share) / open_stages)
    expected[ranges[-1]] += share
    found = drawn(curriculum(newest_share=share), open_stages, 1000)
    assert set(found) <= set(expected)
    for lengths, p in expected.items():
        assert abs(found.get(lengths, 0) - p) <= 4 * np.sqrt(p * (1 - p) / 4000)


def test_what_fits_is_drawn():
    """A row's rest may be too short for the newest stages: then all others are drawn equally often, and the longest of
    them ends where the row does. If none fits, there is no document."""
    found = drawn(curriculum(newest_share=1.0), 4, 4 * S)
    assert set(found) == {(0, 2 * S - 1), (2 * S, 3 * S - 1), (3 * S, 4 * S)}
    assert all(abs(p - 1 / 3) < 4 * np.sqrt(2 / 9 / 4000) for p in found.values())
    assert set(drawn(curriculum(), 4, -1, 10)) == {None}


def test_stages_open_one_by_one_on_their_own_answers():
    """Both means move by 1/64 per document, that of the newest stage only with its own documents. Once it reaches
    `open_at`, the next stage opens and is counted from 0; after the last stage it continues."""
    made = curriculum(open_at=0.5)
    rng, progress = np.random.default_rng(0), made.start()
    least, stage, every, newest, opened = [0, 2 * S, 3 * S, 5 * S], 0, 0.0, 0.0, []
    for step in range(200):
        documents = [(int(rng.integers(0, 9 * S)), float(rng.random() < 0.8)) for _ in range(6)]
        for filler, hit in documents:
            every += (hit - every) / 64
            newest += (hit - newest) / 64 if filler >= least[stage] else 0
        if newest >= 0.5 and stage < 3:
            stage, newest = stage + 1, 0.0
            opened.append(step)
        progress = made.observe(progress, documents)
        assert progress["open_stages"] == stage + 1
        assert (progress["exact_match"], progress["exact_match_newest"]) == pytest.approx((every, newest))
    assert len(opened) == 3 and min(np.diff(opened)) > 5
    assert made.report(progress) == {"exact_match": round(every, 4), "filler_blocks": 8}


def test_a_mean_is_of_the_first_answers_and_then_of_recent_ones():
    """The plain mean of up to 64 answers, then moving by 1/64 with each; other entries are unchanged."""
    rng, stored, hits, mean = np.random.default_rng(0), {"other": [0.5, 3]}, [], 0.0
    for n in range(1, 151):
        hits.append(float(rng.random() < 0.5))
        mean = np.mean(hits) if n <= 64 else mean + (hits[-1] - mean) / 64
        stored = with_answer(stored, "qa1", hits[-1])
        assert stored["qa1"] == [pytest.approx(mean), min(n, 64)] and stored["other"] == [0.5, 3]


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("before", [-3, 0, 1, 4, 9])
def test_filler_with_which_an_answer_straddles_a_block_boundary(tokens, before):
    """The nearest lengths with `before` tokens of the answer before the boundary, or all but its last one if it has no
    more, or a single one; a negative number is that of other tokens between them: by trying every length."""
    here = before if before < tokens else max(tokens - 1, 1)
    for first, filler in np.random.default_rng(0).integers(20, 60, (20, 2)):
        right = [n for n in range(-S, 80) if (first + n - filler + here) % S == 0]
        longer, shorter = straddle(int(first), int(filler), tokens, before, S)
        assert longer == min(n for n in right if n >= filler) and shorter == max(n for n in right if n < filler)
