"""Entry point of the command `famjax VERB`, and of `python -m famjax VERB`."""

import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process with one line: nothing has begun."""
    os.write(2, f"{' '.join(['famjax', *sys.argv[1:2]])}: interrupted\n".encode(errors="replace"))
    os._exit(130)


# Until `main` handles it (`process/interrupts.py`), Ctrl-C would show the traceback of an import.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)

from famjax.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
