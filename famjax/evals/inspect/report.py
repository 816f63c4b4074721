"""Report of an inspection: `inspect.json`, a self-contained `inspect.html`, and its first figure as a PNG."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from famjax.evals.reports import charts, html
from famjax.evals.reports.language_report import gap_text
from famjax.storage.model_dir import write_bytes, write_text

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

JSON, HTML, PNG = "inspect.json", "inspect.html", "inspect.png"
_COLORS = {"kept": "C0", "fresh": "C1", "zero": "C2", "swapped": "C3"}


def write(output: Path, found: dict[str, Any]) -> None:
    """Writes all three files, each atomically."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / JSON, json.dumps(found) + "\n")
    overview = _overview(found)
    png = io.BytesIO()
    overview.savefig(png, format="png", dpi=130, bbox_inches="tight")
    write_bytes(output / PNG, png.getvalue())
    write_text(output / HTML, _page(found, charts.svg_of(overview)))
    plt.close("all")


def _page(found: dict[str, Any], overview: str) -> str:
    document, maps = found["document"], found["maps"]
    memory = found["memory"]
    about = (
        f"{document['what']}: {document['tokens']:,} tokens, blocks of {memory['block_size']}, "
        f"{memory['memory_segments']} memory segments, FAM of {memory['fam_length']}."
    )
    caption = (
        f"Attention in block {maps['block']}. Left of the line are FAM's keys, right of it the block's; rows are "
        "queries, from top to bottom. Darker is more, on a scale of each picture's own. The rest of a row, up to 1, "
        "goes to memory segments. Layers without FAM have no such keys and queries."
    )
    parts = [
        html.paragraph(f"{found['model']}. {about}"),
        html.said(found["summary"]),
        html.picture(overview, "Shares of attention by layer and head; FAM from update to update; recall."),
        html.section("Attention of input queries", html.picture(charts.svg_of(_maps(maps, "tokens")), caption)),
        html.section("Attention of FAM's queries", html.picture(charts.svg_of(_maps(maps, "fam")), caption)),
        *_gates_section(found),
        html.section("Replacing the memory", _knock_out_table(found["knock_out"])),
        html.section("Recall by number of FAM updates", _recall_table(found["recall"])),
        html.details("Settings", html.pre(json.dumps(found["settings"], indent=1))),
    ]
    return html.page("What the memory does", parts)


# --- pictures -------------------------------------------------------------------------------------


def _overview(found: dict[str, Any]) -> Figure:
    """Draws attention shares by layer and head (top), curves over blocks and recall (bottom)."""
    shares = found["attention"]
    panels = [("input queries to FAM", np.array(shares["input"], float)[..., 1])]
    if shares["answer"] is not None:
        panels.append(("... at the answer's tokens", np.array(shares["answer"], float)[..., 1]))
    own = np.array(shares["fam_queries"], float)
    panels.append(("FAM's queries to previous FAM", own[..., 0]))
    panels.append(("FAM's queries to the block", own[..., 1]))
    figure = plt.figure(figsize=(14 if found["write_gates"] else 11, 6.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    top, bottom = halves
    for axes, (title, values) in zip(top.subplots(1, len(panels)), panels, strict=True):
        picture = axes.imshow(values, vmin=0, vmax=max(np.nanmax(values), 1e-6), cmap="viridis", aspect="auto")
        axes.set_title(f"{title}\nmean {np.nanmean(values):.1%}", fontsize=9)
        axes.set(xlabel="head", ylabel="layer")
        for set_ticks, count in zip((axes.set_yticks, axes.set_xticks), values.shape, strict=True):
            set_ticks(range(0, count, max(1, count // 8)))
        top.colorbar(picture, ax=axes, format=PercentFormatter(1, decimals=0 if np.nanmax(values) > 0.02 else 2))
    gated = bool(found["write_gates"])
    left, middle, *of_gates, right = bottom.subplots(1, 3 + gated)
    layers = found["maps"]["layers"]
    shades = _shades(layers[0], layers[-1])
    _curves(left, middle, found["by_block"], shades)
    for axes in of_gates:
        _gate_curves(axes, found["by_block"], shades)
    if found["recall"] and "exact_match" in found["recall"][0]:
        _key_recall(right, found["recall"])
    elif found["recall"]:
        _text_recall(right, found["recall"])
    return figure


def _shades(first: int, last: int) -> Any:
    """Returns the colors of layers from the first to the last with FAM, for lines and a color bar: viridis without the
    yellow that is hardly seen on white."""
    colors = matplotlib.colors.ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 0.9, 256)))
    return matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(first, max(last, first + 1)), colors)


def _gate_curves(axes: Any, by_block: dict[str, Any], shades: Any) -> None:
    block = np.array(by_block["block"])
    mean, least, most = (np.array(by_block[f"write_gate_{name}"], float) for name in ("mean", "min", "max"))
    for layer, color in enumerate(shades.to_rgba(range(mean.shape[1]))):
        axes.plot(block, mean[:, layer], color=color, lw=1, marker="." if len(block) < 3 else None)
        axes.fill_between(block, least[:, layer], most[:, layer], color=color, alpha=0.15, lw=0)
    axes.set(xlabel="block", title="gate of FAM's updates: mean, min to max", ylim=(-0.03, 1.03))
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)


