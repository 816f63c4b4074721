"""A line on standard error that tells how far a long reading is."""

import sys
import time


class ReadingProgress:
    """Tokens read so far and their rate. Quick readings stay silent.

    A terminal's line is written over and over; into a file or a pipe goes a new line from time to time.
    """

    def __init__(self, after: float = 2.0):
        self._after = after
        self._tokens = self._first = 0
        self._begin = self._last = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, tokens: int) -> None:
        """Counts tokens that were just read."""
        self._tokens += tokens
        now = time.monotonic()
        if not self._begin:  # the clock starts behind the first tokens, which waited for the compiler
            self._begin, self._last, self._first = now, now, self._tokens
        elif now - self._begin > self._after and now - self._last > (0.2 if self._terminal else 10.0):
            self._last = now
            self._write("reading")

    def finish(self) -> None:
        """The last line, of readings that took their time."""
        if self._begin and time.monotonic() - self._begin > self._after:
            self._write("read", "\n")

    def _write(self, what: str, end: str = "") -> None:
        rate = (self._tokens - self._first) / max(time.monotonic() - self._begin, 1e-9)
        line = f"{what} {self._tokens:,} tokens, {rate:,.0f} tokens/s"
        sys.stderr.write(f"\r\x1b[K{line}{end}" if self._terminal else f"{line}\n")
        sys.stderr.flush()


class BytesProgress:
    """How far a reading or writing of many bytes is: a bar on standard error; into a file or a pipe a line from time
    to time, and none of what is quick."""

    LINE_SECONDS = 10.0

    def __init__(self, total: int, what: str):
        self._total, self._what, self._done = total, what, 0
        self._last = time.monotonic()

    def __enter__(self) -> "BytesProgress":
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn(self._what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar.start()
        self._task = self._bar.add_task(self._what, total=self._total)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, count: int) -> None:
        """Counts bytes that are done."""
        self._bar.advance(self._task, count)
        self._done += count
        if self._bar.disable and time.monotonic() - self._last >= self.LINE_SECONDS:
            self._last = time.monotonic()
            done = f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
            print(f"{self._what} {done}", file=sys.stderr, flush=True)
