"""What the scripts here share: verbs of famjax as commands that a reader could type."""

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
    """Runs a verb and shows it; `quiet` keeps what it prints to itself. Raises `CalledProcessError`."""
    said = [str(word) for word in words]
    print(f"\n$ famjax {' '.join(map(quoted, said))}", flush=True)
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "famjax", *said], check=True, stdout=subprocess.DEVNULL if quiet else None
    )  # fmt: skip
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


def once(target: Path, *words: Any) -> None:
    """A verb that makes a folder, unless it is there."""
    if not target.exists():
        famjax(*words)


def train(experiment: str, **macros: Any) -> None:
    """`famjax train`, which goes on by itself where it was stopped, and does nothing where it is done."""
    flags = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    famjax("train", "--gin_file", experiment, *flags)


def compare_with_transformers(model_dir: Path, folder: Path, text: str) -> None:
    """Prints how far log probabilities of a text's tokens are apart: ours without FAM, and those that transformers
    computes with an export of the same model; or that it is not installed."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        print(f"{folder}: not loaded, for torch and transformers are not installed")
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
    """A word as one would write it for a shell; gin's text values have quotes of their own."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def run(script: str, body: Callable[[], None]) -> int:
    """0, or with a line on standard error what a verb returned that failed, or 130 for an interruption."""
    try:
        body()
    except subprocess.CalledProcessError as error:
        print(f"{script}: famjax {error.cmd[3]} failed; what it said stands above", file=sys.stderr)
        return int(error.returncode)
    except KeyboardInterrupt:
        print(f"{script}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0
