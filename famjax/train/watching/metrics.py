"""Records of a training's metrics: `metrics.jsonl`, and events for TensorBoard. The first process writes them."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from famjax.storage.model_dir import METRICS_JSONL, TENSORBOARD, write_text

# Seconds that the end of a training waits for a writer.
CLOSE_SECONDS = 5.0


class MetricsLog:
    """Writes `metrics.jsonl`: one JSON object per logged step.

    Lines of steps after `first_step`, the step that the run resumes from, are dropped, since these steps are repeated.
    """

    def __init__(self, model_dir: str | Path, first_step: int):
        self.path = Path(model_dir) / METRICS_JSONL
        # A line that a crash of the machine has damaged may have any bytes; it is dropped.
        text = self.path.read_text(encoding="utf-8", errors="replace") if first_step and self.path.exists() else ""
        kept = [line for line in text.splitlines() if _step(line) <= first_step]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line with `step` and these values."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # truncated while it was written


class TensorBoard:
    """Writes the same metrics as scalars to `tensorboard/`; a list becomes one scalar per layer.

    Every run writes a new file, which makes TensorBoard hide the steps after `first_step` in older files, also in those
    of a run that ended before its first checkpoint. Events cannot be removed from a file, so other readers may see
    those steps twice.
    """

    def __init__(self, model_dir: str | Path, first_step: int):
        with _without_torch():
            from tensorboardX import SummaryWriter

        folder = Path(model_dir) / TENSORBOARD
        # tensorboardX names files by the second: a run that continues within it would overwrite the first one's.
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1, filename_suffix=f".{time.time_ns()}")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes the numbers among these values to disk."""
        for name, value in values.items():
            named = (
                {f"{name}/layer_{i:02}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
            )
            for full, number in named.items():
                if isinstance(number, (int, float)):
                    self._writer.add_scalar(full, number, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file. `write` has flushed everything, so a writer that does not end in time is abandoned."""
        closing = threading.Thread(target=self._writer.close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Blocks the import of torch inside the context, unless it is imported already.

    tensorboardX imports torch if it is installed, which takes seconds and 200 MB, to write tensors, which famjax never
    does.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]
