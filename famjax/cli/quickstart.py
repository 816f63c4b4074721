"""`famjax quickstart`: trains FAM and its BSWA baselines, and compares them."""

import argparse
import time
from pathlib import Path
from typing import Any

from famjax.cli import side_by_side
from famjax.cli.flags import check_folder, distinct_numbers, refuse
from famjax.config import ConfigError, EvalConfig
from famjax.config.checks import at_least
from famjax.process.cpu import cores

NAME = "quickstart"
HELP = """Show what a trained TransformerFAM recalls, then train one and a BSWA baseline (no FAM), and compare them.

  famjax quickstart --output runs/quickstart
  famjax quickstart --no-training
  famjax quickstart --paper --output runs/paper
  famjax quickstart --texts runs/texts --output runs/texts_shown
  famjax quickstart --twins 0,1,2 --output runs/twins

A small trained model comes with famjax. It is written to DIR/shipped and evaluated within half a minute;
--no-training stops there. Then FAM and a baseline of the same size train at the same time, on one core each,
with the same documents and number of steps, and are evaluated on the pass key with 1 to 1,024 blocks of
filler; training backpropagates through at most 6. FAM has gated updates, a departure from the paper that
learns in half of the steps; --paper trains with the paper's update, in twice the time. --twins 0,1,2 trains
three baselines, with 0, 1 and 2 memory segments. With --texts DIR the models train on document streams of
DIR/train/*.txt and are evaluated on DIR/heldout/*.txt, in bits per byte by position in the document
(launch/studies/debian_texts.py downloads such texts). The same command resumes an interrupted run.
"""

