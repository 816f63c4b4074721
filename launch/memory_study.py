"""What makes a feedback memory last: trainings and evaluations behind docs/memory.md, and its tables and plot.

    python launch/memory_study.py runs/memory                       everything, for hours
    python launch/memory_study.py runs/memory --part recipe         passkey_young.gin and passkey_long.gin, three seeds
    python launch/memory_study.py runs/memory --part twins          with and without FAM, as many steps on the same data
    python launch/memory_study.py runs/memory --part ablations      shorter trainings, one thing changed in each
    python launch/memory_study.py runs/memory --part block1024      blocks of 1024, so that 256 updates are 260k tokens

Each training runs on cores of its own, as many at once as there are cores (--at-once). The keys that are evaluated
depend on a seed that no training and no choice has seen. What is done already is not done again, so the same command
goes on where it was stopped. DIR gets study.json, study.md (tables) and study.png (the recipe beside its twins).
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

YOUNG, LONG = "gin/experiments/passkey_young.gin", "gin/experiments/passkey_long.gin"
BLOCK1024 = "gin/experiments/passkey_block1024.gin"
TWIN_STEPS = 2000  # as the quickstart has it
ABLATION_STEPS = 2400
SEEDS = (0, 1, 2)
REPORTED_KEYS = 314159  # the evaluation's seed


class Run(NamedTuple):
    """A training and what it is asked.

    Attributes:
      name: of its directory.
      part: of the study.
      about: what is special about it, as the table has it.
      bindings: what is set otherwise than in the experiment.
      experiment: its gin file.
      blocks: lengths of the filler in the evaluation.
      alignments: of filler and block, a document each; 0 is all.
      start: run whose weights it starts from; empty for random ones.
    """

    name: str
    part: str
    about: str
    bindings: tuple[str, ...] = ()
    experiment: str = YOUNG
    blocks: str = "16,64,256,1024,4096"
    alignments: int = 0
    start: str = ""


def seeds() -> list[Run]:
    """The recipe: two trainings, one behind the other."""
    first = [Run(f"young_seed{n}", "recipe", f"first part, seed {n}", (f"RANDOM_SEED={n}",)) for n in SEEDS]
    return first + [
        Run(
            f"long_seed{n}", "recipe", f"both parts, seed {n}", (f"RANDOM_SEED={100 + n}",), LONG,
            start=f"young_seed{n}",
        )
        for n in SEEDS
    ]  # fmt: skip


def twins() -> list[Run]:
    """Block sliding window attention without FAM: with more segments, and with as many bytes of memory as FAM's."""
    none, steps = "FAM_LENGTH=0", f"TRAIN_STEPS={TWIN_STEPS}"
    blocks = "1,2,4,8,16,64,256"
    found = [
        Run(f"bswa_m{m}", "twins", f"BSWA, M = {m}", (steps, none, f"MEMORY_SEGMENTS={m}"), blocks=blocks)
        for m in (0, 1, 2, 4)
    ]
    # 2 blocks of 38 tokens keep 76 keys and values a layer; FAM's 64, and 8 activations with their keys and values.
    equal = (steps, none, "MEMORY_SEGMENTS=1", "BLOCK_SIZE=38", "TASK_FEATURE_LENGTHS={'targets': 1406}")
    about = "BSWA of equal memory (block 38, M = 1)"
    fam = Run("fam_same", "twins", "FAM, M = 0", (steps,), blocks=blocks)
    return [fam, *found, Run("bswa_equal", "twins", about, equal, blocks=blocks)]


# What is changed, one thing in each: name, words, bindings. The carried FAM is as it is in all behind `as_carried`.
AS_CARRIED = "TrainConfig.carried_fam_rms=0.0"
PAPER = "PassKeyConfig.stream_share=0.0"
RSP = "MemoryConfig.random_state_passing=0.8"
CHANGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("base", "the recipe", ()),
    ("young_4", "carried FAM at most 4 long", ("TrainConfig.carried_fam_rms=4.0",)),
    ("mixed", "half of the rows carry FAM as it is", ("TrainConfig.carried_fam_share=0.5",)),
    ("as_carried", "carried FAM as it is, streams to 2048 blocks", (AS_CARRIED, "PassKeyConfig.stream_blocks=2048")),
    ("as_carried_5000", "the same, streams to 1024 blocks, 5000 steps",
     (AS_CARRIED, "PassKeyConfig.stream_blocks=1024", "TRAIN_STEPS=5000")),
    ("noise_5000", "the same, and noise 0.2 on FAM (departure)",
     (AS_CARRIED, "PassKeyConfig.stream_blocks=1024", "TRAIN_STEPS=5000", "MemoryConfig.fam_noise=0.2")),
    ("bound", "carried FAM as it is, bound 4 on FAM at every update (departure)",
     (AS_CARRIED, "PassKeyConfig.stream_blocks=2048", "MemoryConfig.fam_max_rms=4.0")),
    ("growth", "carried FAM as it is, loss 0.1 on FAM's growth",
     (AS_CARRIED, "PassKeyConfig.stream_blocks=2048", "TrainConfig.fam_growth_loss=0.1")),
    ("paper", "the paper: no streams, no RSP", (PAPER,)),
    ("rsp", "the paper: no streams, RSP 0.8", (PAPER, RSP)),
    ("rsp_late", "the paper: no streams, RSP 0.8 from step 1200",
     (PAPER, RSP, "MemoryConfig.random_state_passing_from=1200")),
    ("ungated", "streams go on whatever the answer", ("PassKeyConfig.stream_gated=False",)),
    ("half", "half of the rows stream", ("PassKeyConfig.stream_share=0.5",)),
    ("noise", "noise 0.2 on FAM (departure)", ("MemoryConfig.fam_noise=0.2",)),
    ("first_residual", "the first update adds the prompt (departure)", ("MemoryConfig.zero_first_residual=False",)),
    ("prefix", "prefix instead of prompt", ("MemoryConfig.fam_init='prefix'",)),
    ("prompt_lr", "the prompt's learning rate times 10, no decay",
     ("OptimizerConfig.parameters={'fam/prompt': {'learning_rate': 10.0, 'weight_decay': 0.0}}",)),
    ("fam_2", "FAM length 2", ("FAM_LENGTH=2",)),
    ("fam_4", "FAM length 4", ("FAM_LENGTH=4",)),
    ("fam_16", "FAM length 16", ("FAM_LENGTH=16",)),
    ("float", "FAM positions between blocks", ("MemoryConfig.fam_position='float'",)),
    ("zero", "FAM positions zero", ("MemoryConfig.fam_position='zero'",)),
    ("rows_11", "rows of 11 blocks, 16 of them: gradients over 6 blocks of filler",
     ("TASK_FEATURE_LENGTHS={'targets': 704}", "BATCH_SIZE=16", "PassKeyConfig.stages=(1, 2, 4, 6)")),
    ("no_curriculum", "all lengths from the start", ("PassKeyConfig.stages=(16,)",)),
    ("no_text", "no loss on other text", ("PassKeyConfig.text_weight=0.0",)),
    ("text", "loss weight 0.5 on other text", ("PassKeyConfig.text_weight=0.5",)),
    ("no_straddle", "no more straddling answers than by chance", ("PassKeyConfig.straddle_share=0.0",)),
    ("layers_2", "2 layers", ("ModelConfig.num_layers=2",)),
    ("layers_4", "4 layers", ("ModelConfig.num_layers=4",)),
    ("width_32", "width 32", ("ModelConfig.d_model=32", "ModelConfig.d_ff=64", "ModelConfig.head_dim=16")),
    ("width_96", "width 96", ("ModelConfig.d_model=96", "ModelConfig.d_ff=192", "ModelConfig.head_dim=48")),
)  # fmt: skip


