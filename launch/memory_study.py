"""What makes a feedback memory last: trainings and evaluations behind docs/memory.md, and its tables and plot.

    python launch/memory_study.py runs/memory                       everything, for some four hours on two cores
    python launch/memory_study.py runs/memory --part recipe         passkey_long.gin, three seeds
    python launch/memory_study.py runs/memory --part twins          with and without FAM, as many steps on the same data
    python launch/memory_study.py runs/memory --part ablations      tiny_fam.gin, one thing changed in each
    python launch/memory_study.py runs/memory --part block1024      blocks of 1024, so that 256 updates are 260k tokens

Each training runs on cores of its own, as many at once as there are cores (--at-once). The keys that are evaluated
depend on a seed that no training and no choice has seen. What is done already is not done again, so the same command
goes on where it was stopped. DIR gets study.json, study.md (tables) and study.png (the recipe beside others).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import verbs

from famjax.cli import side_by_side
from famjax.runtime.cpu import cores

SHORT, LONG = "gin/experiments/tiny_fam.gin", "gin/experiments/passkey_long.gin"
BLOCK1024 = "gin/experiments/passkey_block1024.gin"
SEEDS = (0, 1, 2)
REPORTED_KEYS = 271828  # the evaluation's seed
# Runs that the plot shows beside the recipe.
PLOTTED = ("bswa_m0", "bswa_m1", "as_carried", "bound", "paper", "rsp")

RESULTS_JSON, SAMPLES_JSONL = "results.json", "samples.jsonl"
NEAR = 3  # tokens between a block's edge and the beginning of an answer


class Asked(NamedTuple):
    """An evaluation: lengths of the filler in blocks, keys for each alignment of filler and block, and how many
    alignments; 0 is all."""

    blocks: str
    keys: int = 1
    alignments: int = 0


class Run(NamedTuple):
    """A training and what it is asked.

    Attributes:
      name: of its directory.
      part: of the study.
      about: what is special about it, as the table has it.
      bindings: what is set otherwise than in the experiment.
      experiment: its gin file.
      asked: its evaluations.
      start: run whose weights it starts from; empty for random ones.
    """

    name: str
    part: str
    about: str
    bindings: tuple[str, ...] = ()
    experiment: str = SHORT
    asked: tuple[Asked, ...] = (Asked("16,64,256,1024"),)
    start: str = ""


def recipe() -> list[Run]:
    """The recipe on several seeds."""
    asked = (Asked("16,64,256,1024", keys=4), Asked("4096", alignments=32), Asked("16384", alignments=16))
    return [Run(f"long_seed{n}", "recipe", f"the recipe, seed {n}", (f"RANDOM_SEED={n}",), LONG, asked) for n in SEEDS]


def base() -> Run:
    """The recipe with fewer steps: the quickstart's FAM, beside which twins and ablations are seen."""
    return Run("base", "twins", "FAM, M = 0", asked=(Asked("1,2,4,8,16,64,256,1024"),))


def twins() -> list[Run]:
    """Block sliding window attention without FAM: with more segments, and with as many bytes of memory as FAM's."""
    none, asked = "FAM_LENGTH=0", (Asked("1,2,4,8,16,64,256"),)
    found = [
        Run(f"bswa_m{m}", "twins", f"BSWA, M = {m}", (none, f"MEMORY_SEGMENTS={m}"), asked=asked) for m in (0, 1, 2, 4)
    ]
    # 2 blocks of 38 tokens keep 76 keys and values a layer; FAM's 64, and 8 activations with their keys and values.
    equal = (none, "MEMORY_SEGMENTS=1", "BLOCK_SIZE=38", "TASK_FEATURE_LENGTHS={'targets': 722}")
    about = "BSWA of equal memory (block 38, M = 1)"
    return [base(), *found, Run("bswa_equal", "twins", about, equal, asked=asked)]


