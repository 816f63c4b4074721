"""Shows the progress of long work in one line on standard error.

A thread prints it, so that it also appears while a program compiles or a large tensor is read. On a terminal the line
is overwritten; a file or a pipe gets a new line at intervals. Short work prints nothing.
"""

import sys
import threading
import time

# Seconds from the beginning of a stage to its first line, and from line to line.
TERMINAL_SECONDS, FIRST_SECONDS, LINE_SECONDS = (1.0, 0.25), 5.0, 10.0


class Progress:
    """Shows consecutive stages of work, each with the amount done, the total, a rate, and the time elapsed or left.

    A context manager. Examples of its line:

    importing m: 1.25 of 16.06 GB, 1:58 left
    reading: 81,920 tokens, 9,102 tokens/s
    loading runs/fam: 0:12 so far
    reading: compiling, 0:12 so far
    """

    def __init__(self, what: str, total: float = 0, unit: str = ""):
        """Describes the first stage; see `stage`."""
        self._terminal = sys.stderr.isatty()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._first: tuple[float, float] | None = None  # (time, amount) when the stage's first part was done
        self._begin_stage(what, total, unit)

    def __enter__(self) -> "Progress":
        self._begin_stage(self._what, self._total, self._unit)
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None = None, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        with self._lock:
            self._end_stage(kind is None)

    def stage(self, what: str, total: float = 0, unit: str = "") -> None:
        """Starts a new stage.

        Args:
          what: description of the stage, `reading a.txt`.
          total: the amount of work; 0: unknown.
          unit: `tokens`, `examples`; with `GB`, counts are bytes.
        """
        with self._lock:
            self._end_stage(True)
            self._begin_stage(what, total, unit)

    def advance(self, count: float = 1) -> None:
        """Adds to the amount done in the stage."""
        self.reach(self._done + count)

    __call__ = advance

    def reach(self, done: float) -> None:
        """Sets the amount done in the stage."""
        with self._lock:
            if self._first is None:  # the clock starts after the first part, which includes compilation
                self._first = (time.monotonic(), done)
            self._done = done

    def line(self, last: bool = False) -> str:
        """Returns the progress line; `last`: at the end of the stage, without the time left."""
        now = time.monotonic()
        since, before = self._first or (now, 0)
        rate = (self._done - before) / (now - since) if now > since else 0.0
        parts = []
        if self._total:
            parts.append(f"{self._amount(self._done)} of {self._amount(self._total)} {self._unit}".rstrip())
        elif self._done:
            parts.append(f"{self._amount(self._done)} {self._unit}".rstrip())
        if self._unit == "tokens" and not self._done:  # the first ones wait for compilation
            parts.append("compiling")
        if self._unit == "tokens" and rate:
            parts.append(f"{rate:,.0f} tokens/s")
        if self._done < self._total and rate and not last:
            parts.append(f"{clock((self._total - self._done) / rate)} left")
        if not self._done or not rate:
            parts.append(f"{clock(now - self._began)} so far")
        return f"{self._what}: {', '.join(parts)}"

    def _begin_stage(self, what: str, total: float, unit: str) -> None:
        self._what, self._total, self._unit, self._done = what, total, unit, 0.0
        self._began, self._first = time.monotonic(), None
        self._shown = False
        self._next = self._began + (TERMINAL_SECONDS[0] if self._terminal else FIRST_SECONDS)

    def _amount(self, count: float) -> str:
        return f"{count / 1e9:.2f}" if self._unit == "GB" else f"{count:,.0f}"

    def _run(self) -> None:
        while not self._stop.wait(0.1 if self._terminal else 0.5):
            self.tick()

    def tick(self) -> None:
        """Prints the line if it is due."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + (TERMINAL_SECONDS[1] if self._terminal else LINE_SECONDS)
            self._shown = True
            sys.stderr.write(f"\r\x1b[K{self.line()}" if self._terminal else f"{self.line()}\n")
            sys.stderr.flush()

    def _end_stage(self, whole: bool) -> None:
        """Prints the final line of a stage that was shown, if it is `whole`, and clears the terminal's line."""
        if not self._shown:
            return
        last = f"{self.line(last=True)}\n" if whole and self._done else ""
        sys.stderr.write("\r\x1b[K" * self._terminal + last)
        sys.stderr.flush()


def clock(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds: 1:05:09, or 5:09."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
