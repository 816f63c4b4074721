"""What makes a feedback memory last: the trainings and evaluations of docs/memory.md, with tables and a plot.

    python launch/studies/memory_study.py runs/memory                   everything, hours on two cores
    python launch/studies/memory_study.py runs/memory --part recipe     passkey_long.gin, three seeds
    python launch/studies/memory_study.py runs/memory --part twins      with and without FAM, same steps and data
    python launch/studies/memory_study.py runs/memory --part segments   FAM beside memory segments, three seeds
    python launch/studies/memory_study.py runs/memory --part ablations  changes of tiny_fam.gin, three seeds
    python launch/studies/memory_study.py runs/memory --part any_depth  keys at any depth, and several in one text
    python launch/studies/memory_study.py runs/memory --part block1024  blocks of 1,024: 256 updates are 260k tokens

Each training runs on its own core, in parallel on all cores (--at-once). The evaluated keys depend on a seed that was
used neither in training nor for any choice. Finished work is not repeated, so the same command resumes. DIR gets
study.json, study.md (tables) and study.png (the recipe and some other runs).
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import memory_results
import verbs

from famjax.cli import side_by_side
from famjax.config import ConfigError
from famjax.config.checks import at_least
from famjax.process.cpu import cores

SHORT, LONG = "gin/experiments/tiny_fam.gin", "gin/experiments/passkey_long.gin"
GATED, BSWA = "gin/experiments/tiny_gated.gin", "gin/experiments/tiny_bswa.gin"
ANY_DEPTH = "gin/experiments/passkey_any_depth.gin"
BLOCK256, BLOCK1024 = "gin/experiments/passkey_block256.gin", "gin/experiments/passkey_block1024.gin"
SEEDS = (0, 1, 2)
REPORTED_KEYS = 271828  # seed of the evaluations


class Asked(NamedTuple):
    """An evaluation: filler lengths in blocks, keys per alignment, and number of alignments (0: all)."""

    blocks: str
    keys: int = 1
    alignments: int = 0


class Depths(NamedTuple):
    """An evaluation with the key at other depths: lengths in tokens, and examples per length."""

    lengths: str = "1k,4k,16k"
    examples: int = 100
    tasks: str = "passkey_depth"


class Run(NamedTuple):
    """A training and its evaluations.

    Attributes:
      name: name of its directory.
      part: part of the study.
      about: description in the tables.
      bindings: gin bindings that differ from the experiment.
      experiment: gin file.
      asked: evaluations with the key at the beginning.
      depths: evaluation with the key at other depths, or None.
      start: name of the run that provides the initial weights; empty: random initialisation.
    """

    name: str
    part: str
    about: str
    bindings: tuple[str, ...] = ()
    experiment: str = SHORT
    asked: tuple[Asked, ...] = (Asked("16,64,256,1024"),)
    depths: Depths | None = None
    start: str = ""


def recipe() -> list[Run]:
    """Returns the runs of the recipe, one per seed."""
    asked = (Asked("16,64,256,1024", keys=4), Asked("4096", alignments=32), Asked("16384", alignments=16))
    return [
        Run(f"long_seed{n}", "recipe", f"the recipe, seed {n}", (f"RANDOM_SEED={n}",), LONG, asked, Depths())
        for n in SEEDS
    ]


AS_CARRIED, RESCALED = "TrainConfig.carried_fam_rms=0.0", "TrainConfig.carried_fam_rms=1.5"
QUIET = "MemoryConfig.fam_update_noise=0.0"
UNGATED = ("MemoryConfig.fam_update='feedback'", QUIET)


def any_depth() -> list[Run]:
    """Returns the runs with keys at any depth and several in one text: gated updates on several seeds, with and without
    noise on the gates, and the same training without gates."""
    asked = (Asked("16,64,256,1024"), Asked("16384", alignments=8))
    depths = Depths("1k,4k,16k,64k", tasks="passkey_depth,passkey_newest")
    part = lambda name, about, *bindings: Run(name, "any_depth", about, bindings, ANY_DEPTH, asked, depths)
    return [
        *(part(f"gate_seed{n}", f"gated updates, seed {n}", f"RANDOM_SEED={n}") for n in SEEDS),
        *(part(f"quiet_seed{n}", f"no noise on the gates, seed {n}", f"RANDOM_SEED={n}", QUIET) for n in SEEDS),
        part("ungated_young", "the paper's update, 5,000 steps", *UNGATED, RESCALED, "TRAIN_STEPS=5000"),
        part("ungated", "the paper's update", *UNGATED),
        part("ungated_bound", "no gate, FAM bounded to RMS 4", *UNGATED, "MemoryConfig.fam_max_rms=4.0"),
    ]


def base() -> Run:
    """Returns the recipe with fewer steps (tiny_fam.gin)."""
    return Run("base", "twins", "FAM, M = 0", asked=(Asked("1,2,4,8,16,64,256,1024"),))


def twins() -> list[Run]:
    """Returns `base` and BSWA baselines (twins): with more memory segments, and with FAM's bytes of memory."""
    none, asked = "FAM_LENGTH=0", (Asked("1,2,4,8,16,64,256"),)
    found = [
        Run(f"bswa_m{m}", "twins", f"BSWA, M = {m}", (none, f"MEMORY_SEGMENTS={m}"), asked=asked) for m in (0, 1, 2, 4)
    ]
    # 2 blocks of 38 tokens are 76 keys and values per layer; FAM's are 64, and 8 activations with keys and values.
    equal = (none, "MEMORY_SEGMENTS=1", "BLOCK_SIZE=38", "TASK_FEATURE_LENGTHS={'targets': 722}")
    about = "BSWA of equal memory (block 38, M = 1)"
    return [base(), *found, Run("bswa_equal", "twins", about, equal, asked=asked)]


