"""Adds a memory to a published model: SmolLM2-135M-Instruct, from a GGUF file to an export (docs/smollm2.md).

    python launch/studies/real_model_story.py DIR           the same command resumes an interrupted run
    python launch/studies/real_model_story.py DIR --quick   a few training steps, as a smoke test
    python launch/studies/real_model_story.py DIR --twin    trains the twin, too: no FAM, the same steps and tasks
    python launch/studies/real_model_story.py DIR --texts 'books/*.txt' --wikitext wiki.test.tokens

1. downloaded launch/fetch_smollm2.py: 98 MB, Apache-2.0
2. imported   with blocks of 32 tokens, no memory segment and a FAM of 16, its gate closed; and a twin without FAM but
              with two segments, whose memory has more bytes than that of the model with FAM
3. unchanged  log probabilities of a text are equal with FAM on and off
4. trained    FAM and LoRA in the upper 8 layers on the pass key: the gate opens, the key is carried; then, in streams,
              kept; then, with --texts, beside rows of text on which the base's predictions are kept, and at last
              with three memory segments
5. evaluated  the pass key at 0 to 64 blocks of filler, after and before training, and by the twin, not trained (with
              --twin also trained); after training with segments, by the import with five; with --wikitext also bits per
              byte of four pages, with the window of the trained model
6. exported   and loaded by transformers, if it is installed
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import verbs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fetch_smollm2

from famjax.data import files

MEMORY = {
    "fam": ["--block-size", "32", "--memory-segments", "0", "--fam-length", "16"],
    "twin": ["--block-size", "32", "--memory-segments", "2", "--fam-length", "0"],
}


class Stage(NamedTuple):
    """A training: the directories of its result and of its initial weights, its gin file, and macros."""

    name: str
    start: str
    experiment: str
    macros: dict[str, Any]

    def of_twin(self) -> "Stage":
        """The same training of the twin, which has no gate to open, and whose window is wider."""
        macros = {**self.macros, "TrainConfig.fam_opening_steps": 0}
        if self.name == "wide":
            macros["MEMORY_SEGMENTS"] = MORE_SEGMENTS
        start = self.start.removeprefix("fam_")
        return Stage(f"twin_{self.name}", f"twin_{start}", self.experiment, macros)


# The second stage resumes the first with a lower rate.
STAGES = (
    Stage("carries", "fam_imported", "gin/experiments/smollm2_passkey.gin", {"TRAIN_STEPS": 300}),
    Stage(
        "carries", "fam_imported", "gin/experiments/smollm2_passkey.gin", {"TRAIN_STEPS": 400, "LEARNING_RATE": 7e-4}
    ),
    Stage("keeps", "carries", "gin/experiments/smollm2_streams.gin", {}),
)
WITH_TEXTS = (
    Stage("reads", "keeps", "gin/experiments/smollm2_text.gin", {}),
    Stage("wide", "reads", "gin/experiments/smollm2_window.gin", {}),
)
# Of the last stage; and of an import whose memory then has more bytes, without FAM.
SEGMENTS, MORE_SEGMENTS = 3, 5
QUICK_STEPS = 8
# Maximum difference of log probabilities between FAM on and off after the import (float32 rounding).
ROUNDING = 1e-3


def main() -> int:
    """Runs the story. Returns 0, or the exit code of a command that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output directory")
    parser.add_argument(
        "--quick", action="store_true", help=f"only the first training, {QUICK_STEPS} steps; short evaluations"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="only the first training, with N steps")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the trainings and of FAM's prompt (default: 0)"
    )
    parser.add_argument(
        "--twin", action="store_true", help="train the twin, too, in the same stages (about as long again)"
    )
    parser.add_argument(
        "--texts", metavar="GLOB", help="text files, UTF-8, for a third and fourth training; without, there are two"
    )
    parser.add_argument("--wikitext", type=Path, metavar="FILE", help="test file of WikiText, for an evaluation")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="text for comparing FAM on and off (default: this script)"
    )
    args = parser.parse_args()
    began = time.monotonic()
    # A mistake shows before hours of training.
    if args.texts and not files.found(args.texts):
        parser.error(f"--texts: no file matches {args.texts}")
    if args.texts and (args.quick or args.steps):
        parser.error("--texts is for the third and fourth training, and --quick and --steps end after the first")
    if args.wikitext and not args.wikitext.is_file():
        parser.error(f"--wikitext: there is no file {args.wikitext}")

    def body() -> None:
        at, text = args.folder, (args.text or Path(__file__)).read_text(encoding="utf-8")[:4000]
        imported(at, args.seed)
        harmless(at, text)
        stages = stages_of(args.steps or (QUICK_STEPS if args.quick else None), args.texts)
        train(at, args.seed, [*stages, *(stage.of_twin() for stage in stages if args.twin)])
        last = stages[-1].name
        trained = [last, f"twin_{last}"] if args.twin else [last]
        blocks, alignments = ("0,1,4", 4) if args.quick else ("0,1,2,4,8,16,32,64", 8)
        # Few rows: finished ones are computed to the end of the longest document.
        asked = ["--filler-blocks", blocks, f"--gin.EvalConfig.alignments={alignments}", "--gin.BATCH_SIZE=8"]
        if args.texts:
            evaluate(at, trained, asked, "shown")
            evaluate(at, ["fam_imported"], [*asked, "--memory-segments", MORE_SEGMENTS], "shown_imported")
        else:
            evaluate(at, [*trained, "fam_imported", "twin_imported"], asked, "shown")
        if args.wikitext:
            pages = ["--task", "wikitext", "--data", f"wikitext={args.wikitext}", "--examples", "4", "--longest", "512"]
            window = ["--memory-segments", SEGMENTS] if args.texts else []
            evaluate(at, [last, "fam_imported"], [*pages, *window], "wikitext")
        exported = at / f"exported_{last}"
        verbs.once(exported, "export-hf", at / last, exported)
        verbs.compare_with_transformers(at / last, exported, text[:800])
        print(f"\n{(time.monotonic() - began) / 60:.1f} minutes in all; {at / 'shown' / 'report.html'}")

    return verbs.run("real_model_story", body)


