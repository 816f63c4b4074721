"""Batches for the devices: each process provides its own rows and prepares batches ahead in a thread."""

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

# Number of batches prepared ahead while the device computes.
AHEAD = 2
# Seconds that the end of a training waits for a batch in preparation; the thread that prepares it is a daemon.
CLOSE_SECONDS = 5.0


class Feed:
    """Provides the global batches of a run, starting at a step and a progress. A context manager.

    If the task observes predictions, its next batch depends on them, so no batch is prepared ahead.

    Attributes:
      step: index of the next batch to return.
      progress: progress of the task after the batches returned so far (as a checkpoint stores it), not after those
        prepared ahead.
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
                self._ahead.get(timeout=0.05)  # the thread may be waiting for space in the queue

    def next(self) -> Batch:
        """Returns the batch of the next step: global arrays, sharded by rows. Raises any error of the task."""
        if self._thread is None:
            prepared: Any = self.task.batch(self.step, self.progress)
        else:
            prepared = self._ahead.get()
            if isinstance(prepared, BaseException):
                raise prepared
        self._last, self.progress = prepared
        self.step += 1
        on_mesh = lambda x: jax.make_array_from_process_local_data(
            self._sharding, x[self._pick], (self._batch_size, *x.shape[1:])
        )
        return jax.tree.map(on_mesh, self._last)

    def observe(self, correct: Bool[Array, "B W"]) -> None:
        """Tells the task which targets of the last batch, of all its rows, were predicted correctly."""
        assert self._last is not None
        mine = distributed.whole(correct)[np.asarray(self.task.rows)]
        self.progress = self.task.observe(self.progress, self._last, mine)

    def _run_ahead(self, step: int, progress: Progress) -> None:
        while not self._stopped.is_set():
            try:
                prepared: Any = self.task.batch(step, progress)
            except BaseException as error:  # raised by `next`
                self._ahead.put(error)
                return
            self._ahead.put(prepared)
            step, progress = step + 1, prepared[1]
