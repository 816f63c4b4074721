"""Adds a memory to a published model: SmolLM2-135M-Instruct, from a GGUF file to an export (docs/smollm2.md).

    python launch/studies/real_model_story.py DIR           the same command resumes an interrupted run
    python launch/studies/real_model_story.py DIR --quick   a few training steps, as a smoke test

1. downloaded launch/fetch_smollm2.py: 98 MB, Apache-2.0
2. imported   with blocks of 64 tokens, one memory segment and a FAM of 16 in every layer, its gate closed; and a twin
              without FAM but with one more segment, whose memory has more bytes than that of the model with FAM
3. unchanged  log probabilities of a text are equal with FAM on and off
4. trained    both on the pass key: LoRA, FAM's prompt; the gate opens
5. evaluated  the pass key at 0 to 16 blocks of filler, all alignments
6. exported   and loaded by transformers, if it is installed
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import verbs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fetch_smollm2

EXPERIMENT = "gin/experiments/smollm2_passkey.gin"
MEMORY = {
    "fam": ["--block-size", "64", "--memory-segments", "1", "--fam-length", "16"],
    "twin": ["--block-size", "64", "--memory-segments", "2", "--fam-length", "0"],
}
QUICK_STEPS = 8
# Maximum difference of log probabilities between FAM on and off after the import (float32 rounding).
ROUNDING = 1e-3


def main() -> int:
    """Runs the story. Returns 0, or the exit code of a command that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output directory")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} training steps, short evaluations")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: 400)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the trainings and of FAM's prompt (default: 0)"
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="text for comparing FAM on and off (default: this script)"
    )
    args = parser.parse_args()
    began = time.monotonic()

    def body() -> None:
        at, text = args.folder, (args.text or Path(__file__)).read_text(encoding="utf-8")[:4000]
        imported(at, args.seed)
        harmless(at, text)
        steps = args.steps or (QUICK_STEPS if args.quick else None)
        macros = {"RANDOM_SEED": args.seed} | ({} if steps is None else {"TRAIN_STEPS": steps})
        for name in MEMORY:
            places = {"INITIAL_CHECKPOINT_PATH": str(at / f"{name}_imported"), "MODEL_DIR": str(at / name)}
            verbs.train(EXPERIMENT, **places, **macros)
        blocks, alignments = ("0,4", 4) if args.quick else ("0,1,2,4,8,16", 16)
        models = [word for name in MEMORY for word in ("--model", at / name)]
        asked = ["--filler-blocks", blocks, f"--gin.EvalConfig.alignments={alignments}"]
        verbs.famjax("eval", *models, "--model", at / "fam_imported", *asked, "--output", at / "shown")
        verbs.once(at / "exported", "export-hf", at / "fam", at / "exported")
        verbs.compare_with_transformers(at / "fam", at / "exported", text[:800])
        print(f"\n{(time.monotonic() - began) / 60:.1f} minutes in all; {at / 'shown' / 'report.html'}")

    return verbs.run("real_model_story", body)


def imported(at: Path, seed: int) -> None:
    """Downloads the file and imports it twice, with and without FAM. Raises `CalledProcessError`."""
    if fetch_smollm2.main([str(at)]):
        raise subprocess.CalledProcessError(2, ["", "", "", "fetch_smollm2"])
    for name, memory in MEMORY.items():
        target = at / f"{name}_imported"
        verbs.once(target, "import-hf", at / Path(fetch_smollm2.MEMBER).name, target, *memory, "--seed", seed)


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
