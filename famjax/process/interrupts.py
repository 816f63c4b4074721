"""Handles SIGINT (Ctrl-C) and SIGTERM, except in `launch/local.py`, which forwards them. Imports nothing heavy.

Python would raise `KeyboardInterrupt` at any instruction of the main thread, even inside a library that holds a lock
or has written half a message; code that waits for that library would then wait forever. So while signals are handled
here (`handled`), nothing is raised asynchronously:

  * outside of `held`, Ctrl-C ends the process at once: no file is half written;
  * inside of `held`, it is a request. `check` raises `KeyboardInterrupt` between two units of work, as does the end of
    `held`; a process that is still running after `GRACE_SECONDS` is ended;
  * a second signal ends the process at once.

The exit code is 130 after Ctrl-C, 143 if SIGTERM is the second signal. A thread receives the signals (through
`signal.set_wakeup_fd`), so they are handled even while the main thread compiles, or waits in C indefinitely.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

# Time limit from the first Ctrl-C to the end of the process.
GRACE_SECONDS = 10.0
# A terminal and a parent process may both forward the same Ctrl-C.
SAME_SECONDS = 0.2

INTERRUPTED = 128 + signal.SIGINT

Saved = Callable[[], str]
# Maps a signal to a description of how the process reacts to it, for a line on standard error.
Stopping = Callable[[int], str]

_held: list[None] = []  # one entry for each `held` context that the main thread has entered
_saved: list[Saved] = []  # functions that describe what is saved, the innermost last
_stopping: list[Stopping] = []  # functions that describe the reaction to a signal, the innermost last
_requested: list[tuple[int, float]] = []  # the first signal, and its time
_noted: list[list[int]] = []  # lists of `noted`, the innermost last
_prog = ["famjax"]
_pipe: list[int] = []  # signals are written to it while they are handled
_settled = threading.Event()
_asked = threading.Event()  # set when there is a request


def requested() -> int:
    """Returns the signal that asks this process to stop, or 0."""
    return _requested[0][0] if _requested else 0


def check() -> None:
    """Raises `KeyboardInterrupt` after Ctrl-C. Call it between two units of work, when nothing is half done."""
    if requested() == signal.SIGINT and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt(_sentence("interrupted"))


def wait(seconds: float) -> None:
    """Sleeps, but no longer than until a signal asks this process to stop."""
    _asked.wait(seconds)


@contextlib.contextmanager
def saying(saved: Saved) -> Iterator[None]:
    """Appends the result of `saved` to the last line of a process that is interrupted within the context.

    `saved` describes what is on disk. It may be called in any thread.
    """
    _saved.append(saved)
    try:
        yield
    finally:
        _saved.remove(saved)


@contextlib.contextmanager
def held(saved: Saved | None = None, stopping: Stopping | None = None) -> Iterator[None]:
    """Defers Ctrl-C within the context to the next `check`, or to the end of the outermost `held`.

    Args:
      saved: see `saying`.
      stopping: maps a signal to a description of the reaction, for the line printed when it arrives; None: that of a
        training, which finishes its step.

    Raises:
      KeyboardInterrupt: at the end of the outermost `held`, if Ctrl-C was pressed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with saying(saved) if saved else contextlib.nullcontext():
        _held.append(None)
        _stopping.extend([stopping] if stopping else [])
        try:
            yield
            if len(_held) == 1:
                check()
        finally:
            _held.pop()
            if stopping:
                _stopping.remove(stopping)


