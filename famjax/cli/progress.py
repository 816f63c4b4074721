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
