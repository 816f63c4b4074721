"""Sentences that summarise an inspection. They state the thresholds that they use."""

from typing import Any

import numpy as np

from famjax.evals.reports.language_report import gap_text

# Maximum number of layers that are listed; of more, only those with the lowest and the highest mean gate.
NAMED_LAYERS = 6
# Below these, an effect counts as negligible: share of attention, relative change of FAM, nats per token.
LITTLE_ATTENTION, LITTLE_CHANGE, LITTLE_MOVE = 0.01, 0.01, 0.01


def sentences(found: dict[str, Any]) -> list[str]:
    """Returns the verdict, then the evidence, from the content of `inspect.json` without the summary (`run.py`)."""
    shares = found["attention"]
    # Layers without FAM have no share of it.
    tokens, answer = np.array(shares["input"], float)[..., 1], shares["answer"]
    to_fam = float(np.nanmean(tokens))
    at_answer = float(np.nanmean(np.array(answer, float)[..., 1])) if answer is not None else None
    change = _mean(found["by_block"]["fam_change"])
    move, what = _loss(found)
    said = [_verdict(to_fam, at_answer, change, move, what)]
    said.append(_attention(tokens, answer, found["uniform_share"]))
    said.append(_writing(np.array(shares["fam_queries"], float), found["by_block"], change))
    said += _gates(found.get("write_gates"))
    said += _knock_out(found)
    said += _recall(found)
    return said


def _verdict(to_fam: float, at_answer: float | None, change: float, move: float, what: str) -> str:
    written = np.isfinite(change) and change >= LITTLE_CHANGE
    attended = max(to_fam, at_answer or 0.0) >= LITTLE_ATTENTION
    if move >= LITTLE_MOVE and written:
        return f"The memory is written and read: {what} loses {move:.3f} nats per token."
    if move >= LITTLE_MOVE:
        return (
            f"The memory is read but hardly written: an update changes {change:.1%} of FAM, yet {what} loses "
            f"{move:.3f} nats per token. It works as a prompt more than as a memory."
        )
    if move <= -LITTLE_MOVE and written:
        return (
            f"The memory is written and read, but its content does not help here: {what} gains {-move:.3f} nats per "
            f"token."
        )
    lost = f"loses {abs(max(move, 0)):.4f} nats per token, less than {LITTLE_MOVE}"
    nothing = f"{what} {lost if move > -LITTLE_MOVE else f'gains {-move:.3f} nats per token'}"
    if not written:
        return (
            f"The memory is not written: an update changes {change:.2%} of FAM, below {LITTLE_CHANGE:.0%}; {nothing}."
        )
    gives = f"input queries give FAM {to_fam:.2%} of their attention"
    if not attended:
        return f"The memory is written but not read: {gives}; {nothing}."
    return f"The memory is written and attended to, but its content does not matter here: {gives}; {nothing}."


def _loss(found: dict[str, Any]) -> tuple[float, str]:
    """Returns the nats per token that are lost with another FAM, on the answer if there is one, and a description.

    Another document's FAM is preferred, because it is in distribution. Without one, the less harmful of a fresh FAM and
    zeros is used: they may hurt only because the model never saw them late in a text.
    """
    knock = found["knock_out"]
    key, what = ("answer_moves", "the answer") if "answer_moves" in knock["kept"] else ("rest_moves", "the text after")
    lost = {name: -one[key]["mean"] for name, one in knock.items() if name != "kept"}
    if "swapped" in lost:
        return lost["swapped"], f"with another document's FAM {what}"
    name = min(lost, key=lambda name: lost[name])
    return lost[name], f"with {'a fresh FAM' if name == 'fresh' else 'a FAM of zeros'} {what}"


def _attention(tokens: np.ndarray, answer: Any, uniform: float) -> str:
    layer, head = np.unravel_index(np.nanargmax(tokens), tokens.shape)
    text = (
        f"Input queries give FAM {np.nanmean(tokens):.1%} of their attention (uniform attention over all keys in "
        f"reach: {uniform:.1%}); layer {layer}, head {head} gives most, {np.nanmax(tokens):.1%}."
    )
    if answer is not None:
        at = np.array(answer, float)[..., 1]
        layer, head = np.unravel_index(np.nanargmax(at), at.shape)
        where = f"at most {np.nanmax(at):.1%} (layer {layer}, head {head})"
        text += f" At the tokens that predict the answer it is {np.nanmean(at):.1%}, {where}."
    return text