AS_CARRIED = "TrainConfig.carried_fam_rms=0.0"
ROWS_22 = ("TASK_FEATURE_LENGTHS={'targets': 1408}", "PassKeyConfig.stages=(1, 2, 4, 8, 16)")
PAPER = (*ROWS_22, "PassKeyConfig.stream_share=0.0")
RSP = "MemoryConfig.random_state_passing=0.8"
# What is changed, one thing in each: name, words, bindings. A departure is a change of the paper's equations.
CHANGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("as_carried", "carried FAM as it is", (AS_CARRIED,)),
    ("all_young", "carried FAM young in all rows", ("TrainConfig.carried_fam_share=1.0",)),
    ("young_4", "carried FAM of RMS 4 at most, not 1.5", ("TrainConfig.carried_fam_rms=4.0",)),
    ("paper", "the paper: no streams, no RSP, gradients over 16 blocks", PAPER),
    ("rsp", "the paper: no streams, RSP 0.8, gradients over 16 blocks", (*PAPER, RSP)),
    ("rsp_late", "the paper: no streams, RSP 0.8 from step 1200, gradients over 16 blocks",
     (*PAPER, RSP, "MemoryConfig.random_state_passing_from=1200")),
    ("bound", "carried FAM as it is, bounded to RMS 4 at every update (departure)",
     (AS_CARRIED, "MemoryConfig.fam_max_rms=4.0")),
    ("growth", "carried FAM as it is, loss 0.1 on FAM's growth", (AS_CARRIED, "TrainConfig.fam_growth_loss=0.1")),
    ("noise", "noise 0.2 on FAM in training (departure)", ("MemoryConfig.fam_noise=0.2",)),
    ("ungated", "streams go on whatever the answer", ("PassKeyConfig.stream_gated=False",)),
    ("half", "half of the rows stream", ("PassKeyConfig.stream_share=0.5",)),
    ("streams_64", "streams of at most 64 blocks", ("PassKeyConfig.stream_blocks=64",)),
    ("no_straddle", "no more answers at edges than by chance", ("PassKeyConfig.straddle_share=0.0",)),
    ("straddle_within", "answers that straddle edges, none just behind", ("PassKeyConfig.straddle_behind=0",)),
    ("rows_8", "rows of 8 blocks: gradients over 3 blocks of filler",
     ("TASK_FEATURE_LENGTHS={'targets': 512}", "PassKeyConfig.stages=(1, 2, 3)")),
    ("rows_22", "rows of 22 blocks: gradients over 16 blocks of filler", ROWS_22),
    ("no_curriculum", "all lengths from the start", ("PassKeyConfig.stages=(6,)",)),
    ("no_text", "no loss on other text", ("PassKeyConfig.text_weight=0.0",)),
    ("text", "loss weight 0.5 on other text, not 0.05", ("PassKeyConfig.text_weight=0.5",)),
    ("first_residual", "the first update adds the prompt (departure)", ("MemoryConfig.zero_first_residual=False",)),
    ("prefix", "prefix instead of prompt", ("MemoryConfig.fam_init='prefix'",)),
    ("prompt_lr", "the prompt's learning rate times 10, no decay",
     ("OptimizerConfig.parameters={'fam/prompt': {'learning_rate': 10.0, 'weight_decay': False}}",)),
    ("float", "FAM positions between blocks", ("MemoryConfig.fam_position='float'",)),
    ("zero", "FAM positions zero", ("MemoryConfig.fam_position='zero'",)),
    ("fam_2", "FAM length 2, not 8", ("FAM_LENGTH=2",)),
    ("fam_4", "FAM length 4", ("FAM_LENGTH=4",)),
    ("fam_16", "FAM length 16", ("FAM_LENGTH=16",)),
    ("layers_2", "2 layers, not 3", ("ModelConfig.num_layers=2",)),
    ("layers_4", "4 layers", ("ModelConfig.num_layers=4",)),
    ("width_32", "width 32, not 64", ("ModelConfig.d_model=32", "ModelConfig.d_ff=64", "ModelConfig.head_dim=16")),
    ("width_96", "width 96", ("ModelConfig.d_model=96", "ModelConfig.d_ff=192", "ModelConfig.head_dim=48")),
)  # fmt: skip


