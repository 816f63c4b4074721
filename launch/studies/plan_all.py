"""Compiles every shipped configuration for its TPU slices, and writes the table of docs/plans.md.

    python launch/studies/plan_all.py --quick            memory and collectives of all, half a minute each
    python launch/studies/plan_all.py --only 24b         complete plans of commands that contain this text

The commands are in the headers of the gin files, without the file's own name:

    # PLAN: LoRA, v5p: --topology v5p:4x4x4
    # PLAN: without FAM: --topology v5p:4x4x4 --gin.FAM_LENGTH=0

is `famjax plan --gin_file FILE --topology v5p:4x4x4`. Each result is saved in docs/plans.json when it is done, so the
same command resumes; --again recompiles existing ones. One program is compiled at a time.
"""

import argparse
import datetime
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pages import DOCS, Page

ROOT = Path(__file__).resolve().parents[2]
KEPT = (
    "program", "topology", "chips", "mesh", "batch_size", "sequence_length", "microbatches", "remat", "fits",
    "peak_bytes_per_device", "hbm_bytes_per_device", "flops_per_step", "compiler_flops_per_step", "collective_bytes",
    "cycles", "estimated_step_seconds", "least_step_seconds", "estimated_tokens_per_second", "estimated_mfu",
    "estimated_chip_hours", "binds", "compile_seconds", "versions", "advice",
)  # fmt: skip


def main() -> int:
    """Compiles what is due. Returns 0, or 1 if a configuration could not be compiled or does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="only commands that contain this text")
    parser.add_argument("--quick", action="store_true", help="memory and collectives only")
    parser.add_argument("--again", action="store_true", help="recompile those that are in docs/plans.json")
    args = parser.parse_args()
    commands, known = shipped(), PAGE.read()
    results = {command: known[command] for command in commands if command in known}
    due = [
        command
        for command in commands
        if args.only in command and (args.again or not done(results, command, args.quick))
    ]
    began, bad = time.monotonic(), 0
    for i, command in enumerate(due):
        left = f", {(time.monotonic() - began) / i * (len(due) - i) / 60:.0f} min left" if i else ""
        print(f"{i + 1} of {len(due)}{left}: famjax plan {command}", file=sys.stderr, flush=True)
        found = compile_one(command, args.quick)
        bad += not found.get("fits")
        results[command] = found | {"name": commands[command]}
        PAGE.write({command: results[command] for command in commands if command in results})
    return 1 if bad else 0


def shipped() -> dict[str, str]:
    """Returns {arguments of `famjax plan`: name} for all PLAN lines in the gin files."""
    found = {}
    for path in sorted([*(ROOT / "gin/experiments").glob("*.gin"), *(ROOT / "gin/models").glob("*.gin")]):
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"# PLAN: ([^:]*): (.+)", line):
                found[f"--gin_file {path.relative_to(ROOT)} {match[2].strip()}"] = match[1]
    return found


def done(results: dict[str, Any], command: str, quick: bool) -> bool:
    """Whether `results` has a plan of this command; unless `quick`, it must be complete, or not fit."""
    found = results.get(command, {})
    return bool(found) and "error" not in found and (quick or found["cycles"] is not None or not found["fits"])


def compile_one(command: str, quick: bool) -> dict[str, Any]:
    """Runs `famjax plan`. Returns its result with the date, or its error line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        words = [sys.executable, "-m", "famjax", "plan", *shlex.split(command), "--json", str(path)]
        ran = subprocess.run(
            words + ["--quick"] * quick, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        when = {"compiled": datetime.date.today().isoformat()}
        if ran.returncode:
            return when | {"error": ran.stderr.strip().splitlines()[-1]}
        plan = json.loads(path.read_text(encoding="utf-8"))
    return when | {name: plan[name] for name in KEPT}


def table(results: dict[str, Any]) -> list[str]:
    """Returns the lines of the table in docs/plans.md."""
    head = ("configuration", "slice", "mesh (data, fsdp, tensor); rows x tokens", "GiB per device", "collectives GB",
            "Gcycles", "s/step", "tokens/s", "MFU", "compiled")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return lines + [f"| {' | '.join(row(command, found))} |" for command, found in results.items()]


def row(command: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Returns the cells of one row of the table."""
    name = f"`{Path(shlex.split(command)[1]).stem}`, {found['name']}"
    if "error" in found:
        return name, "", "", found["error"], "", "", "", "", "", found["compiled"]
    gib = lambda number: f"{number / 2**30:.1f}"
    fits, cycles = found["fits"], found["cycles"]
    mesh = ",".join(map(str, found["mesh"].values()))
    micro = f", {found['microbatches']} microbatches" if found["microbatches"] > 1 else ""
    length = f" x {found['sequence_length']:,}" if found["program"] == "train" else f" rows, {found['program']}"
    peak = f"{gib(found['peak_bytes_per_device'])} of {gib(found['hbm_bytes_per_device'])}"
    sent = "" if found["collective_bytes"] is None else f"{found['collective_bytes'] / 1e9:.1f}"
    cells = [name, found["topology"], f"{mesh}; {found['batch_size']}{length}{micro}",
             peak if fits else f"**does not fit**: {peak}", sent]  # fmt: skip
    if cycles is None:
        return *cells, "", f"> {found['least_step_seconds']:.3g}" if fits else "", "", "", found["compiled"] + ", quick"
    return (
        *cells, f"{sum(cycles.values()) / 1e9:.2f}", f"{found['estimated_step_seconds']:.3g}",
        f"{found['estimated_tokens_per_second']:,.0f}", f"{found['estimated_mfu']:.0%}", found["compiled"],
    )  # fmt: skip


PAGE = Page(DOCS / "plans.md", DOCS / "plans.json", {"plans": table})

if __name__ == "__main__":
    sys.exit(main())