def _curves(left: Any, middle: Any, by_block: dict[str, Any], shades: Any) -> None:
    block = np.array(by_block["block"])
    rms, change, shares = (np.array(by_block[name], float) for name in ("fam_rms", "fam_change", "input_to_fam"))
    for layer, color in enumerate(shades.to_rgba(range(rms.shape[1]))):
        left.plot(block, rms[:, layer], color=color, lw=1, marker="." if len(block) < 3 else None)
        left.plot(block, change[:, layer], color=color, lw=1, ls=":")
        middle.plot(block, 100 * shares[:, layer], color=color, lw=1, marker="." if len(block) < 3 else None)
    left.set(xlabel="block", title="FAM: RMS (lines), change per update (dots)", yscale="log")
    middle.set(xlabel="block", title="input queries to FAM by block (%)")
    for axes in (left, middle):
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    middle.figure.colorbar(shades, ax=middle, label="layer", ticks=MaxNLocator(integer=True))


def _key_recall(axes: Any, rows: list[dict[str, Any]]) -> None:
    updates = [row["updates"] for row in rows]
    for name in rows[0]["instead"]:
        one = [row["instead"][name] for row in rows]
        axes.plot(updates, [x["exact_match"] for x in one], color=_COLORS[name], marker="o", ms=4, label=f"FAM {name}")
        axes.fill_between(
            updates, [x["low"] for x in one], [x["high"] for x in one], color=_COLORS[name], alpha=0.12, lw=0
        )
    axes.set(xlabel="FAM updates between key and answer", title="exact match of the pass key", ylim=(-0.03, 1.03))
    axes.title.set_fontsize(9)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.3)


def _text_recall(axes: Any, rows: list[dict[str, Any]]) -> None:
    updates = np.array([row["updates"] for row in rows])
    mean, low, high = (np.array([row["gain"][name] for row in rows], float) for name in ("mean", "low", "high"))
    axes.fill_between(updates, low, high, alpha=0.2, lw=0)
    axes.plot(updates, mean, marker="o", ms=4)
    axes.axhline(0, color="0.5", lw=1)
    axes.set(
        xscale="log", xlabel="FAM updates since the passage", title="FAM's gain on its repetition (nats per token)"
    )
    axes.set_xticks(updates, [str(n) for n in updates])
    axes.minorticks_off()
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)


