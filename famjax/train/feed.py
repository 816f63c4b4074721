"""Batches on their way to the devices: each process brings its own rows, made one batch ahead."""

import contextlib
import queue
import threading
import time
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from famjax.data.batch import Batch, Progress, Task
from famjax.dims import Array, Bool
from famjax.jobs import distributed
from famjax.mesh import sharding

# Batches made ahead, while the device works on the one before.
AHEAD = 2
# How long the end of a training waits for a batch that is being made; the thread that makes it is a daemon.
CLOSE_SECONDS = 5.0


class Feed:
    """The batches of a run, from a step and a progress on.

    `progress` is that of the batches handed out so far (what a checkpoint holds), however many were made
    ahead. A task that observes gets its say before its next batch is made, so nothing is made ahead of it.

    Raises, from `next`, whatever the task raised while it made the batch.
    """

    def __init__(self, task: Task, mesh: Mesh, batch_size: int, step: int, progress: Progress):
        self.task, self.step, self.progress = task, step, progress
        self._sharding, self._batch_size = sharding.by_rows(mesh), batch_size
        mine = sharding.local_rows(mesh, batch_size)
        self._pick = np.searchsorted(np.asarray(task.rows), mine)
        self._ahead: queue.Queue[Any] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: Batch | None = None

    def __enter__(self) -> "Feed":
        if not self.task.observes:
            self._thread = threading.Thread(target=self._run_ahead, args=(self.step, self.progress), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                self._ahead.get(timeout=0.05)  # it may wait for room

    def next(self) -> Batch:
        """The batch of the next step: global arrays, cut by rows."""
        if self._thread is None:
            made: Any = self.task.batch(self.step, self.progress)
        else:
            made = self._ahead.get()
            if isinstance(made, BaseException):
                raise made
        self._last, self.progress = made
        self.step += 1
        mine = jax.tree.map(lambda x: x[self._pick], self._last)
        return jax.tree.map(self._on_mesh, mine)

    def observe(self, correct: Bool[Array, "B W"]) -> None:
        """Tells the task which targets of the last batch were predicted right, those of the task's rows."""
        assert self._last is not None
        self.progress = self.task.observe(
            self.progress, self._last, distributed.whole(correct)[np.asarray(self.task.rows)]
        )

    def _on_mesh(self, rows: np.ndarray) -> Array:
        shape = (self._batch_size, *rows.shape[1:])
        return jax.make_array_from_process_local_data(self._sharding, rows, shape)

    def _run_ahead(self, step: int, progress: Progress) -> None:
        while not self._stopped.is_set():
            try:
                made: Any = self.task.batch(step, progress)
            except BaseException as error:  # told where the batch is asked for
                self._ahead.put(error)
                return
            self._ahead.put(made)
            step, progress = step + 1, made[1]
