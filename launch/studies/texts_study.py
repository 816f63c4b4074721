"""FAM and BSWA on real long documents: the trainings and evaluations of docs/texts.md over several seeds, as tables.

    python launch/studies/debian_texts.py runs/texts
    python launch/studies/texts_study.py runs/texts_study runs/texts

A run is a kind of model and M, its number of memory segments: `bswa_m0` (no FAM), `fam_m0` (the paper's update) or
`gated_m1` (gated updates); `gated_m0_then_m1` is trained as `gated_m0`, and then with one segment. Each is trained once
per seed, each training on its own core, and evaluated on the held-out documents twice: document by document, and joined
to one text whose memory is never reset. With --join N they train on joined documents, too: texts of 1 to N documents in
random order, in which a subject changes and the memory is not reset. Finished work is not repeated, so the same command
resumes. DIR gets study.json and study.md: bits per byte by position, the mean over seeds, and differences from the BSWA
that is trained alike, with the range over seeds.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import verbs

from famjax.cli import side_by_side
from famjax.cli.flags import distinct_numbers
from famjax.config import ConfigError
from famjax.config.checks import at_least
from famjax.data.examples import number_to_join
from famjax.process.cpu import cores
from famjax.storage.model_dir import write_bytes, write_text

FAM, BSWA = "gin/experiments/texts_fam.gin", "gin/experiments/texts_bswa.gin"
KINDS = {"bswa": "BSWA", "fam": "FAM", "gated": "gated FAM"}
READ = {"heldout": "Held-out documents", "joined": "The same documents, joined: the memory is never reset"}
SECOND = 1000  # added to the seed of a training after another one
DEFAULT = "bswa_m0,fam_m0,gated_m0"
BLOCK = 128


class Run(NamedTuple):
    """A kind of model, and how it is trained.

    Attributes:
      kind: key of `KINDS`.
      segments: number of memory segments.
      before: number of memory segments in a training before it, or None without such a training.
    """

    kind: str
    segments: int
    before: int | None = None

    @property
    def first(self) -> "Run | None":
        """The run that it starts from; None: from random weights."""
        return None if self.before is None else Run(self.kind, self.before)

    @property
    def training(self) -> str:
        """Its name without the kind."""
        return f"m{self.segments}" if self.before is None else f"m{self.before}_then_m{self.segments}"

    @property
    def name(self) -> str:
        """Its name."""
        return f"{self.kind}_{self.training}"

    @property
    def title(self) -> str:
        """Heading of its column in the tables."""
        return f"{KINDS[self.kind]}, {self.about}"

    @property
    def about(self) -> str:
        """How it is trained, in the tables."""
        return f"M = {self.segments}" if self.before is None else f"M = {self.before}, then {self.segments}"

    def job(self, seed: int, steps: int, block: int, folder: Path, texts: Path) -> side_by_side.Job:
        """Returns the training job with one seed, on the .txt files of the folder `texts`."""
        # A second training reads the texts in another order.
        number = seed if self.first is None else seed + SECOND
        bindings = [f"RANDOM_SEED={number}", f"MEMORY_SEGMENTS={self.segments}", f"TRAIN_STEPS={steps}",
                    f"BLOCK_SIZE={block}", f"SOURCES=({str(texts / '*.txt')!r},)"]  # fmt: skip
        if self.kind == "gated":
            bindings.append("MemoryConfig.fam_update='gated'")
        if self.first:
            bindings.append(f"INITIAL_CHECKPOINT_PATH={str(folder / f'{self.first.name}_{seed}')!r}")
        return side_by_side.job(f"{self.name}_{seed}", BSWA if self.kind == "bswa" else FAM, bindings, folder)


def parsed(text: str) -> list[Run]:
    """Returns the runs of a comma-separated list of names. Raises `ConfigError` for an invalid name."""
    found = []
    for name in text.split(","):
        match = re.fullmatch(rf"({'|'.join(KINDS)})_(?:m(\d)_then_)?m(\d)", name)
        if not match:
            raise ConfigError(f"{name!r} is no run; use KIND_mM or KIND_mM_then_mM with M from 0 to 9, where KIND is "
                              f"{', '.join(KINDS)}")  # fmt: skip
        run = Run(match[1], int(match[3]), None if match[2] is None else int(match[2]))
        if run in found:
            raise ConfigError(f"--runs has {name} twice; name each once")
        found.append(run)
    return found


def main() -> int:
    """Returns 0, 1 if a training or an evaluation failed, or 2 for wrong arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="output directory")
    parser.add_argument("texts", type=Path, metavar="TEXTS", help="folder with train/*.txt and heldout/*.txt")
    parser.add_argument("--runs", default=DEFAULT, help=f"runs to train and evaluate (default: {DEFAULT})")
    parser.add_argument("--seeds", type=distinct_numbers, default=(0, 1, 2), help="seeds (default: 0,1,2)")
    parser.add_argument("--steps", type=int, default=900, help="training steps (default: 900)")
    parser.add_argument(
        "--first-steps", type=int, metavar="N", help="steps before a model continues with other segments (as --steps)"
    )
    parser.add_argument(
        "--block-size", type=int, default=BLOCK, metavar="N", help=f"tokens of a block (default: {BLOCK})"
    )
    parser.add_argument("--join", type=int, metavar="N", help="train on texts of 1 to N joined documents")
    parser.add_argument("--at-once", type=int, metavar="N", help="parallel trainings (default: one per core)")
    args = parser.parse_args()
    try:
        runs, seeds = parsed(args.runs), list(args.seeds)
        groups = in_order(runs, args.steps, args.first_steps)
        at_least("--at-once", 1 if args.at_once is None else args.at_once, 1)
        for part in ("train", "heldout"):
            if not any((args.texts / part).glob("*.txt")):
                raise ConfigError(f"{args.texts / part} has no .txt file; launch/studies/debian_texts.py makes some")
        if args.join is not None and args.join < 2:
            raise ConfigError(f"--join {args.join}: use 2 or more; without --join, documents are not joined")
        read = args.texts / "train" if args.join is None else join(args.texts / "train", args.folder, args.join)
        waves = [
            [run.job(seed, steps, args.block_size, args.folder, read) for seed in seeds for run in group]
            for group, steps in groups
        ]
    except ConfigError as error:
        print(f"texts_study: {error}", file=sys.stderr)
        return 2
    try:
        for jobs in waves:
            side_by_side.train(jobs, args.at_once or len(cores()))
        for seed in seeds:
            for run in runs:
                evaluate(f"{run.name}_{seed}", args.folder, args.texts)
    except ConfigError as error:  # the folder has trainings with other settings
        print(f"texts_study: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"texts_study: {error}", file=sys.stderr)
        return 1
    write(runs, seeds, args)
    return 0


def in_order(runs: list[Run], steps: int, first_steps: int | None) -> list[tuple[list[Run], int]]:
    """Returns groups of runs with their training steps: those that others start from, then the others.

    Raises `ConfigError` if a run is asked for by itself and as the start of another one, with other steps.
    """
    starts = list(dict.fromkeys(run.first for run in runs if run.first))
    if first_steps is not None and not starts:
        raise ConfigError("--first-steps: no run starts from another one; name KIND_mM_then_mM in --runs")
    first_steps = steps if first_steps is None else first_steps
    if first_steps != steps and (both := [run.name for run in runs if run in starts]):
        raise ConfigError(f"--runs has {both[0]}, which others start from after --first-steps; use another DIR for it")
    found = [(starts, first_steps), ([run for run in runs if run not in starts], steps)]
    return [(group, number) for group, number in found if group]


def join(train: Path, folder: Path, most: int) -> Path:
    """Joins the .txt files of `train` to texts of 1 to `most` documents, and returns their folder in `folder`.

    Documents are in a random order, in which each is once; the logarithm of their number in a text is uniform, so half
    of the texts have at most the root of `most` documents. All drawn with seed 0.
    """
    into, generator = folder / f"joined_{most}", np.random.default_rng(0)
    into.mkdir(parents=True, exist_ok=True)
    paths = sorted(train.glob("*.txt"))
    parts = [paths[one].read_bytes() for one in generator.permutation(len(paths))]
    texts = 0
    while parts:
        number = number_to_join(generator, most)
        write_bytes(into / f"{texts:04}.txt", b"".join(parts[:number]))
        parts, texts = parts[number:], texts + 1
    return into


def evaluate(name: str, folder: Path, texts: Path) -> None:
    """Evaluates a model on the held-out documents, one by one and joined, unless results exist."""
    joined = folder / "joined.txt"
    if not joined.exists():
        parts = [path.read_bytes() for path in sorted((texts / "heldout").glob("*.txt"))]
        write_bytes(joined, b"".join(parts))
    for read, source in (("heldout", texts / "heldout" / "*.txt"), ("joined", joined)):
        output = folder / f"{name}-{read}"
        if not (output / "results.json").exists():
            verbs.famjax("eval", "--model", folder / name, "--texts", source, "--output", output, quiet=True)


def write(runs: list[Run], seeds: list[int], args: argparse.Namespace) -> None:
    """Writes study.json and study.md, and prints study.md."""
    folder = args.folder
    found: dict[str, dict[str, list[list[dict[str, float]]]]] = {
        read: {run.name: [rows(folder / f"{run.name}_{seed}-{read}") for seed in seeds] for run in runs}
        for read in READ
    }
    study = {"seeds": seeds, "steps": args.steps, "first_steps": args.first_steps, "join": args.join,
             "block_size": args.block_size, "bits_per_byte": found}  # fmt: skip
    write_text(folder / "study.json", json.dumps(study, indent=1) + "\n")
    lines = []
    for read, title in READ.items():
        lines += [f"## {title}", "", *table(runs, found[read]), ""]
    write_text(folder / "study.md", "\n".join(lines))
    print("\n".join(lines))


def rows(output: Path) -> list[dict[str, float]]:
    """Returns the bits per byte of an evaluation by span of positions, and over all positions (`to` is None)."""
    (model,) = json.loads((output / "results.json").read_text(encoding="utf-8"))["models"]
    return [{name: row[name] for name in ("from", "to", "bits_per_byte")} for row in model["text"]]


def table(runs: list[Run], found: dict[str, list[list[dict[str, float]]]]) -> list[str]:
    """Returns a Markdown table with a row per span of positions.

    Args:
      runs: the runs, one column each; differences from the BSWA of the same M follow.
      found: by run, for each seed the result of `rows`.
    """
    baselines = {run.training: run for run in runs if run.kind == "bswa"}
    pairs = [(run, baselines[run.training]) for run in runs if run.kind != "bswa" and run.training in baselines]
    head = [
        "position",
        *(run.title for run in runs),
        *(f"{KINDS[run.kind]} - BSWA, {run.about}" for run, _ in pairs),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for place, row in enumerate(found[runs[0].name][0]):
        bits = {name: [one[place]["bits_per_byte"] for one in of_seeds] for name, of_seeds in found.items()}
        cells = ["all" if row["to"] is None else f"{row['from']:,} to {row['to'] - 1:,}"]
        cells += [f"{mean(bits[run.name]):.3f}" for run in runs]
        for run, baseline in pairs:
            cells.append(difference(bits[run.name], bits[baseline.name]))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def difference(ours: list[float], theirs: list[float]) -> str:
    """Returns the mean over seeds of `ours` - `theirs`, and its range."""
    gaps = [one - other for one, other in zip(ours, theirs, strict=True)]
    return f"{mean(gaps):+.3f} ({min(gaps):+.3f} to {max(gaps):+.3f})"


def mean(numbers: list[float]) -> float:
    """Returns the mean."""
    return sum(numbers) / len(numbers)


if __name__ == "__main__":
    sys.exit(main())