def ablations() -> list[Run]:
    """One thing changed in each, one seed."""
    changed = [Run(name, "ablations", about, bindings) for name, about, bindings in CHANGES]
    return [base(), *changed]


def block1024() -> list[Run]:
    """The paper's block size."""
    about, asked = "block 1024, from the recipe's seed 0", (Asked("1,4,16,64,256", alignments=64),)
    return [Run("block1024", "block1024", about, (), BLOCK1024, asked, start="long_seed0")]


PARTS = {"recipe": recipe, "twins": twins, "ablations": ablations, "block1024": block1024}


def main() -> int:
    """Returns 0, or 1 where a training or an evaluation failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where everything goes")
    parser.add_argument("--part", choices=PARTS, action="append", help="of the study (all); may be given several times")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="runs of these names; may be given several times"
    )
    parser.add_argument("--at-once", type=int, metavar="N", help="trainings side by side (one for each core)")
    parser.add_argument("--gin", action="append", default=[], metavar="BINDING", help="set in all trainings, to try")
    args = parser.parse_args()
    runs = {run.name: run for part in args.part or PARTS for run in PARTS[part]()}  # one of them is in two parts
    chosen = [run for run in runs.values() if not args.only or run.name in args.only]
    if not chosen:
        print(f"memory_study: no run is called {', '.join(args.only)}", file=sys.stderr)
        return 2
    try:
        waves = [run for run in chosen if not run.start], [run for run in chosen if run.start]
        for wave in [jobs(wave, args) for wave in waves]:  # all are checked before the first begins
            side_by_side.train(wave, args.at_once or len(cores()))
        for run in chosen:
            evaluate(run, args.folder)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"memory_study: {error}", file=sys.stderr)
        return 1
    write(args.folder)
    return 0


def jobs(runs: list[Run], args: argparse.Namespace) -> list[side_by_side.Job]:
    """Their trainings; one that is done already leaves at once."""
    found = []
    for run in runs:
        start = [f"INITIAL_CHECKPOINT_PATH={str(args.folder / run.start)!r}"] if run.start else []
        found.append(side_by_side.job(run.name, run.experiment, [*run.bindings, *args.gin, *start], args.folder))
    return found


def evaluate(run: Run, folder: Path) -> None:
    """`famjax eval`, which asks nothing that was asked before."""
    for asked, output in zip(run.asked, evaluations(run, folder), strict=True):
        where = ("--model", folder / run.name, "--output", output)
        what = ("--filler-blocks", asked.blocks, "--keys", asked.keys, "--seed", REPORTED_KEYS)
        verbs.famjax("eval", *where, *what, f"--gin.EvalConfig.alignments={asked.alignments}", quiet=True)


def evaluations(run: Run, folder: Path) -> list[Path]:
    """Where they write."""
    return [folder / f"{run.name}-eval{number or ''}" for number in range(len(run.asked))]


# --- what came out ------------------------------------------------------------------------------------------------


def write(folder: Path) -> None:
    """Tables and plot of all runs that have results, whatever part was asked for now."""
    runs = {run.name: run for part in PARTS.values() for run in part()}
    done = [run for run in runs.values() if all((one / RESULTS_JSON).exists() for one in evaluations(run, folder))]
    found = {run.name: told(run, folder) for run in done}
    (folder / "study.json").write_text(json.dumps(list(found.values()), indent=1) + "\n", encoding="utf-8")
    parts = []
    for title, part in PARTS.items():
        rows = [found[run.name] for run in part() if run.name in found]
        parts += [f"## {title}", "", *table(rows), ""] if rows else []
        parts += [*where_it_fails(rows), ""] if rows and title == "recipe" else []
    (folder / "study.md").write_text("\n".join(parts), encoding="utf-8")
    plot(folder / "study.png", [row for row in found.values() if row["part"] == "recipe" or row["name"] in PLOTTED])
    print("\n".join(parts))


def told(run: Run, folder: Path) -> dict[str, Any]:
    """One run's numbers: what it cost and what it recalls."""
    from famjax.cli.gin_config import load_train_config
    from famjax.plan.programs import targets_of_row
    from famjax.train.flops import flops_per_token

    config, _ = load_train_config([run.experiment], (), ["MODEL_DIR='none'", *run.bindings])
    last = last_line(folder / run.name / "metrics.jsonl")
    tokens = last["step"] * config.batch_size * config.sequence_length
    results = [json.loads((one / RESULTS_JSON).read_text(encoding="utf-8")) for one in evaluations(run, folder)]
    recall = [row for one in results for row in one["models"][0]["passkey"]]
    return {
        "name": run.name, "part": run.part, "about": run.about, "steps": last["step"], "tokens": tokens,
        "flops": tokens * flops_per_token(config, targets_of_row(config)), "minutes": last["seconds"] / 60,
        "block_size": config.model.memory.block_size, "recall": recall,
        "misses": misses(run, folder, config.model.memory.block_size),
    }  # fmt: skip