PASSKEY = {"fam": "gin/experiments/tiny_gated.gin", "bswa": "gin/experiments/tiny_bswa.gin"}
PAPER = PASSKEY | {"fam": "gin/experiments/tiny_fam.gin"}
TEXTS = {"fam": "gin/experiments/texts_fam.gin", "bswa": "gin/experiments/texts_bswa.gin"}
FILLER_BLOCKS = (1, 4, 16, 64, 256, 1024)
# Evaluation of the model that is shipped with famjax: few documents, so that it takes seconds.
SHIPPED_BLOCKS, SHIPPED_ALIGNMENTS = (1, 16, 256), 16
# An exact match below this counts as a failure.
HARDLY = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax quickstart`."""
    parser.add_argument(
        "--output", default="runs/quickstart", metavar="DIR", help="output directory (default: runs/quickstart)"
    )
    parser.add_argument("--texts", metavar="DIR", help="train on DIR/train/*.txt, evaluate on DIR/heldout/*.txt")
    parser.add_argument(
        "--twins", type=distinct_numbers, metavar="M,M", help="memory segments of the baselines (default: 0)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of weights and documents (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: those of the gin files)")
    parser.add_argument("--paper", action="store_true", help="train FAM with the paper's update, in twice the steps")
    parser.add_argument("--no-training", action="store_true", help="stop after the evaluation of the shipped model")
    parser.add_argument("--keys", type=int, metavar="N", help="keys per alignment (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Trains all models, evaluates them and prints the comparison."""
    output = Path(args.output)
    check_folder("--output", output)
    if args.no_training and args.texts:
        raise ConfigError("--no-training shows the pass key model that comes with famjax; leave --texts away")
    if args.no_training:
        refuse(args, ("twins", "seed", "steps", "keys", "paper"), "with --no-training; leave it out")
    if args.texts:
        refuse(args, ("keys", "paper"), "with --texts; leave it out")
    if args.keys is not None:
        at_least("--keys", args.keys, 1)
    jobs = _jobs(args, output)
    if not args.texts:
        _show_shipped(output / "shipped")
    if args.no_training:
        return 0
    began = time.perf_counter()
    side_by_side.train(jobs, at_once=max(2, len(cores())))
    trained = time.perf_counter()

    from famjax.evals.run import run as evaluate
    from famjax.process.compilation_cache import enable

    enable()
    shared: dict[str, Any] = {"model_dirs": tuple(job.config.model_dir for job in jobs), "output_dir": str(output)}
    longest = 0
    if args.texts:
        evaluation = EvalConfig(**shared, task="text", sources=(f"{args.texts}/heldout/*.txt",), batch_size=16)
    else:
        longest = jobs[0].config.longest_filler
        evaluation = EvalConfig(**shared, keys=args.keys or 1, filler_blocks=FILLER_BLOCKS)
    results = evaluate(evaluation, longest)
    minutes = [(b - a) / 60 for a, b in ((began, trained), (trained, time.perf_counter()))]
    print(f"{minutes[0]:.1f} minutes of training, {minutes[1]:.1f} of evaluation")
    print(_verdict_on_texts(results) if args.texts else _verdict(results, longest))
    return 0


def _show_shipped(model_dir: Path) -> None:
    """Evaluates the shipped model, and prints how to inspect it."""
    from famjax.evals.run import run as evaluate
    from famjax.infer.shipped import unpack
    from famjax.process.compilation_cache import enable

    enable()
    unpack("passkey", model_dir)
    print(f"A trained model comes with famjax, now in {model_dir}: gin/experiments/tiny_fam.gin, seed 0.\n"
          f"Its tokens see their own block of 64 bytes, and FAM. Evaluated on the pass key:", flush=True)  # fmt: skip
    evaluate(EvalConfig(
        model_dirs=(str(model_dir),), output_dir=str(model_dir), filler_blocks=SHIPPED_BLOCKS,
        alignments=SHIPPED_ALIGNMENTS,
    ))  # fmt: skip
    print(
        f"To look inside: famjax inspect --model {model_dir} --passkey 1 16 256 --output {model_dir}/inspect",
        flush=True,
    )


def _jobs(args: argparse.Namespace, output: Path) -> list[side_by_side.Job]:
    bindings = [f"RANDOM_SEED={args.seed or 0}"]
    if args.texts:
        for folder in ("train", "heldout"):
            if not any(Path(args.texts, folder).glob("*.txt")):
                raise ConfigError(f"{args.texts}/{folder} has no .txt file; python launch/studies/debian_texts.py "
                                  f"{args.texts} downloads some on systems with apt")  # fmt: skip
        bindings.append(f"SOURCES=({f'{args.texts}/train/*.txt'!r},)")
    experiments = TEXTS if args.texts else PAPER if args.paper else PASSKEY
    steps = [f"TRAIN_STEPS={args.steps}"] if args.steps is not None else []
    jobs = [side_by_side.job("fam", experiments["fam"], [*bindings, *steps], output)]
    for segments in args.twins or (0,):
        name = "bswa" if segments == 0 else f"bswa_{segments}"
        twin = [*bindings, f"MEMORY_SEGMENTS={segments}", f"TRAIN_STEPS={jobs[0].config.steps}"]
        jobs.append(side_by_side.job(name, experiments["bswa"], twin, output))
    return jobs


def _verdict(results: dict[str, Any], longest: int) -> str:
    """Returns one line per model that summarises its exact match within and beyond the trained lengths."""
    lines = []
    for model in results["models"]:
        trained = [row for row in model["passkey"] if row["filler_tokens"] <= longest]
        beyond = [row for row in model["passkey"] if row["filler_tokens"] > longest]
        best = max(row["exact_match"] for row in model["passkey"])
        if best < HARDLY:
            lines.append(f"{model['name']}: at most {best:.2f} exact match, at any length")
            continue
        worst = min(row["exact_match"] for row in trained)
        far = ", ".join(f"{row['exact_match']:.2f} at {row['filler_blocks']}" for row in beyond)
        lines.append(
            f"{model['name']}: at least {worst:.2f} exact match up to {trained[-1]['filler_blocks']} blocks of filler, "
            f"the lengths that training backpropagated through; beyond, {far}"
        )
    return "\n".join(lines)


def _verdict_on_texts(results: dict[str, Any]) -> str:
    """Returns lines with the difference in bits per byte of the first model from each other one, by position."""
    from famjax.evals.reports.language_report import gap_text

    first, *others = results["models"]
    lines = []
    for model in others:
        for row in (model["text"][0], model["text"][-2], model["text"][-1]):
            where = "over all" if row["to"] is None else f"from {row['from']:,} to {row['to'] - 1:,}"
            gap = gap_text(row["less_than_first"], digits=3)
            lines.append(f"{first['name']} - {model['name']} {where}, bits per byte: {gap}")
    return "\n".join(lines)
