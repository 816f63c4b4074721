"""Inspects a model directory: traces a document, ablates FAM, writes the report."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from famjax.config import ConfigError
from famjax.config.inspection import InspectConfig
from famjax.config.text import read_text
from famjax.data.passkey_text import Writer
from famjax.evals.inspect import recall, report, summary
from famjax.evals.inspect.knockout import Case, knock_out
from famjax.evals.inspect.trace import Trace, trace
from famjax.infer.codec import Codec
from famjax.infer.load import load
from famjax.infer.prefill import prefill
from famjax.infer.session import start
from famjax.nn.model import Transformer

FORMAT = "famjax inspect 1"
# Upper bounds on the points of a curve, and on the layers and heads that have heat maps.
POINTS, LAYERS, HEADS = 256, 6, 8

OnTokens = Callable[[str, int], None]


def run(
    config: InspectConfig, memory: dict[str, int] | None = None, on_tokens: OnTokens | None = None
) -> dict[str, Any]:
    """Inspects a model, writes `inspect.json`, `inspect.html` and `inspect.png`, and returns the content of the JSON.

    `memory` overrides the model's memory settings; `on_tokens` is called with the current stage and the number of
    tokens of each device call.

    Raises:
      ConfigError: a setting, the model or a text cannot be used.
    """
    config.validate()
    model = load(config.model_dir, None, None, **(memory or {}))
    if not model.config.memory.fam_length:
        raise ConfigError(f"{config.model_dir} has no feedback memory (fam_length 0): there is nothing to inspect")
    codec = Codec(config.model_dir, model.config.vocab_size)
    stage = lambda what: functools.partial(on_tokens, what) if on_tokens else None
    found = _pass_key(model, codec, config, stage) if config.filler_blocks else _text(model, codec, config, stage)
    found = {
        "format": FORMAT, "model": config.model_dir, "memory": dataclasses.asdict(model.config.memory),
        "settings": dataclasses.asdict(config), **found,
    }  # fmt: skip
    found["summary"] = summary.sentences(found)
    report.write(Path(config.output_dir), found)
    return found


def _pass_key(model: Transformer, codec: Codec, config: InspectConfig, stage: Any) -> dict[str, Any]:
    S = model.config.memory.block_size
    writer = Writer(codec.vocabulary, codec.bos is not None)
    writer.check(model.config.vocab_size)
    rows, documents = [], []
    for blocks in sorted(set(config.filler_blocks)):
        documents = recall.pass_keys(writer, blocks, S, config.documents, config.key_digits, config.seed)
        row = recall.pass_key_recall(model, documents, config.batch_size, stage(f"{blocks} blocks of filler"))
        kept = row["instead"]["kept"]
        rows.append({"filler_blocks": blocks, **row, **{name: kept[name] for name in ("exact_match", "low", "high")}})
    one = documents[0]
    seen = trace(model, one.tokens, one.answer, on_tokens=stage("tracing attention"))
    key_block = int(one.mention[-1]) // S
    about = {
        "what": f"pass key before {rows[-1]['filler_blocks']} blocks of filler", "tokens": len(one.tokens),
        "answer": codec.vocabulary.decode(one.tokens[one.answer]), "key_block": key_block,
    }  # fmt: skip
    more = {"knock_out": rows[-1]["instead"], "follows_other": rows[-1]["follows_other"], "recall": rows}
    return {"document": about, **_seen(model, seen, key_block), **more}


def _text(model: Transformer, codec: Codec, config: InspectConfig, stage: Any) -> dict[str, Any]:
    S = model.config.memory.block_size
    tokens, answer = _tokens(codec, config, S)
    seen = trace(model, tokens, answer, on_tokens=stage("tracing attention"))
    edges = recall.edges_of(len(tokens), S, config.places)
    sessions = recall.sessions_at(model, tokens, edges, stage("prefilling to the block boundaries"))
    other = None
    if config.other:
        text = _read(codec, config.other, config)
        if len(text) <= S:
            raise ConfigError(f"--other {config.other} has {len(text)} tokens; it must have more than a block of {S}")
        other = prefill(model, start(model), [[text]], stage("prefilling the other text"))
    knock = recall.text_knock_out(model, tokens, edges, sessions, config.batch_size, other)
    if answer is not None:
        edge = (int(answer[0]) - 1) // S * S
        (session,) = recall.sessions_at(model, tokens, [edge], stage("prefilling up to the answer"))
        (variants,) = knock_out(model, [Case(session, tokens[edge + 1 :], other)], config.batch_size)
        at = answer - (edge + 1)
        for name, (logprobs, correct) in variants.items():
            moved = float((logprobs[at] - variants["kept"][0][at]).mean())
            scores = {"answer": float(logprobs[at].mean()), "exact_match": float(correct[at].all())}
            knock[name] |= scores | {"answer_moves": recall.interval([moved])}
    about = {"what": config.input, "tokens": len(tokens), "answer": config.answer, "other": config.other}
    rows = recall.text_recall(model, tokens, edges, sessions, config.batch_size, other)
    return {"document": about, **_seen(model, seen), "knock_out": knock, "follows_other": None, "recall": rows}


def _tokens(codec: Codec, config: InspectConfig, block_size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the tokens of input and answer, and the positions of the answer (None without one). Raises `ConfigError`
    if the input has fewer than three blocks, so that it has an edge for `recall.edges_of`."""
    whole = _read(codec, config.input, config)
    if len(whole) < 3 * block_size:
        raise ConfigError(f"{config.input} has {len(whole)} tokens; it must have three blocks of {block_size} or more")
    if not config.answer:
        return whole, None
    answer = codec.encode(config.answer, fresh=False)
    return np.concatenate([whole, answer]), len(whole) + np.arange(len(answer))