def misses(run: Run, folder: Path, block_size: int) -> list[int]:
    """Of each wrong answer how many tokens behind the nearest block's edge it begins; before it where negative."""
    lines = [line for one in evaluations(run, folder) for line in (one / SAMPLES_JSONL).read_text().splitlines()]
    wrong = [sample for sample in map(json.loads, lines) if sample["values"]["exact_match"] < 1]
    half = block_size // 2
    return sorted((sample["tokens"] + half) % block_size - half for sample in wrong)


def where_it_fails(rows: list[dict[str, Any]]) -> list[str]:
    """Where the answers that were wrong begin, a line."""
    asked = sum(one["documents"] for row in rows for one in row["recall"])
    found = [place for row in rows for place in row["misses"]]
    near = sum(abs(place) <= NEAR for place in found)
    return [f"Of {asked:,} answers {len(found)} are wrong; {near} of these begin at most {NEAR} tokens from an edge."]


def last_line(metrics: Path) -> dict[str, Any]:
    """The last line of a training's log."""
    last: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    return last


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown, of the lengths that all rows were asked at."""
    asked = [{one["filler_blocks"] for one in row["recall"]} for row in rows]
    blocks = sorted(set.intersection(*asked))
    head = ["", *(f"{n} blocks" for n in blocks), "steps", "tokens", "TFLOPs", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        recall = [
            f"{one['exact_match']:.2f} ({one['low']:.2f}-{one['high']:.2f})"
            for one in row["recall"]
            if one["filler_blocks"] in blocks
        ]
        cost = [
            f"{row['steps']:,}",
            f"{row['tokens'] / 1e6:.1f}M",
            f"{row['flops'] / 1e12:.0f}",
            f"{row['minutes']:.1f}",
        ]
        lines.append("| " + " | ".join([row["about"], *recall, *cost]) + " |")
    return lines


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Exact match against updates of FAM, or block edges."""
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        x = [one["filler_tokens"] / row["block_size"] for one in row["recall"]]
        y, low, high = ([one[name] for one in row["recall"]] for name in ("exact_match", "low", "high"))
        style = {"marker": "os^Dv<>P*X"[number % 10], "markersize": 4.5, "linewidth": 1.3}
        axes.plot(x, y, label=row["about"], **style, linestyle="-" if row["part"] == "recipe" else "--")
        axes.fill_between(x, low, high, alpha=0.12, linewidth=0)
    axes.set(xscale="log", xlabel="blocks of filler, each an update of FAM", ylabel="exact match of the pass key")
    axes.set_ylim(-0.03, 1.03)
    axes.axvline(7, color="gray", linewidth=0.8)
    axes.text(7, 0.5, " gradients reach", fontsize=8, color="gray")
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