def _writing(fam_queries: np.ndarray, by_block: dict[str, Any], change: float) -> str:
    own = float(np.nanmean(fam_queries[..., 0])) if np.isfinite(fam_queries).any() else float("nan")
    rms = np.array(by_block["fam_rms"], float)
    full = rms[np.isfinite(rms).any(axis=1)]
    text = f"FAM's queries give {own:.1%} of their attention to the previous FAM, the rest to the block. "
    text += (
        f"An update changes FAM by {change:.1%} of its norm (cosine to the old FAM: "
        f"{_mean(by_block['fam_cosine']):.3f})."
    )
    if len(full) > 1:
        full = full[:, np.isfinite(full[0])]  # the layers with FAM
        ratio = float((full[-1] / full[0]).mean())
        trend = "grows" if ratio > 1.2 else "shrinks" if ratio < 1 / 1.2 else "stays"
        text += (
            f" Its RMS {trend}: {full[0].mean():.2f} after the first update, {full[-1].mean():.2f} after {len(full)}."
        )
    return text


def _gates(gates: dict[str, Any] | None) -> list[str]:
    """Returns a sentence on the gates of FAM's updates, by layer; [] if there are none."""
    if not gates:
        return []
    mean = np.array(gates["all"]["mean"], float)
    layers = np.flatnonzero(np.isfinite(mean))
    if len(layers) > NAMED_LAYERS:
        layers = np.array([np.nanargmin(mean), np.nanargmax(mean)])
    values = lambda where: ", ".join(f"{gates[where]['mean'][layer]:.3f}" for layer in layers)
    names = "layers " + ", ".join(map(str, layers)) if len(layers) > 1 else f"layer {layers[0]}"
    text = f"The gates of FAM's updates (0 keeps FAM, 1 replaces it) are {values('all')} on average in {names}"
    if {"at_key", "after_key"} <= gates.keys():
        text += f"; {values('at_key')} at the block with the key and {values('after_key')} after it"
        closed = np.array(gates["after_key"]["closed"], float)
        if np.nanmax(closed) > 0:
            layer = int(np.nanargmax(closed))
            text += f", where layer {layer} keeps FAM bit for bit in {closed[layer]:.0%} of the blocks"
    return [f"{text}."]


def _knock_out(found: dict[str, Any]) -> list[str]:
    words = {"fresh": "as before any text", "zero": "of zeros", "swapped": "of another document"}
    parts = []
    for name, one in found["knock_out"].items():
        if name == "kept":
            continue
        moves = [
            f"the {what} by {gap_text(one[key], 3)}"
            for key, what in (("answer_moves", "answer"), ("rest_moves", "rest"))
            if key in one
        ]
        parts.append(f"a FAM {words[name]} changes " + " and ".join(moves))
    text = "In nats per token, with 95% intervals: " + "; ".join(parts) + "."
    follows = found.get("follows_other")
    if follows:
        text += (
            f" With another document's FAM, {follows['share']:.0%} of {follows['n']} answers are that document's key."
        )
    return [text]


def _recall(found: dict[str, Any]) -> list[str]:
    rows = found["recall"]
    if not rows:
        return []
    if "exact_match" in rows[0]:
        best = max(rows, key=lambda row: row["exact_match"])
        lost = next((row for row in rows[rows.index(best) :] if row["exact_match"] < 0.5), None)
        text = f"Recall is {best['exact_match']:.0%} at {best['updates']:.0f} FAM updates"
        if best["exact_match"] < 0.5:
            return [f"{text}, the highest measured: there is little to forget."]
        if lost is None:
            return [f"{text}, and stays at or above one half up to {rows[-1]['updates']:.0f}, the most that was tried."]
        return [f"{text}, and falls below one half at {lost['updates']:.0f}."]
    beyond = [row for row in rows if not row["in_window"]]
    if not beyond:
        return []
    beyond = [row for row in beyond if row["gain"]["low"] is not None]  # a single passage shows nothing
    if not beyond:
        return ["Too few passages have left the window to say whether FAM gains on them; inspect a longer text."]
    known = [row for row in beyond if row["gain"]["low"] > 0]
    if not known:
        return ["On passages that have left the window, FAM has no significant gain (all 95% intervals include 0)."]
    near, far = beyond[0], known[-1]
    other = "a fresh one" if far["against"] == "fresh" else "another document's"
    later = "update" if near["updates"] == 1 else "updates"
    return [
        f"When a passage is repeated {near['updates']} {later} later, FAM gains {near['gain']['mean']:.3f} nats per "
        f"token over {other}. The gain is significant (95%) at {len(known)} of {len(beyond)} distances, the farthest "
        f"{far['updates']} updates ({far['gain']['mean']:.3f})."
    ]


def _mean(x: Any) -> float:
    values = np.array(x, float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