def segments() -> list[Run]:
    """Returns the runs of gated FAM and BSWA with memory segments, and of FAM that has segments only after it has
    learned without, and of FAM with one segment from the start in as many steps as that, one per seed."""
    asked = (Asked("1,4,16,64,256,1024"),)
    part = lambda name, about, experiment, seed, start, *bindings: Run(
        f"{name}_seed{seed}", "segments", f"{about}, seed {seed}", (*bindings, f"RANDOM_SEED={seed}"), experiment,
        asked, start=start and f"{start}_seed{seed}",
    )  # fmt: skip
    runs = [part("gated", "gated FAM, M = 0", GATED, seed, "") for seed in SEEDS]
    for m in (1, 2, 3):
        beside = f"MEMORY_SEGMENTS={m}"
        for seed in SEEDS:
            runs += [
                part(f"gated_m{m}", f"gated FAM, M = {m}", GATED, seed, "", beside),
                part(f"bswa_m{m}", f"BSWA, M = {m}", BSWA, seed, "", beside, "TRAIN_STEPS=1200"),
                part(f"gated_then_m{m}", f"gated FAM, M = 0, then {m}", GATED, seed, "gated", beside,
                     "TRAIN_STEPS=600", "LEARNING_RATE=1.5e-3"),
            ]  # fmt: skip
    longer = ("MEMORY_SEGMENTS=1", "TRAIN_STEPS=1800")
    return runs + [part("gated_long_m1", "gated FAM, M = 1, 1,800 steps", GATED, seed, "", *longer) for seed in SEEDS]


PAPER = (
    "TASK_FEATURE_LENGTHS={'targets': 1408}", "PassKeyConfig.stages=(1, 2, 4, 8, 16)", "PassKeyConfig.stream_share=0.0",
    "MemoryConfig.random_state_passing=0.8",
)  # fmt: skip
# Changes of tiny_fam.gin: name, description, bindings.
CHANGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("paper", "the paper: no streams, RSP 0.8, gradients over 16 blocks", PAPER),
    ("as_carried", "carried FAM as it is", (AS_CARRIED,)),
    ("ungated", "streams continue after wrong answers", ("PassKeyConfig.stream_gated=False",)),
    ("no_text", "no loss on other text", ("PassKeyConfig.text_weight=0.0",)),
)


def ablations() -> list[Run]:
    """Returns a run for each of `CHANGES` and each seed."""
    part = lambda name, about, bindings, seed: Run(
        f"{name}_seed{seed}", "ablations", f"{about}, seed {seed}", (*bindings, f"RANDOM_SEED={seed}")
    )
    return [part(*change, seed) for change in CHANGES for seed in SEEDS]


