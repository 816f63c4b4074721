"""The paper's ablations of FAM and its alternatives (figures 5 to 9) as comparisons on the pass key.

    python launch/studies/paper_ablations.py runs/ablations --only fam_length
    python launch/studies/comparing.py "FAM length=runs/ablations/fam_length.json"

Each ablation is one `famjax compare` of a few memories, with three seeds. All train in DIR, so that FAM itself is
trained once; the report of each is DIR/NAME.json and DIR/NAME.html. The same command resumes; run one at a time. The
paper compares on fine-tuned models of 1B weights and long texts, these are models of 140,000 weights and random first
weights, so what agrees is the direction and not the size. About 4 minutes of one core per training.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import verbs


class Ablation(NamedTuple):
    """One comparison.

    Attributes:
      memories: values of `famjax compare --memories`.
      paper: result in the paper.
    """

    memories: tuple[str, ...]
    paper: str


def fam_and(field: str, *values: object) -> tuple[str, ...]:
    """Returns FAM and a variant for each value of a setting, in the syntax of `famjax compare --memories`."""
    return "fam", *(f"fam:{field}={value}" for value in values)


ABLATIONS = {
    "fam_length": Ablation(fam_and("fam_length", 2, 4, 16, 32), "64 of 1,024 is best, longer ones lose"),
    "previous_fams": Ablation(fam_and("previous_fams", 2), "more than one is no gain"),
    "fam_position": Ablation(fam_and("fam_position", "float", "zero"), "the last positions of a block are best"),
    # With other FAM positions, scores depend on differences of positions only, so an offset has no effect.
    "random_position_offset": Ablation(
        ("fam:fam_position=zero", "fam:fam_position=zero:random_position_offset=0.5"), "helps"
    ),
    "random_state_passing": Ablation(fam_and("random_state_passing", 0.8), "helps, best at 0.8"),
    "fam_init": Ablation(fam_and("fam_init", "prefix"), "a prompt is better than a prefix for each layer"),
    "auxiliary_losses": Ablation(
        ("fam", "fam:fam_diversity_loss=0.1", "fam:fam_reconstruction_loss=0.1"), "neither is a gain"
    ),
    "stop_gradient": Ablation(("bswa_1", "bswa_1:stop_gradient=True"), "hurts: it fails beyond its window"),
    "alternatives": Ablation(
        ("fam", "sum", "fm", "rmt", "bswa_1"),
        "static summary and feedback memory segments fail; RMT falls off beyond trained lengths",
    ),
    "autocompressor": Ablation(("fam", "autocompressor"), "AutoCompressors fall off beyond trained lengths"),
}


def main() -> int:
    """Runs the chosen ablations. Returns 0, or the exit code of a comparison that failed or was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what is trained and evaluated")
    parser.add_argument("--only", choices=ABLATIONS, nargs="+", default=list(ABLATIONS), help="these ablations")
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N")
    parser.add_argument("--at-once", default=1, type=int, metavar="N", help="parallel trainings (default: 1)")
    args = parser.parse_args()
    return verbs.run("paper_ablations", lambda: compare(args))


def compare(args: argparse.Namespace) -> None:
    """Runs one comparison per ablation and names its report."""
    for name in args.only:
        print(f"\n{name}; the paper: {ABLATIONS[name].paper}", flush=True)
        verbs.famjax(*words(name, args.folder, args.seeds, args.at_once))
        for report in ("comparison.json", "comparison.html"):
            (args.folder / report).replace(args.folder / f"{name}{Path(report).suffix}")


def words(name: str, folder: Path, seeds: str, at_once: int) -> list[object]:
    """Returns the arguments of `famjax` that run an ablation."""
    memories = ",".join(ABLATIONS[name].memories)
    return ["compare", "--memories", memories, "--seeds", seeds, "--at-once", at_once, "--output", folder]


if __name__ == "__main__":
    sys.exit(main())
