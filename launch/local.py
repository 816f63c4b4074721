#!/usr/bin/env python3
"""Starts any verb of famjax as several processes of one job on this machine.

    python launch/local.py --processes 2 -- train --gin_file F --gin.MESH='{"data": 2}' ...

Everything behind -- goes to `famjax` in each process. Trainings have more in
`famjax launch --target local --processes 2 --gin_file F ...`: settings checked first, restarts, stacks of a job
that hangs. Both start and end processes in the same way (famjax/launch/processes.py).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from famjax.launch.local import attempt_once


def main() -> int:
    """Starts the processes and waits for all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="how many")
    parser.add_argument("--port", type=int, default=0, metavar="P", help="where the first one listens (a free one)")
    parser.add_argument("command", nargs="+", metavar="-- VERB ...", help="what each of them runs")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error("--processes must be at least 1")
    return attempt_once(args.command, args.processes, args.port)


if __name__ == "__main__":
    sys.exit(main())
