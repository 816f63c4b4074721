"""One process of a job that asks the others all there is to ask, for `test_processes.py`.

    python -m tests.integration.members      # which one it is, the environment says

Leaves with 0 if all answers were right; an assertion that fails ends the other processes too.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from famjax.config import ConfigError
from famjax.data.batch import Batch, Progress
from famjax.jobs import distributed
from famjax.mesh import sharding
from famjax.mesh.devices import make_mesh
from famjax.train.feed import Feed


def barrier(name: str, seconds: float = 600.0) -> None:
    """Waits until all processes call it with the same `name`, used once. Raises `JaxRuntimeError` after `seconds`."""
    from jax._src.distributed import global_state  # the client that Orbax uses too

    global_state.client.wait_at_barrier(f"famjax {name}", int(seconds * 1000))


class OwnRows:
    """Reads nothing but the rows of its process. Each row counts the steps that it has seen, in its progress."""

    continues, observes = False, True

    def __init__(self, rows: Sequence[int]):
        self.rows, self.seen = rows, []

    def batch(self, step: int, progress: Progress) -> tuple[Batch, Progress]:
        tokens = np.array([[row, progress[f"{row}/steps"], step] for row in self.rows], np.int32)
        ones = np.ones(len(self.rows), np.int32)
        progress = {f"{row}/steps": progress[f"{row}/steps"] + 1 for row in self.rows}
        return Batch(tokens, 3 * ones, ones[:, None] > 0, None, tokens, ones[:, None] * np.float32(1)), progress

    def observe(self, progress: Progress, batch: Batch, correct: np.ndarray) -> Progress:
        self.seen.append((batch.tokens, correct))
        return progress


def feed_own_rows(mesh: Any) -> None:
    """Two steps of a batch that no process has whole: on the devices it is, and the progress of all is merged."""
    import jax

    n, me = jax.process_count(), jax.process_index()
    rows = list(sharding.local_rows(mesh, 2 * n))
    assert rows == [2 * me, 2 * me + 1]
    task = OwnRows(rows)
    start = {f"{row}/steps": 10 * row for row in range(2 * n)}  # as a checkpoint has it: of all rows
    with Feed(task, mesh, 2 * n, 7, start) as feed:
        for step in (7, 8):
            tokens = feed.next().tokens
            whole = np.array([[row, 10 * row + step - 7, step] for row in range(2 * n)])
            np.testing.assert_array_equal(distributed.whole(tokens), whole)
            feed.observe(tokens)
        mine, correct = task.seen[-1]
        np.testing.assert_array_equal(mine, whole[rows])
        np.testing.assert_array_equal(correct, whole[rows])
        merged = distributed.merge_progress(feed.progress)
    assert merged == {f"{row}/steps": 10 * row + 2 for row in range(2 * n)}


def ask() -> None:
    import jax

    me, n = jax.process_index(), jax.process_count()
    assert n > 1
    assert distributed.is_primary() == (me == 0)

    # Values of different sizes, one of them large.
    values = distributed.gather_json({"process": me, "text": "é" * 1000 * me, "none": None})
    assert values == [{"process": i, "text": "é" * 1000 * i, "none": None} for i in range(n)]

    lanes = {f"{lane}/position": lane * 10 for lane in range(me, 2 * n, n)}
    merged = distributed.merge_progress(lanes | {"epoch": 3})
    assert merged == {f"{lane}/position": lane * 10 for lane in range(2 * n)} | {"epoch": 3}
    assert distributed.merge_progress(merged) == merged, "every process may have all lanes"
    for wrong, where in (
        ({"epoch": me}, 1), ({"0/position": me}, 1), ({"epoch": 1} if me == 0 else {}, 1),
        ({} if me == 0 else {"epoch": 1}, 0),
    ):  # fmt: skip
        try:
            distributed.merge_progress(wrong)
        except RuntimeError as error:
            assert f"process {where} has" in str(error)
        else:
            raise AssertionError(f"{wrong} was merged")

    distributed.require_same("the step", 4, "share it")
    try:
        distributed.require_same("the step", None if me else 4, "share it")
    except ConfigError as error:
        assert str(error) == "the step is 4 for process 0, but None for process 1; share it"
    else:
        raise AssertionError("different values passed")

    assert distributed.in_any_process(False, me == n - 1, True) == [False, True, True]

    mesh = make_mesh((n, 1, 1))
    rows = np.arange(n * 3).reshape(n, 3)
    array = jax.make_array_from_process_local_data(sharding.by_rows(mesh), rows[me : me + 1], rows.shape)
    assert not array.is_fully_addressable
    np.testing.assert_array_equal(distributed.whole(array), rows)
    np.testing.assert_array_equal(distributed.whole(rows), rows)

    feed_own_rows(make_mesh((n, 1, 1)))
    barrier("end")
    try:
        if me == 0:
            barrier("alone", 1.0)
            raise AssertionError("nobody else was there")
    except jax.errors.JaxRuntimeError as error:
        assert "alone" in str(error)
    barrier("after all")
    print(f"process {me} prints")


if __name__ == "__main__":
    with distributed.joined(distributed.find_job(), {}, lambda: "", prog="members"):
        ask()
    sys.exit(0)
