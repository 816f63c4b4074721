"""A published model gets a working memory: SmolLM2-135M-Instruct, from a GGUF file to a folder (docs/smollm2.md).

    python launch/studies/real_model_story.py DIR           every step goes on where the same command was stopped
    python launch/studies/real_model_story.py DIR --quick   a few steps of training, for a first look

1. fetched    launch/fetch_smollm2.py: 98 MB, Apache-2.0
2. imported   with blocks of 64 tokens, one memory segment and a FAM of 16 in every layer, its gate shut; and a twin
              without FAM that has a segment more, so that it remembers more bytes than the model with FAM
3. harmless   log probabilities of a text, FAM on, equal those with FAM off
4. trained    both on the pass key: LoRA, FAM's prompt; the gate opens
5. evaluated  the pass key behind 0 to 16 blocks of filler, all alignments
6. given back exported, loaded by transformers where it is installed
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
# Of the import's harmlessness: how far a log probability may be from the one without FAM (float32's rounding).
ROUNDING = 1e-3


def main() -> int:
    """Returns 0, or what a command returned that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where everything goes")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of training, short evaluations")
    parser.add_argument("--steps", type=int, metavar="N", help="of training (400)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the trainings and of FAM's prompt (0)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="read to show harmlessness (this script)")
    args = parser.parse_args()
    began = time.monotonic()

    def told() -> None:
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

    return verbs.run("real_model_story", told)


def imported(at: Path, seed: int) -> None:
    """The file, and a model directory of it with FAM and one without."""
    if fetch_smollm2.main([str(at)]):
        raise subprocess.CalledProcessError(2, ["", "", "", "fetch_smollm2"])
    for name, memory in MEMORY.items():
        target = at / f"{name}_imported"
        verbs.once(target, "import-hf", at / Path(fetch_smollm2.MEMBER).name, target, *memory, "--seed", seed)


def harmless(at: Path, text: str) -> None:
    """Prints how far the imported model's log probabilities are from those with FAM off. Raises where they are not."""
    asked, found = at / "text.jsonl", []
    asked.write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    for name, flags in (("on", []), ("off", ["--fam-length", "0"])):
        scored = at / f"scored_{name}.jsonl"
        verbs.once(scored, "score", "--model", at / "fam_imported", "--input", asked, "--output", scored, *flags)
        found.append(np.array(json.loads(scored.read_text(encoding="utf-8"))["logprobs"]))
    worst = np.abs(found[0] - found[1]).max()
    print(f"imported: {len(found[0])} log probabilities, FAM on against off: at most {worst:.1e} apart")
    if worst > ROUNDING:
        raise AssertionError("the imported memory is not harmless")


if __name__ == "__main__":
    sys.exit(main())
