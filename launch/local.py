#!/usr/bin/env python3
"""Starts any verb of famjax as several processes of one job on this machine.

    python launch/local.py --processes 2 -- train --gin_file F --gin.MESH='{"data": 2}' ...

Everything after -- is the command of `famjax` in each process. For training,
`famjax launch --target local --processes 2 --gin_file F ...` also checks settings first, restarts the job, and saves
stacks if it hangs. Both start and end processes in the same way (famjax/launch/processes.py).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from famjax.launch.local import attempt_once


def main() -> int:
    """Starts the processes and waits for them. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="number of processes")
    parser.add_argument("--port", type=int, default=0, metavar="P", help="coordinator's port (default: a free one)")
    parser.add_argument("command", nargs="+", metavar="-- VERB ...", help="command of each process")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error("--processes must be at least 1")
    return attempt_once(args.command, args.processes, args.port)


if __name__ == "__main__":
    sys.exit(main())
