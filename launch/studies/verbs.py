"""Functions of the scripts here: they run verbs of famjax and print them as commands."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def famjax(*words: Any, quiet: bool = False) -> None:
    """Prints a `famjax` command and runs it; `quiet` discards its stdout. Raises `CalledProcessError` if it fails."""
    command = [str(word) for word in words]
    print(f"\n$ famjax {' '.join(map(quoted, command))}", flush=True)
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "famjax", *command], check=True, stdout=subprocess.DEVNULL if quiet else None
    )  # fmt: skip
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


def once(target: Path, *words: Any) -> None:
    """Runs a verb unless its output `target` exists."""
    if not target.exists():
        famjax(*words)


def train(experiment: str, **macros: Any) -> None:
    """Runs `famjax train`, which resumes an interrupted run, and does nothing if it is finished."""
    flags = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    famjax("train", "--gin_file", experiment, *flags)


def compare_with_transformers(model_dir: Path, folder: Path, text: str) -> None:
    """Prints the largest difference between the token log probabilities of a text by famjax without FAM and by
    transformers with an export of the same model. If transformers is not installed, prints that."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        print(f"{folder}: not compared, since torch and transformers are not installed")
        return
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits[0, :-1]
    theirs = torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None])[:, 0].numpy()
    asked, scored = (model_dir.with_name(f"{model_dir.name}.{name}.jsonl") for name in ("asked", "scored"))
    asked.write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    whole = ["--fam-length", "0", "--block-size", "256", "--memory-segments", "0"]
    famjax("score", "--model", model_dir, "--input", asked, "--output", scored, *whole)
    ours = json.loads(scored.read_text(encoding="utf-8"))["logprobs"]
    difference = np.abs(np.array(ours) - theirs).max()
    print(f"{folder}: log probabilities differ by at most {difference:.1e} from transformers', FAM off")


def quoted(word: str) -> str:
    """Quotes a word for a shell; gin's string values keep their own quotes."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def run(script: str, body: Callable[[], None]) -> int:
    """Runs `body`. Returns 0, the exit code of a verb that failed, or 130 if interrupted, with a line on stderr."""
    try:
        body()
    except subprocess.CalledProcessError as error:
        print(f"{script}: famjax {error.cmd[3]} failed; see its output above", file=sys.stderr)
        return int(error.returncode)
    except KeyboardInterrupt:
        print(f"{script}: interrupted; the same command resumes it", file=sys.stderr)
        return 130
    return 0
