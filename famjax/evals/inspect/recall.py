"""Recall against the number of FAM updates since the information was read, with FAM and with its replacements."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from famjax.data.passkey_text import Document, Writer, random_key
from famjax.evals.inspect.knockout import INSTEAD, Case, knock_out
from famjax.evals.samples import updates_between
from famjax.evals.statistics import ratio_interval, wilson_interval
from famjax.infer.branches import read_prefixes
from famjax.infer.prefill import prefill
from famjax.infer.session import Session, join_rows, start
from famjax.nn.model import Transformer

# Maximum tokens of a passage that `text_recall` repeats.
PASSAGE = 48
OnTokens = Callable[[int], None] | None


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of per-document values, their number n, and the bootstrapped 95% interval; None for one value,
    which has none."""
    x = np.asarray(values, np.float64)
    low, high = ratio_interval(x, np.ones(len(x)))
    return {"mean": float(x.mean()), "low": low, "high": high, "n": len(x)}


# --- the pass key ---------------------------------------------------------------------------------


def pass_keys(writer: Writer, blocks: int, block_size: int, documents: int, digits: int, seed: int) -> list[Document]:
    """Returns pass-key documents whose filler has `blocks` blocks plus 0 .. S - 1 tokens, evenly spaced."""
    rng = np.random.default_rng([seed, blocks])
    extra = [i * block_size // documents for i in range(documents)]
    return [writer.document(random_key(rng, digits), blocks * block_size + more) for more in extra]


def updates_of(document: Document, block_size: int) -> int:
    """Returns the number of FAM updates between the last token of the key's last mention and the answer, as
    `famjax eval` counts them."""
    return updates_between(int(document.mention[-1]), int(document.answer[0]), block_size)


def pass_key_recall(
    model: Transformer, documents: Sequence[Document], rows: int, on_tokens: OnTokens = None
) -> dict[str, Any]:
    """Ablates FAM on pass-key documents of one length.

    Documents are prefilled up to the block that predicts the answer's first token, and scored from there with FAM
    and with its replacements. `swapped` is the FAM of the next document, which has another key.

    Returns:
      updates: mean number of FAM updates between the key's last mention and the answer.
      documents: number of documents.
      instead: for each of `INSTEAD`: `exact_match` with its 95% interval, mean natural-log probability of the `answer`
        and of the `rest` of the document from the boundary on (nats per token), and their differences from `kept`,
        `answer_moves` and `rest_moves`, with intervals.
      follows_other: `share` of documents that, with the other document's FAM, answer with that document's key, its
        interval, and the number `n` of documents; None as in `_follows`.
    """
    S = model.config.memory.block_size
    edges = [(int(doc.answer[0]) - 1) // S * S for doc in documents]
    prefixes = [doc.tokens[: edge + 1] for doc, edge in zip(documents, edges, strict=True)]
    sessions = dict(read_prefixes(model, prefixes, rows, on_tokens=on_tokens))
    others = [(i + 1) % len(documents) for i in range(len(documents))]
    cases = [Case(sessions[i], doc.tokens[edges[i] + 1 :], sessions[others[i]]) for i, doc in enumerate(documents)]
    found = knock_out(model, cases, rows)
    where = [doc.answer - (edge + 1) for doc, edge in zip(documents, edges, strict=True)]
    rest = [np.setdiff1d(np.arange(len(case.rest)), at) for case, at in zip(cases, where, strict=True)]
    updates = [updates_of(doc, S) for doc in documents]
    instead = {name: _of_variant(name, found, where, rest) for name in INSTEAD}
    return {
        "updates": float(np.mean(updates)),
        "documents": len(documents),
        "instead": instead,
        "follows_other": _follows(model, documents, cases, where, others, rows),
    }


def _of_variant(name: str, found: list[Any], where: list[np.ndarray], rest: list[np.ndarray]) -> dict[str, Any]:
    hits = [bool(one[name][1][at].all()) for one, at in zip(found, where, strict=True)]
    low, high = wilson_interval(sum(hits), len(hits))
    row: dict[str, Any] = {"exact_match": sum(hits) / len(hits), "low": low, "high": high}
    for what, places in (("answer", where), ("rest", rest)):
        pairs = [(one[name][0], one["kept"][0], at) for one, at in zip(found, places, strict=True) if len(at)]
        if pairs:
            row[what] = float(np.mean([logprobs[at].mean() for logprobs, _, at in pairs]))
            row[f"{what}_moves"] = interval([float((x[at] - kept[at]).mean()) for x, kept, at in pairs])
    return row


def _follows(
    model: Transformer, documents: Sequence[Document], cases: list[Case], where: list[np.ndarray], others: list[int],
    rows: int,
) -> dict[str, Any] | None:  # fmt: skip
    """Returns the share of documents that, given another document's FAM, answer with that document's key.

    Only pairs of documents whose keys have the same number of tokens count; None if there is no such pair.
    """
    changed, at = [], []
    for i, case in enumerate(cases):
        theirs = documents[others[i]].tokens[documents[others[i]].answer]
        if len(theirs) == len(where[i]):
            rest = case.rest.copy()
            rest[where[i]] = theirs
            changed.append(case._replace(rest=rest))
            at.append(where[i])
    if not changed:
        return None
    found = knock_out(model, changed, rows)
    hits = [bool(one["swapped"][1][places].all()) for one, places in zip(found, at, strict=True)]
    low, high = wilson_interval(sum(hits), len(hits))
    return {"share": sum(hits) / len(hits), "low": low, "high": high, "n": len(hits)}


# --- any text -------------------------------------------------------------------------------------


def edges_of(tokens: int, block_size: int, places: int) -> list[int]:
    """Returns up to `places` evenly spaced block boundaries of a text, each with a block before and a full one after
    it."""
    blocks = range(1, tokens // block_size)
    count = min(places, len(blocks))
    chosen = np.unique(np.linspace(0, len(blocks) - 1, count).round().astype(int)) if count else ()
    return [blocks[int(i)] * block_size for i in chosen]


def sessions_at(
    model: Transformer, tokens: np.ndarray, edges: Sequence[int], on_tokens: OnTokens = None
) -> list[Session]:
    """Prefills the text once and returns a session at each edge, with the token after the edge pending."""
    session, before, found = start(model), 0, []
    for edge in edges:
        session = prefill(model, session, [[tokens[before : edge + 1]]], on_tokens)
        before = edge + 1
        found.append(join_rows([session]))  # a copy, because `prefill` donates its session
    return found


def text_knock_out(
    model: Transformer, tokens: np.ndarray, edges: Sequence[int], sessions: Sequence[Session], rows: int,
    other: Session | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Scores the block after each edge, a block boundary with its session (`sessions_at`), with FAM and with its
    replacements; `other` is a session with another text's FAM.

    Returns:
      for each of `INSTEAD`: mean natural-log probability of the block's tokens (`rest`, nats per token), and its
      difference from `kept`, with a 95% interval over edges.
    """
    S = model.config.memory.block_size
    cases = [Case(one, tokens[edge + 1 : edge + S], other) for edge, one in zip(edges, sessions, strict=True)]
    found = knock_out(model, cases, rows)
    return {
        name: {
            "rest": float(np.mean([one[name][0].mean() for one in found])),
            "rest_moves": interval([float((one[name][0] - one["kept"][0]).mean()) for one in found]),
        }
        for name in found[0]
    }


def text_recall(
    model: Transformer, tokens: np.ndarray, edges: Sequence[int], sessions: Sequence[Session], rows: int,
    other: Session | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measures how much FAM helps to predict a repeated passage; arguments as for `text_knock_out`.

    At each edge, passages from 1, 2, 4, ... blocks before are scored again, with the text's own FAM and with that of
    another text (or a fresh FAM if there is none). The gain in nats per token measures what FAM retains of a passage
    after that many updates, plus what it retains of the text in general; the latter is the gain at large distances.

    Returns:
      rows of `updates` (FAM updates since the passage), `in_window` (memory segments still contain the passage),
      `against` (the other FAM), and `gain` with a 95% interval over edges.
    """
    against = "fresh" if other is None else "swapped"
    S, M = model.config.memory.block_size, model.config.memory.memory_segments
    length = min(PASSAGE, S)
    cases, distances = [], []
    for edge, session in zip(edges, sessions, strict=True):
        distance = 1
        while distance <= edge // S:
            begin = edge - distance * S + (S - length) // 2
            cases.append(Case(session, tokens[begin : begin + length], other))
            distances.append(distance)
            distance *= 2
    found = knock_out(model, cases, rows)
    gains = [float((one["kept"][0][1:] - one[against][0][1:]).mean()) for one in found]
    rows_of = lambda distance: [gain for gain, one in zip(gains, distances, strict=True) if one == distance]
    return [
        {"updates": distance, "in_window": distance <= M, "against": against, "gain": interval(rows_of(distance))}
        for distance in sorted(set(distances))
    ]