def _read(codec: Codec, path: str, config: InspectConfig) -> np.ndarray:
    """Returns the tokens of a text file, of a longer text the first `config.longest`. Raises `BadText` if it is not
    UTF-8."""
    return codec.encode(read_text(path))[: config.longest or None]


# --- the trace, for JSON --------------------------------------------------------------------------


def _seen(model: Transformer, seen: Trace, key_block: int | None = None) -> dict[str, Any]:
    memory = model.config.memory
    parts = np.array_split(np.arange(len(seen.rms)), min(len(seen.rms), POINTS))
    by_block: dict[str, Any] = {"block": [int(part[0]) for part in parts]}
    curves = {"input_to_fam": seen.to_fam, "fam_rms": seen.rms, "fam_change": seen.change, "fam_cosine": seen.cosine}
    by_block |= {name: _thinned(curve, parts) for name, curve in curves.items()}
    if memory.gates_updates:
        reductions: tuple[tuple[str, Any], ...] = (("mean", np.mean), ("min", np.min), ("max", np.max))
        for i, (name, reduce) in enumerate(reductions):
            by_block[f"write_gate_{name}"] = _thinned(seen.gates[..., i], parts, reduce)
    layers = _spread(model.config.layers_with_fam, LAYERS)
    heads = _spread(range(seen.token_map.shape[1]), HEADS)
    chosen = lambda maps: _rounded(maps[np.ix_(layers, heads)])
    return {
        "kinds": ["memory segments", "FAM", "block"],
        "uniform_share": float(np.nanmean(seen.uniform)),
        "attention": {
            "input": _rounded(seen.attention),
            "answer": None if seen.answer_attention is None else _rounded(seen.answer_attention),
            "fam_queries": _rounded(seen.fam_attention[..., 1:]),
        },
        "by_block": by_block,
        "write_gates": _gates(seen.gates, key_block) if memory.gates_updates else None,
        "maps": {
            "block": seen.map_block, "fam_columns": seen.fam_columns, "layers": layers, "heads": heads,
            "tokens": chosen(seen.token_map), "fam": chosen(seen.fam_map),
        },
        "logprob": float(seen.logprobs.mean(dtype=np.float64)),
    }  # fmt: skip


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """Returns at most `most` of the numbers, evenly spaced, the first and the last included."""
    return sorted({numbers[int(i)] for i in np.linspace(0, len(numbers) - 1, min(len(numbers), most)).round()})


def _gates(gates: np.ndarray, key_block: int | None) -> dict[str, Any]:
    """Summarises `Trace.gates` [N, L, 3] over all updates, the update of the block with the key, and those after it.

    Each summary has, for each layer, mean, minimum and maximum over updates and feedback activations, and the share of
    updates all of whose gates are closed (0) or open (1). A summary without updates is left out.
    """
    updates = np.flatnonzero(np.isfinite(gates).any(axis=(1, 2)))
    places = {"all": updates}
    if key_block is not None:
        places |= {"at_key": updates[updates == key_block], "after_key": updates[updates > key_block]}
    found = {}
    for name, blocks in places.items():
        if not len(blocks):
            continue
        mean, least, most = np.moveaxis(gates[blocks], 2, 0)
        values = (mean.mean(axis=0), least.min(axis=0), most.max(axis=0))
        shares = [np.where(np.isnan(mean[0]), np.nan, x.mean(axis=0)) for x in (most == 0, least == 1)]
        columns = dict(zip(("mean", "min", "max", "closed", "open"), map(_rounded, (*values, *shares)), strict=True))
        found[name] = {"updates": len(blocks), **columns}
    return found


def _thinned(curve: np.ndarray, parts: Sequence[np.ndarray], reduce: Callable[..., Any] = np.mean) -> list[Any]:
    """Reduces a curve [N, L] to one point [L] per part; a part has the indices of consecutive blocks.

    Blocks without a value (NaN) are ignored.
    """
    known = [part[np.isfinite(curve[part]).any(axis=1)] for part in parts]
    return _rounded(np.stack([reduce(curve[k], axis=0) if len(k) else np.full_like(curve[0], np.nan) for k in known]))


def _rounded(x: np.ndarray) -> list[Any]:
    """Returns nested lists rounded to five digits, with None for non-finite values, which JSON lacks."""
    if x.ndim > 1:
        return [_rounded(row) for row in x]
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in x]