def evaluate(at: Path, models: list[str], asked: list[object], output: str) -> None:
    """Runs `famjax eval` on models in `at`."""
    verbs.famjax("eval", *(word for name in models for word in ("--model", at / name)), *asked, "--output", at / output)


def stages_of(steps: int | None, texts: str | None) -> tuple[Stage, ...]:
    """The trainings, those with texts if there are any, or with `steps` the first alone."""
    if steps is not None:
        return (STAGES[0]._replace(macros={"TRAIN_STEPS": steps}),)
    return (*STAGES, *(stage._replace(macros={"TEXTS": texts}) for stage in WITH_TEXTS)) if texts else STAGES


def train(at: Path, seed: int, stages: Sequence[Stage]) -> None:
    """Runs trainings in `at`, each from an earlier directory there."""
    for stage in stages:
        places = {"INITIAL_CHECKPOINT_PATH": str(at / stage.start), "MODEL_DIR": str(at / stage.name)}
        verbs.train(stage.experiment, **places, RANDOM_SEED=seed, **stage.macros)


def imported(at: Path, seed: int) -> None:
    """Downloads the file and imports it twice, with and without FAM. Raises `CalledProcessError`."""
    if fetch_smollm2.main([str(at)]):
        raise subprocess.CalledProcessError(2, ["", "", "", "fetch_smollm2"])
    for name, memory in MEMORY.items():
        target = at / f"{name}_imported"
        prompt = ["--seed", seed] if name == "fam" else []
        verbs.once(target, "import-hf", at / Path(fetch_smollm2.MEMBER).name, target, *memory, *prompt)


def harmless(at: Path, text: str) -> None:
    """Prints the largest difference between the imported model's log probabilities with FAM on and off.

    Raises:
      AssertionError: it exceeds `ROUNDING`.
    """
    asked, found = at / "text.jsonl", []
    asked.write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    for name, flags in (("on", []), ("off", ["--fam-length", "0"])):
        scored = at / f"scored_{name}.jsonl"
        verbs.once(scored, "score", "--model", at / "fam_imported", "--input", asked, "--output", scored, *flags)
        found.append(np.array(json.loads(scored.read_text(encoding="utf-8"))["logprobs"]))
    worst = np.abs(found[0] - found[1]).max()
    print(f"imported: {len(found[0])} log probabilities, FAM on and off differ by at most {worst:.1e}")
    if worst > ROUNDING:
        raise AssertionError("the imported memory changes the model's outputs")


if __name__ == "__main__":
    sys.exit(main())
