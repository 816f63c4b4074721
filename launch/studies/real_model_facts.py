"""Trains a published model to recall facts from FAM: SmolLM2, from words by name to bAbI in books (docs/smollm2.md).

    python launch/studies/real_model_facts.py DIR                           the same command resumes an interrupted run
    python launch/studies/real_model_facts.py DIR --babi tasks_1-20_v1-2/en-10k --books 'books/train/*.txt'
    python launch/studies/real_model_facts.py DIR --gated ...               gated updates from the start, in DIR/gated
    python launch/studies/real_model_facts.py DIR --quick                   two steps of each in DIR/quick, a smoke test

DIR has `fam_imported` of real_model_story.py; if not, that script's first steps run. Each training starts from the one
before it and changes little. Seven hours on one core of an AMD EPYC beside another training:

1.  listed          multi-query associative recall in words; four names, always in the same order
2.  named           eight names, half of the lists in random order
3.  persons         bAbI's persons and places as words
4.  told            as sentences
5.  asked           asked for in a sentence
6.  anywhere        sentences at any place of their blocks
7.  near            with --babi and --books: qa1 of bAbI in books, up to one block of text; all persons are asked for
8.  far             longer text, up to 16 blocks if the shorter is learned (8 in docs/smollm2.md)
9.  kept            sentences again, asked for at all distances up to 7 blocks, some with a new place
10. rewritten       up to 15 blocks, half of them with a new place
11. prompted        qa1 with instruction, worked examples and chat template, as the evaluation asks
12. answers         one person asked for, as there, up to 16 blocks
13. long            in longer rows, up to 32 blocks
14. gated           gated updates of FAM, a departure from the paper: as `kept`
15. gated_near      as `far`, up to 8 blocks
16. gated_prompted  as `prompted`, up to 32 blocks, with a gradient through at most 8 updates of FAM
17. gated_long      as `answers`, up to 112 blocks
18. gated_text      up to 16 blocks, beside rows of text, with the predictions of the frozen base to learn from

With --gated: 1 to 6 as above, then kept, near (up to 8 blocks), prompted (32) and long (112); again, as kept at a lower
rate; and text, as gated_text in shorter rows. Four and a half hours on two cores.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import verbs
from real_model_story import Stage, imported, train

from famjax.data import files

MQAR, PERSONS, FACTS, TEXT = (
    f"gin/experiments/smollm2_{name}.gin" for name in ("mqar", "persons", "facts", "facts_text")
)
QUICK_STEPS = 2


class _Macro(str):
    """A reference to a gin macro."""

    def __repr__(self) -> str:
        return f"%{self}"


def _settings(config: str, **settings: Any) -> dict[str, Any]:
    return {f"{config}.{name}": value for name, value in settings.items()}


_TOLD = _settings("MqarConfig", sentences=_Macro("TOLD"))
_ASKED = _TOLD | _settings("MqarConfig", question=_Macro("ASKED"), answered=True, times=1)
WORDS = (
    Stage("listed", "fam_imported", MQAR, {"TRAIN_STEPS": 260}),
    Stage("named", "listed", MQAR, _settings("MqarConfig", ordered=0.5, pairs=(2, 3, 4), keys=8, values=16)),
    Stage("persons", "named", PERSONS, {"TRAIN_STEPS": 200}),
    Stage("told", "persons", PERSONS, {"TRAIN_STEPS": 100, **_TOLD}),
    Stage("asked", "told", PERSONS, {"TRAIN_STEPS": 50, **_ASKED}),
    Stage(
        "anywhere", "asked", PERSONS,
        {"TRAIN_STEPS": 85, **_ASKED, **_settings("MqarConfig", spread=48, blocks=(4,))},
    ),
)  # fmt: skip
_LASTING = {"LEARNING_RATE": 8e-4, "MEMORY_SEGMENTS": 1, **_ASKED, **_settings("MqarConfig", answered=False, power=1.0)}
_KEPT = {**_LASTING, "BATCH_SIZE": 8, **_settings("MqarConfig", times=4, spread=48, blocks=(8,), rewritten=0.3)}
_ANSWERS = _settings("BabiConfig", instructed=True, chat=True, everyone=False, form_weight=0.1)
_GATED_NEAR = {
    "TASK_FEATURE_LENGTHS": {"targets": 768}, "BATCH_SIZE": 2, "LEARNING_RATE": 5e-4,
    **_settings("BabiConfig", stages=(1, 2, 4, 8), open_at=0.4, form_weight=0.1),
}  # fmt: skip
_GATED_PROMPTED = {
    "TASK_FEATURE_LENGTHS": {"targets": 2048}, "BATCH_SIZE": 1, "LEARNING_RATE": 4e-4,
    **_settings("BabiConfig", stages=(8, 16, 32), open_at=0.4, form_weight=0.1, instructed=True, chat=True),
}  # fmt: skip
_GATED_LONG = {
    "TASK_FEATURE_LENGTHS": {"targets": 4096}, "BATCH_SIZE": 1, "LEARNING_RATE": 4e-4,
    **_ANSWERS, **_settings("BabiConfig", stages=(16, 48, 112), open_at=0.4),
}  # fmt: skip
IN_BOOKS = (
    Stage("near", "anywhere", FACTS, {}),
    Stage(
        "far", "near", FACTS,
        {"TRAIN_STEPS": 350, "TASK_FEATURE_LENGTHS": {"targets": 768}, "BATCH_SIZE": 2,
         **_settings("BabiConfig", stages=(2, 4, 8, 16))},
    ),
    Stage("kept", "far", PERSONS, {**_KEPT, "TRAIN_STEPS": 150}),
    Stage(
        "rewritten", "kept", PERSONS,
        {**_LASTING, "TRAIN_STEPS": 125, "TASK_FEATURE_LENGTHS": {"targets": 512},
         **_settings("MqarConfig", times=8, spread=96, blocks=(16,), rewritten=0.5)},
    ),
    Stage(
        "prompted", "rewritten", FACTS,
        {"TRAIN_STEPS": 235, "TASK_FEATURE_LENGTHS": {"targets": 640}, "BATCH_SIZE": 3, "LEARNING_RATE": 8e-4,
         **_settings("BabiConfig", stages=(1, 2, 4, 8), open_at=0.5, instructed=True, chat=True)},
    ),
    Stage(
        "answers", "prompted", FACTS,
        {"TRAIN_STEPS": 115, "TASK_FEATURE_LENGTHS": {"targets": 1024}, "BATCH_SIZE": 2,
         **_ANSWERS, **_settings("BabiConfig", stages=(1, 2, 4, 8, 16), open_at=0.6)},
    ),
    Stage(
        "long", "answers", FACTS,
        {"TRAIN_STEPS": 70, "TASK_FEATURE_LENGTHS": {"targets": 2048}, "BATCH_SIZE": 1,
         **_ANSWERS, **_settings("BabiConfig", stages=(8, 16, 32), open_at=0.5)},
    ),
    Stage(
        "gated", "long", PERSONS,
        {**_KEPT, "TRAIN_STEPS": 60, "model_of_checkpoint.changes": {"fam_update": "gated", "fam_update_noise": 1.0}},
    ),
    Stage("gated_near", "gated", FACTS, {**_GATED_NEAR, "TRAIN_STEPS": 56}),
    Stage(
        "gated_prompted", "gated_near", FACTS,
        {**_GATED_PROMPTED, "TRAIN_STEPS": 62, "model_of_checkpoint.changes": {"fam_gradient_blocks": 8}},
    ),
    Stage("gated_long", "gated_prompted", FACTS, {**_GATED_LONG, "TRAIN_STEPS": 20}),
    Stage("gated_text", "gated_long", TEXT, {}),
)  # fmt: skip
# The changes of smollm2_mqar.gin, and gated updates, which the trainings after the first find in their checkpoints.
_GATED_CHANGES = {
    "remat": "none", "dtype": "float32", "random_state_passing": 0.0, "scan_layers": False,
    "fam_layers": "-" * 16 + "+" * 14, "fam_update": "gated", "fam_update_noise": 1.0, "fam_gradient_blocks": 8,
}  # fmt: skip
GATED = (
    WORDS[0]._replace(macros={**WORDS[0].macros, "model_of_checkpoint.changes": _GATED_CHANGES}),
    *WORDS[1:],
)
GATED_IN_BOOKS = (
    Stage("kept", "anywhere", PERSONS, {**_KEPT, "TRAIN_STEPS": 150}),
    Stage("near", "kept", FACTS, {**_GATED_NEAR, "TRAIN_STEPS": 200}),
    Stage("prompted", "near", FACTS, {**_GATED_PROMPTED, "TRAIN_STEPS": 120}),
    Stage("long", "prompted", FACTS, {**_GATED_LONG, "TRAIN_STEPS": 40}),
    Stage(
        "again", "long", PERSONS,
        {**_KEPT, "TRAIN_STEPS": 150, "LEARNING_RATE": 2.5e-4, "OptimizerConfig.schedule": "linear"},
    ),
    Stage(
        "text", "again", TEXT,
        {"TRAIN_STEPS": 85, "TASK_FEATURE_LENGTHS": {"targets": 768}, "BATCH_SIZE": 3, "LEARNING_RATE": 3e-4,
         "DataConfig.text_share": 1 / 3, **_settings("BabiConfig", stages=(4, 8))},
    ),
)  # fmt: skip


def main() -> int:
    """Runs the trainings. Returns 0, or the exit code of a command that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output directory")
    parser.add_argument("--babi", type=Path, metavar="FOLDER", help="bAbI v1.2, the folder with qa1_*_train.txt")
    parser.add_argument("--books", metavar="GLOB", help="books to train on, for the trainings with bAbI")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the trainings (default: 1)")
    parser.add_argument("--gated", action="store_true", help="gated updates of FAM from the import on, in DIR/gated")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_STEPS} steps of each training, in DIR/quick, as a smoke test"
    )
    args = parser.parse_args()
    # A mistake shows before hours of training.
    if (args.babi is None) != (args.books is None):
        parser.error("--babi and --books need each other")
    if args.babi and not files.found(str(args.babi / "qa1_*_train.txt")):
        parser.error(f"--babi: {args.babi} has no qa1_*_train.txt of bAbI v1.2")
    if args.books and not files.found(args.books):
        parser.error(f"--books: no file matches {args.books}")

    def body() -> None:
        at = args.folder / "gated" if args.gated else args.folder
        at = at / "quick" if args.quick else at
        if not (at / "fam_imported").exists():
            imported(at, args.seed)
        places = {"BABI": str(args.babi), "BOOKS": (args.books,)}
        given = {FACTS: places, TEXT: places | {"TEXTS": args.books}}
        words, in_books = (GATED, GATED_IN_BOOKS) if args.gated else (WORDS, IN_BOOKS)
        stages = [*words, *in_books] if args.babi else words
        quick = {"TRAIN_STEPS": QUICK_STEPS} if args.quick else {}
        added = [given.get(stage.experiment, {}) | quick for stage in stages]
        train(at, args.seed, [one._replace(macros=one.macros | more) for one, more in zip(stages, added, strict=True)])

    return verbs.run("real_model_facts", body)


if __name__ == "__main__":
    sys.exit(main())
