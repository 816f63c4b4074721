"""`famjax score`: log probability of every token of the documents of a file."""

import argparse
import functools
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from famjax.cli.flags import add_infer_arguments, check_file, settle
from famjax.config import ConfigError, memory_overrides
from famjax.config.checks import at_least

if TYPE_CHECKING:
    import numpy as np

    from famjax.infer.codec import Codec

NAME = "score"
HELP = """Compute the natural-log probability of every token of each document, given all tokens before it.

  famjax score --model runs/fam --input docs.jsonl --output scores.jsonl --streaming

Input: one JSON object per line with "tokens" (a list of ids) or "text" (encoded by the model directory's
tokenizer, with the special tokens of its configuration; without one, UTF-8 bytes are the ids). Output: one
object per line, in the same order: "logprobs" of tokens 1..n-1 (n-1 numbers), their "sum", and "tokens", n.
The output is written only if every document is scored.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of `famjax score`."""
    parser.add_argument("--input", required=True, metavar="FILE", help="documents, JSON lines")
    parser.add_argument("--output", required=True, metavar="FILE", help="scores, JSON lines")
    parser.add_argument(
        "--streaming", action="store_true", help="stream block by block, in memory that does not grow with the length"
    )
    add_infer_arguments(parser, "maximum batch size")


def run(args: argparse.Namespace) -> int:
    """Scores the documents. The model directory and every input line are checked first."""
    from famjax.storage.model_dir import read_config, write_text

    settle(args)
    at_least("--batch-size", args.batch_size, 1)
    vocab_size = read_config(args.model).vocab_size
    documents = read_documents(args.input, vocab_size, args.model)
    check_file("--output", args.output, args.input)

    from famjax.infer.load import load
    from famjax.infer.scoring import score_in_batches
    from famjax.process.compilation_cache import enable
    from famjax.process.progress import Progress

    enable()
    lines = [""] * len(documents)
    with Progress(f"loading {args.model}") as progress:
        model = load(args.model, args.mesh, args.dtype, **memory_overrides(args))
        progress.stage("scoring", sum(map(len, documents)), "tokens")
        for index, logprobs in score_in_batches(model, documents, args.batch_size, args.streaming, progress):
            lines[index] = _line(logprobs, len(documents[index]))
    write_text(args.output, "".join(lines))
    return 0


def read_documents(path: str, vocab_size: int, model_dir: str) -> list["np.ndarray"]:
    """Returns the documents of a JSON lines file as int32 ids. Raises `ConfigError` with the line of an invalid one."""
    from famjax.data.files import read_json_lines
    from famjax.infer.codec import Codec

    codec = functools.cache(lambda: Codec(model_dir, vocab_size))  # created only if a document is a text
    return read_json_lines(path, "documents", lambda fields, place: _document(fields, place, vocab_size, codec))


def _document(fields: Any, place: str, vocab_size: int, codec: Callable[[], "Codec"]) -> "np.ndarray":
    import numpy as np

    if not isinstance(fields, dict) or ("tokens" in fields) == ("text" in fields):
        raise ConfigError(f'{place}: a document must be an object with either "tokens" or "text"')
    if "text" in fields:
        if not isinstance(fields["text"], str):
            raise ConfigError(f'{place}: "text" must be a string')
        try:
            tokens = codec().encode(fields["text"])
        except ConfigError as error:
            raise ConfigError(f'{place}: {str(error).split(";")[0]}; give "tokens"') from error
    else:
        given = fields["tokens"]
        if not isinstance(given, list) or any(type(token) is not int for token in given):
            raise ConfigError(f'{place}: "tokens" must be a list of integers')
        for token in given:
            if not 0 <= token < vocab_size:
                raise ConfigError(f"{place}: token {token} is outside the vocabulary 0..{vocab_size - 1}")
        tokens = np.asarray(given, np.int32)
    if not len(tokens):
        raise ConfigError(f"{place}: the document is empty; leave it out or give it a token")
    return tokens


def _line(logprobs: "np.ndarray", tokens: int) -> str:
    values = [float(f"{value:.9g}") for value in logprobs]  # nine digits hold a float32
    return json.dumps({"logprobs": values, "sum": math.fsum(values), "tokens": tokens}) + "\n"
