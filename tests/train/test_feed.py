"""Batches prepared ahead equal those of a plain loop, and their progress is that of the batches returned."""

import threading
import time

import numpy as np
import pytest

from famjax.config import ConfigError
from famjax.data.batch import Batch
from famjax.mesh.devices import make_mesh
from famjax.train.feed import AHEAD, Feed


class Counting:
    """A task whose progress counts, and whose tokens encode (step, progress)."""

    rows = range(4)
    continues = False

    def __init__(self, observes: bool = False, fails_at: int = -1):
        self.observes, self.fails_at, self.made = observes, fails_at, 0

    def batch(self, step, progress):
        self.made += 1
        if step == self.fails_at:
            raise ConfigError(f"step {step} has a bad line")
        tokens = np.full((4, 2), 100 * step + progress["n"], np.int32)
        zeros = np.zeros((4, 2), np.float32)
        return Batch(tokens, np.full(4, 2), np.ones((4, 1), bool), None, tokens, zeros), {"n": progress["n"] + 1}

    def observe(self, progress, batch, correct):
        return {"n": progress["n"] + 10 * int(correct.sum())}


def test_batches_made_ahead_are_those_of_a_plain_loop():
    """From step 7 and progress 3 on; `progress` is that of the batches returned, not of those prepared ahead."""
    task = Counting()
    with Feed(task, make_mesh(), 4, 7, {"n": 3}) as feed:
        for i in range(5):
            assert np.asarray(feed.next().tokens)[0, 0] == 100 * (7 + i) + 3 + i
            assert feed.progress == {"n": 4 + i}
        deadline = time.monotonic() + 20
        while task.made < 5 + AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        assert task.made >= 5 + AHEAD
        assert feed.progress == {"n": 8}


def test_a_task_that_observes_is_never_ahead():
    """The next batch depends on predictions, so it is prepared after them."""
    task = Counting(observes=True)
    with Feed(task, make_mesh(), 4, 0, {"n": 0}) as feed:
        feed.next()
        assert task.made == 1
        feed.observe(np.array([True, True, False, False]))
        assert feed.progress == {"n": 21}
        assert np.asarray(feed.next().tokens)[0, 0] == 121


def test_what_goes_wrong_ahead_is_told_where_the_batch_is_asked_for():
    """The batches before it are returned first."""
    with Feed(Counting(fails_at=2), make_mesh(), 4, 0, {"n": 0}) as feed:
        feed.next(), feed.next()
        with pytest.raises(ConfigError, match="step 2 has a bad line"):
            feed.next()


@pytest.mark.parametrize("fails_at", [-1, 0])
def test_leaving_ends_the_thread(fails_at):
    """Also while it waits for space in the queue, and if no batch was requested."""
    before = threading.active_count()
    with Feed(Counting(fails_at=fails_at), make_mesh(), 4, 0, {"n": 0}):
        time.sleep(0.05)
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