@contextlib.contextmanager
def handled(prog: str = "famjax", *numbers: int, lasting: bool = False) -> Iterator[None]:
    """Handles SIGINT and the given signals within the context, as described above.

    Does nothing outside of the main thread. Signals that are ignored (SIGINT in a shell's background jobs) or handled
    here already are left as they are.

    Args:
      prog: program name at the beginning of the last line of an ended process.
      numbers: other signals, which are always requests: see `requested`.
      lasting: whether to handle signals until the process ends; else the previous handlers are restored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *numbers)}
    new = [n for n, handler in before.items() if handler not in (_received, signal.SIG_IGN)]
    outermost = _received not in before.values()
    if outermost:
        _prog[0] = prog
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        _pipe.append(writer)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_listen, args=(reader,), daemon=True).start()
    for number in new:
        signal.signal(number, _received)
    try:
        yield
    finally:
        if not lasting:
            _settle()
            for number in new:
                signal.signal(number, before[number])
        if outermost and not lasting:
            signal.set_wakeup_fd(wakeup)
            os.close(_pipe.pop())
            _requested.clear()
            _asked.clear()


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Yields a list to which each Ctrl-C within the context is appended; it has no other effect."""
    seen: list[int] = []
    _settle()
    _noted.append(seen)
    try:
        yield seen
    finally:
        _settle()
        _noted.pop()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Lets Ctrl-C raise `KeyboardInterrupt` at any instruction within the context.

    Use it for code that waits for a person or for another program, and calls no library with locks.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not _received:
        yield
        return
    _settle()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        _settle()
        signal.signal(signal.SIGINT, _received)


def leave(code: int, line: str = "") -> None:
    """Ends this process at once, from any thread: flushes its output, and prints `line` on standard error."""
    thread = threading.Thread(target=_flush, daemon=True)
    thread.start()
    thread.join(2.0)  # another thread may hold the lock of a stream forever
    if line:
        _say(line)
    os._exit(code)


def _received(number: int, frame: FrameType | None) -> None:
    """Does nothing: the handler that Python requires. `_listen` acts on the signals."""


def _listen(reader: int) -> None:
    """Acts on every signal, until the other end of the pipe is closed."""
    while data := os.read(reader, 64):
        for number in data:
            if number == 0:
                _settled.set()
            elif signal.getsignal(number) is _received:  # else another handler is installed temporarily
                _act(number)
    os.close(reader)


def _settle() -> None:
    """Waits until `_listen` has acted on all signals so far, so that a change of state affects only later ones."""
    if _pipe:
        _settled.clear()
        os.write(_pipe[0], b"\0")
        _settled.wait(1.0)


def _act(number: int) -> None:
    if number == signal.SIGINT and _noted:
        _noted[-1].append(number)
        return
    if number == signal.SIGINT and not _held and not _requested:
        leave(INTERRUPTED, f"{_prog[0]}: {_sentence('interrupted')}")
    if _requested:
        first, when = _requested[0]
        if number != first or time.monotonic() - when > SAME_SECONDS:
            leave(128 + number, f"{_prog[0]}: {_sentence('ended at once')}")
        return
    _requested.append((number, time.monotonic()))
    _asked.set()
    what = _stopping[-1] if _stopping else _after_step
    if number == signal.SIGINT:
        _say(f"Ctrl-C: {what(number)}; a second one ends the process at once")
        timer = threading.Timer(GRACE_SECONDS, _late)
        timer.daemon = True
        timer.start()
    else:
        _say(f"{signal.Signals(number).name}: {what(number)}; a second signal ends the process at once")


def _after_step(number: int) -> str:
    return "stops after this step" + (" and saves it" if number != signal.SIGINT else "")


def _late() -> None:
    what = f"interrupted, and ended {GRACE_SECONDS:.0f} s later in the middle of a step"
    leave(INTERRUPTED, f"{_prog[0]}: {_sentence(what)}")


def _sentence(what: str) -> str:
    """Returns `what`, followed by the innermost description of what is saved."""
    try:
        words = _saved[-1]() if _saved else ""
    except Exception as error:  # the process must end in any case
        words = f"what is saved could not be determined ({type(error).__name__})"
    return f"{what}; {words}" if words else what


def _say(line: str) -> None:
    """Writes a line without `print`, since another thread may hold the stream."""
    cursor = "\x1b[?25h" if os.isatty(2) else ""  # shows the cursor, which a progress bar hides
    with contextlib.suppress(OSError):
        os.write(2, f"{cursor}{line}\n".encode())


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]
