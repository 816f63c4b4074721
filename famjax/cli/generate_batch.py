"""`famjax generate --input`: many prompts, batched with unequal lengths."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from famjax.config import ConfigError
from famjax.infer.settings import Sampling

if TYPE_CHECKING:
    from famjax.infer.codec import Codec

# Settings of flags and of the server's requests. In a line they would have no effect; other keys are the user's own.
_SETTINGS = (
    "max_tokens", "max_completion_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop",
    "samples", "n", "echo", "logprobs", "frequency_penalty", "presence_penalty",
)  # fmt: skip


def read_prompts(path: str, may_be_empty: bool) -> list[str]:
    """Returns the prompts of a JSON lines file. Raises `ConfigError` with file and line of an invalid one."""
    from famjax.data.files import read_json_lines

    return read_json_lines(path, "prompts", lambda fields, place: _prompt(fields, place, may_be_empty))


def _prompt(fields: Any, place: str, may_be_empty: bool) -> str:
    prompt = fields.get("prompt") if isinstance(fields, dict) else None
    if not isinstance(prompt, str):
        raise ConfigError(f'{place}: a line must be an object with "prompt", a string')
    if (setting := next((name for name in _SETTINGS if fields.get(name) is not None), None)) is not None:
        raise ConfigError(
            f"{place}: settings are flags, for all prompts; leave out {setting!r} (famjax generate --help)"
        )
    if not prompt and not may_be_empty:
        raise ConfigError(f"{place}: the prompt is empty; give it a byte, or --state-in FILE to resume from")
    return prompt


def answer_all(
    model: Any, session: Any, prompts: list[str], sampling: Sampling, codec: "Codec", args: argparse.Namespace
) -> None:
    """Generates from every prompt, each after the same session, and writes the output file."""
    from famjax.storage.model_dir import write_text

    lines: list[list[dict[str, Any]]] = [[] for _ in prompts]
    # Prompts of similar length share a batch.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].encode()))
    rows = min(max(1, args.batch_size // args.samples), len(prompts))
    while order:
        batch, order = order[:rows], order[rows:]
        answers = _answers(model, session, [prompts[i] for i in batch], rows, sampling, codec, args)
        for index, line in zip(batch, answers, strict=True):
            lines[index] = line
    flat = (line for several in lines for line in several)
    write_text(args.output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in flat))


def _answers(
    model: Any, session: Any, prompts: list[str], rows: int, sampling: Sampling, codec: "Codec",
    args: argparse.Namespace,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Returns the output objects of each prompt's samples. `rows` is the batch size of the compiled program."""
    from famjax.infer.answers import answer_side_by_side, read_side_by_side
    from famjax.process.progress import Progress

    count = len(prompts)
    with Progress(f"reading {count} prompts", unit="tokens") as progress:
        session = read_side_by_side(
            model, codec, session, prompts, rows=rows, fresh=not args.state_in, on_tokens=progress
        )
    with Progress(f"answering {count} prompts", unit="tokens") as progress:
        answers = answer_side_by_side(
            model, codec, session, count, args.max_tokens, sampling, seed=args.seed, stops=args.stop,
            samples=args.samples, on_made=progress.reach,
        )  # fmt: skip
    line = lambda prompt, one: {"prompt": prompt, "text": one.text, "tokens": one.tokens, "finish": one.finish}
    return [[line(prompt, one) for one in several] for prompt, several in zip(prompts, answers, strict=True)]