def _maps(maps: dict[str, Any], name: str) -> Figure:
    values = np.array(maps[name], float)
    L, H = values.shape[:2]
    figure, grid = plt.subplots(L, H, figsize=(1.7 * H + 0.6, 1.6 * L + 0.4), squeeze=False, layout="constrained")
    for axes, image, (layer, head) in zip(
        grid.ravel(), values.reshape(L * H, *values.shape[2:]), [(x, y) for x in maps["layers"] for y in maps["heads"]],
        strict=True,
    ):  # fmt: skip
        most = max(np.nan_to_num(image).max(), 1e-6)
        axes.imshow(image, cmap="Blues", aspect="auto", vmin=0, vmax=most, interpolation="nearest")
        axes.axvline(maps["fam_columns"] - 0.5, color="C3", lw=0.8)
        axes.set_title(f"layer {layer} head {head}", fontsize=7, pad=2)
        axes.set(xticks=[], yticks=[])
    return figure


# --- tables ---------------------------------------------------------------------------------------


def _gates_section(found: dict[str, Any]) -> list[str]:
    """Returns the section on the gates of FAM's updates, by layer, and by layer and block; [] if there are no gates."""
    gates, by_block = found["write_gates"], found["by_block"]
    if not gates:
        return []
    names = {"all": "all", "at_key": "block with the key", "after_key": "blocks after it"}
    columns = ("mean", "min", "max", "closed", "open")
    rows = [
        [layer, names[where], one["updates"], *(one[column][layer] for column in columns)]
        for layer in range(len(gates["all"]["mean"]))
        for where, one in gates.items()
    ]
    curves = [by_block[f"write_gate_{name}"] for name in ("mean", "min", "max")]
    cell = lambda mean, low, high: None if mean is None else f"{mean:.3f} ({low:.3f} to {high:.3f})"
    by_layer = [
        [block, *(cell(*one) for one in zip(*point, strict=True))]
        for block, *point in zip(by_block["block"], *curves, strict=True)
    ]
    about = (
        "F' = (1 - g) F + g U: a gate g of 0 keeps a feedback activation F, one of 1 replaces it by its update U. "
        "Closed and open are the shares of updates of which all gates are exactly 0, or exactly 1."
    )
    head = ["layer", "updates", "number", *columns]
    layers = ["block", *(f"layer {layer}" for layer in range(len(gates["all"]["mean"])))]
    by_block_table = html.details("By block: mean (minimum to maximum)", html.table(layers, by_layer))
    return [html.section("Gates of FAM's updates", html.paragraph(about), html.table(head, rows), by_block_table)]


def _knock_out_table(knock: dict[str, Any]) -> str:
    head = ["FAM", "exact match", "answer (nats)", "difference", "rest (nats)", "difference"]
    rows = []
    for name, one in knock.items():
        cells: list[Any] = [name, one.get("exact_match")]
        for what in ("answer", "rest"):
            moved = one.get(f"{what}_moves")
            cells += [one.get(what), gap_text(moved, 3) if moved and name != "kept" else None]
        rows.append(cells)
    return html.table(head, rows)


def _recall_table(rows: list[dict[str, Any]]) -> str:
    if rows and "exact_match" in rows[0]:
        names = list(rows[0]["instead"])
        head = [
            "filler blocks",
            "FAM updates",
            "documents",
            *(f"exact, FAM {name}" for name in names),
            "answers the other's key",
        ]
        return html.table(head, [
            [row["filler_blocks"], round(row["updates"], 2), row["documents"],
             *(row["instead"][name]["exact_match"] for name in names),
             row["follows_other"]["share"] if row["follows_other"] else None]
            for row in rows
        ])  # fmt: skip
    against = rows[0]["against"] if rows else ""
    head = ["FAM updates since", "still in the window", f"gain over a {against} FAM (nats per token)", "passages"]
    return html.table(
        head,
        [[r["updates"], "yes" if r["in_window"] else "no", gap_text(r["gain"], 3), r["gain"]["n"]] for r in rows],
    )
