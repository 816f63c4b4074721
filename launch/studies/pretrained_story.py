"""Adds a memory to a pretrained model: from a Hugging Face folder to a fine-tuned export (docs/story.md).

    python launch/studies/pretrained_story.py DIR

Everything is small and made here, so it runs on two cores in minutes: the texts, a byte-level BPE tokenizer, and a tiny
Llama that is trained from scratch with ordinary attention on short texts. The rest applies to any transformers folder:
import it with a memory, fine-tune LoRA and FAM with several seeds, evaluate before and after, export. Each command is
printed before it runs. The same command resumes an interrupted run.

The texts are the modules of Python's standard library. --texts names others (DIR/train/*.txt and DIR/heldout/*.txt, as
written by launch/studies/debian_texts.py).
"""

import argparse
import itertools
import json
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import verbs
from debian_texts import SHORTEST, keep

from famjax.cli.flags import distinct_numbers
from famjax.data.passkey_text import FILLER, INTRODUCTION, QUESTION, TELLING, random_key

VOCABULARY = 1024
QUIZZES = 4000
# Memory settings of the import: a token sees 65 to 128 tokens, close to the model's training context.
MEMORY = ["--block-size", "64", "--memory-segments", "1"]
FAM_LENGTH = "8"


def main() -> int:
    """Runs the story. Returns 0, or the exit code of a command that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output directory")
    parser.add_argument("--texts", type=Path, metavar="DIR", help="texts (default: Python's standard library)")
    parser.add_argument(
        "--seeds",
        type=distinct_numbers,
        default=(0, 1, 2),
        metavar="N,N",
        help="seeds of the fine-tunings (default: 0,1,2)",
    )
    parser.add_argument(
        "--filler-blocks",
        default="0,1,2,4,8,16,32",
        metavar="N,N",
        help="pass-key evaluation: filler lengths in blocks",
    )
    for name in ("base", "passkey"):
        parser.add_argument(f"--{name}-steps", type=int, metavar="N", help="training steps (default: the experiment's)")
    args = parser.parse_args()
    began = time.monotonic()

    def body() -> None:
        story = Story(args)
        story.pretrained_folder()
        story.fine_tuned()
        story.evaluated()
        story.exported()
        print(f"\n{(time.monotonic() - began) / 60:.1f} minutes in all")

    return verbs.run("pretrained_story", body)


class Story:
    """The four parts of the story, whose outputs are in `args.folder`."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.at = args, args.folder
        if self.at.exists() and not self.at.is_dir():
            fail(f"{self.at} is a file; name a folder")
        self.texts = args.texts or self.at / "corpus"
        for split in ("train", "heldout") if args.texts else ():
            if not any((args.texts / split).glob("*.txt")):
                fail(f"{args.texts / split} has no .txt file")

    def pretrained_folder(self) -> None:
        """Creates `llama`, a transformers folder like a downloaded one: config.json, safetensors, tokenizer.json."""
        self.at.mkdir(parents=True, exist_ok=True)
        if not self.args.texts and not self.texts.exists():
            standard_library(self.texts)
        tokenizer, quizzes = self.at / "tokenizer", self.at / "quizzes.jsonl"
        if not quizzes.exists():
            write_quizzes(quizzes)
        if not tokenizer.exists():
            train_tokenizer(tokenizer, sorted((self.texts / "train").glob("*.txt")), quizzes)
        self.train(
            "base", "story_base.gin", self.args.base_steps, TEXTS=f"{self.texts}/train/*.txt", QUIZZES=str(quizzes),
            VOCABULARY=f"{tokenizer}/tokenizer.json",
        )  # fmt: skip
        verbs.once(self.at / "llama", "export-hf", self.at / "base", self.at / "llama")

    @property
    def passkeys(self) -> list[str]:
        """Directories of the fine-tuned models, one for each seed."""
        return [f"passkey_seed{seed}" for seed in self.args.seeds]

    def fine_tuned(self) -> None:
        """Imports with FAM (`imported`) and without (`before`); trains LoRA and FAM on the pass key with each seed."""
        llama = self.at / "llama"
        verbs.once(self.at / "before", "import-hf", llama, self.at / "before", *MEMORY, "--fam-length", "0")
        verbs.once(self.at / "imported", "import-hf", llama, self.at / "imported", *MEMORY, "--fam-length", FAM_LENGTH)
        for seed, name in zip(self.args.seeds, self.passkeys, strict=True):
            macros = {"INITIAL_CHECKPOINT_PATH": str(self.at / "imported"), "RANDOM_SEED": seed}
            self.train(name, "story_passkey.gin", self.args.passkey_steps, **macros)

    def evaluated(self) -> None:
        """Evaluates the pass key by filler length, before and after."""
        models = [word for name in (*self.passkeys, "before", "imported") for word in ("--model", self.at / name)]
        verbs.famjax("eval", *models, "--filler-blocks", self.args.filler_blocks, "--output", self.at / "shown")

    def exported(self) -> None:
        """Exports a fine-tuned model, and compares transformers on the export with famjax without FAM."""
        name, folder = self.passkeys[0], self.at / "llama_passkey"
        verbs.once(folder, "export-hf", self.at / name, folder)
        text = next(iter(sorted((self.texts / "heldout").glob("*.txt")))).read_text(encoding="utf-8")[:250]
        verbs.compare_with_transformers(self.at / name, folder, text)

    # --- commands ------------------------------------------------------------------------------------------

    def train(self, name: str, experiment: str, steps: int | None, **macros: Any) -> None:
        """Runs `famjax train`, which resumes an interrupted run, and does nothing if it is finished."""
        macros |= {"MODEL_DIR": str(self.at / name)} | ({} if steps is None else {"TRAIN_STEPS": steps})
        verbs.train(f"gin/experiments/{experiment}", **macros)


def fail(message: str) -> NoReturn:
    """Prints a user error in one line and exits with code 2."""
    print(f"pretrained_story: {message}", file=sys.stderr)
    sys.exit(2)


# --- texts and tokenizer -----------------------------------------------------------------------------------


def standard_library(folder: Path) -> None:
    """Writes the modules of Python's standard library, without tests; one in ten is held out, by a hash of its name."""
    root = Path(sysconfig.get_path("stdlib"))
    sizes = {"train": 0, "heldout": 0}
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).with_suffix("")
        if {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} & set(inside.parts):
            continue
        text = path.read_bytes()
        if len(text) < SHORTEST or not text.isascii():
            continue
        sizes[keep(folder, ".".join(inside.parts), text)] += len(text)
    print(f"texts: {sizes['train'] / 1e6:.1f} MB to train on, {sizes['heldout'] / 1e6:.1f} MB held out, from {root}")


def write_quizzes(path: Path) -> None:
    """Writes short pass-key documents for pretraining, with up to a few sentences of filler, as JSON lines."""
    rng = np.random.default_rng(7)
    lines = []
    for _ in range(QUIZZES):
        key, filler = random_key(rng, 5), (2 * FILLER)[: int(rng.integers(0, 2 * len(FILLER)))]
        lines.append(json.dumps({"text": INTRODUCTION + TELLING.format(key=key) + filler + QUESTION + key}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def train_tokenizer(folder: Path, texts: list[Path], quizzes: Path) -> None:
    """Trains a byte-level BPE tokenizer like Llama 3's, but with one token per digit, and writes its files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    asked = (json.loads(line)["text"] for line in quizzes.read_text(encoding="utf-8").splitlines())
    read = (line for path in texts for line in path.read_text(encoding="utf-8").splitlines(keepends=True))
    tokenizer.train_from_iterator(itertools.chain(asked, read), trainer)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    sys.exit(main())