def ablations() -> list[Run]:
    """Shorter trainings, one seed."""
    steps = f"TRAIN_STEPS={ABLATION_STEPS}"
    return [
        Run(f"abl_{name}", "ablations", about, (steps, *bindings), blocks="16,64,256,1024")
        for name, about, bindings in CHANGES
    ]


def block1024() -> list[Run]:
    """The paper's block size."""
    about = "block 1024, from the first part's seed 0"
    return [Run("block1024", "block1024", about, (), BLOCK1024, "1,4,16,64,256", 64, start="young_seed0")]


PARTS = {"recipe": seeds, "twins": twins, "ablations": ablations, "block1024": block1024}


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
    chosen = [run for part in args.part or PARTS for run in PARTS[part]()]
    chosen = [run for run in chosen if not args.only or run.name in args.only]
    if not chosen:
        print(f"memory_study: no run is called {', '.join(args.only)}", file=sys.stderr)
        return 2
    try:
        for wave in ([run for run in chosen if not run.start], [run for run in chosen if run.start]):
            side_by_side.train(jobs(wave, args), args.at_once or len(cores()))
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
    where = ("--model", folder / run.name, "--output", folder / f"{run.name}-eval")
    asked = ("--filler-blocks", run.blocks, "--seed", REPORTED_KEYS, f"--gin.EvalConfig.alignments={run.alignments}")
    verbs.famjax("eval", *where, *asked, quiet=True)


# --- what came out ------------------------------------------------------------------------------------------------


def write(folder: Path) -> None:
    """Tables and plot of all runs that have results, whatever part was asked for now."""
    found = [told(run, folder) for part in PARTS.values() for run in part() if (folder / f"{run.name}-eval").exists()]
    (folder / "study.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    parts = []
    for part in PARTS:
        rows = [row for row in found if row["part"] == part]
        parts += [f"## {part}", "", *table(rows), ""] if rows else []
    (folder / "study.md").write_text("\n".join(parts), encoding="utf-8")
    plot(folder / "study.png", [row for row in found if row["part"] in ("recipe", "twins")])
    print("\n".join(parts))


def told(run: Run, folder: Path) -> dict[str, Any]:
    """One run's numbers: what it cost and what it recalls."""
    from famjax.cli.gin_config import load_train_config
    from famjax.plan.programs import targets_of_row
    from famjax.train.flops import flops_per_token

    config, _ = load_train_config([run.experiment], (), ["MODEL_DIR='none'", *run.bindings])
    last = last_line(folder / run.name / "metrics.jsonl")
    tokens = last["step"] * config.batch_size * config.sequence_length
    results = json.loads((folder / f"{run.name}-eval" / "results.json").read_text(encoding="utf-8"))
    return {
        "name": run.name, "part": run.part, "about": run.about, "steps": last["step"], "tokens": tokens,
        "flops": tokens * flops_per_token(config, targets_of_row(config)), "minutes": last["seconds"] / 60,
        "block_size": config.model.memory.block_size, "recall": results["models"][0]["passkey"],
    }  # fmt: skip


def last_line(metrics: Path) -> dict[str, Any]:
    """The last line of a training's log."""
    last: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
    return last


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    blocks = [one["filler_blocks"] for one in rows[0]["recall"]]
    head = ["", *(f"{n} blocks" for n in blocks), "steps", "tokens", "TFLOPs", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        recall = [f"{one['exact_match']:.2f} ({one['low']:.2f}-{one['high']:.2f})" for one in row["recall"]]
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
    axes.axvline(17, color="gray", linewidth=0.8)
    axes.text(17, 0.5, " gradients reach", fontsize=8, color="gray")
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