def block1024() -> list[Run]:
    """Returns the runs with the paper's block size, and those with block 256 that they start from, one per seed."""
    asked = (Asked("1,4,16,64,256", alignments=64),)
    part = lambda blocks, seed, about, experiment, start: Run(
        f"block{blocks}_seed{seed}", "block1024", f"{about}, seed {seed}", (f"RANDOM_SEED={seed}",), experiment, asked,
        start=f"{start}_seed{seed}",
    )  # fmt: skip
    return [
        *(part(256, n, "block 256, from the recipe", BLOCK256, "long") for n in SEEDS),
        *(part(1024, n, "block 1,024, from block 256", BLOCK1024, "block256") for n in SEEDS),
    ]


PARTS = {
    "recipe": recipe, "any_depth": any_depth, "twins": twins, "segments": segments, "ablations": ablations,
    "block1024": block1024,
}  # fmt: skip


def all_runs(parts: Iterable[str] = PARTS) -> dict[str, Run]:
    """Returns the runs of these parts by name."""
    return {run.name: run for part in parts for run in PARTS[part]()}


def waves(chosen: list[Run]) -> list[list[Run]]:
    """Returns groups of runs that can train in parallel; a run is in a later group than the run that it starts from."""
    runs = all_runs()
    depth_of = lambda run: 1 + depth_of(runs[run.start]) if run.start else 0
    depths = {run.name: depth_of(run) for run in chosen}
    return [[run for run in chosen if depths[run.name] == depth] for depth in sorted(set(depths.values()))]


def main() -> int:
    """Trains, evaluates and writes the results. Returns 0, 1 if a run failed, or 2 for wrong arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="output directory")
    parser.add_argument("--part", choices=PARTS, action="append", help="part of the study; repeatable (default: all)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only the run of this name; repeatable")
    parser.add_argument("--at-once", type=int, metavar="N", help="parallel trainings (default: one per core)")
    parser.add_argument(
        "--gin", action="append", default=[], metavar="BINDING", help="gin binding for all trainings; repeatable"
    )
    args = parser.parse_args()
    runs = all_runs(args.part or PARTS)
    chosen = [run for run in runs.values() if not args.only or run.name in args.only]
    try:
        if unknown := [name for name in args.only or () if name not in runs]:
            raise ConfigError(f"no run is called {', '.join(unknown)}; there are {', '.join(runs)}")
        at_least("--at-once", 1 if args.at_once is None else args.at_once, 1)
        for wave in [jobs(wave, args) for wave in waves(chosen)]:  # all are checked before the first starts
            side_by_side.train(wave, args.at_once or len(cores()))
        for run in chosen:
            evaluate(run, args.folder)
    except ConfigError as error:
        print(f"memory_study: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"memory_study: {error}", file=sys.stderr)
        return 1
    memory_results.write(args.folder, {title: part() for title, part in PARTS.items()})
    return 0


def jobs(runs: list[Run], args: argparse.Namespace) -> list[side_by_side.Job]:
    """Returns the training jobs of the runs; a finished one exits immediately."""
    found = []
    for run in runs:
        start = [f"INITIAL_CHECKPOINT_PATH={str(args.folder / run.start)!r}"] if run.start else []
        found.append(side_by_side.job(run.name, run.experiment, [*run.bindings, *args.gin, *start], args.folder))
    return found


def evaluate(run: Run, folder: Path) -> None:
    """Runs the evaluations of a run with `famjax eval`, which does not repeat finished examples."""
    same = ("eval", "--model", folder / run.name, "--seed", REPORTED_KEYS)
    for asked, output in zip(run.asked, memory_results.evaluations(run, folder), strict=True):
        what = ("--filler-blocks", asked.blocks, "--keys", asked.keys)
        alignments = f"--gin.EvalConfig.alignments={asked.alignments}"
        verbs.famjax(*same, "--output", output, *what, alignments, quiet=True)
    if run.depths:
        what = ("--task", run.depths.tasks, "--lengths", run.depths.lengths, "--examples", run.depths.examples)
        verbs.famjax(*same, "--output", memory_results.depths(run, folder), *what, quiet=True)


if __name__ == "__main__":
    sys.exit(main())
