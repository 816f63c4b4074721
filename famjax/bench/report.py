"""Reports benchmark results as tables, `bench.json` and a plot. All numbers in the tables are in the JSON."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from famjax.bench.machine import summary
from famjax.bench.suites import flatness
from famjax.process.shown import plain, wide_console
from famjax.storage.model_dir import write_text

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import ScalarFormatter

BENCH_JSON, PLOT_PNG = "bench.json", "bench.png"
SPREAD = ("median", "low", "high")


def write(directory: str | Path, results: dict[str, Any]) -> None:
    """Writes `bench.json` and `bench.png` to a directory."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / BENCH_JSON, json.dumps(results, indent=2) + "\n")
    _plot(path / PLOT_PNG, results)


def print_tables(results: dict[str, Any], console: Console | None = None) -> None:
    """Prints a table for each suite."""
    console = wide_console(140, console)
    for line in tables(results):
        console.print(line)
    if "machine" in results:
        console.print(summary(results["machine"]), highlight=False, soft_wrap=True)
    console.print(f"peak memory of this process, over all measurements: {results['peak_rss_mib']:,.0f} MiB")


def tables(results: dict[str, Any]) -> list[Table | str]:
    """Returns the tables of all suites in a `bench.json`, and the lines below them."""
    return [line for name, show in _TABLES.items() if name in results for line in show(results[name])]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _training(rows: list[dict[str, Any]]) -> list[Any]:
    table = _table(
        "training step: forward, loss, backward, AdamW", "model", "length", "rows", "step s (range)", "tokens/s",
        "compile s", "first step s", "MiB (compiler)",
    )  # fmt: skip
    lines: list[Any] = [table]
    for row in rows:
        for entry in row["variants"]:
            table.add_row(
                entry["name"], f"{row['length']:,}", str(row["rows"]), _ranged(entry["step_seconds"], ".3f"),
                f"{entry['tokens_per_second']:,.0f}", f"{entry['compile_seconds']:.1f}",
                f"{entry['first_step_seconds']:.2f}", f"{entry['compiled_memory_mib']:,.0f}",
            )  # fmt: skip
        table.add_section()
        if row["fam_to_bswa"]:
            lines.append(f"time of FAM / BSWA at length {row['length']:,}: {_ratio(row['fam_to_bswa'])}")
    return lines


def _prefill(rows: list[dict[str, Any]]) -> list[Any]:
    table = _table("streamed prefill", "blocks", "tokens/s FAM", "tokens/s BSWA", "time of FAM / BSWA")
    for row in rows:
        rates = {entry["name"]: f"{entry['tokens_per_second']:,.0f}" for entry in row["variants"]}
        ratio = _ratio(row["fam_to_bswa"]) if row["fam_to_bswa"] else "-"
        table.add_row(f"{row['blocks']:,}", rates.get("FAM", "-"), rates.get("BSWA", "-"), ratio)
    names = [entry["name"] for entry in rows[0]["variants"]]
    ranges = ", ".join(f"{name} {100 * flatness(rows, name):.1f}%" for name in names)
    return [table, f"range of tokens/s over these lengths: {ranges}"]


def _peers(result: dict[str, Any]) -> list[Any]:
    size = f"{result['rows']} x {result['length']:,} tokens, {result['threads']} threads"
    table = _table(f"training step, with torch peers: {size}", "model", "weights", "step s (range)", "tokens/s")
    for entry in sorted(result["entries"], key=lambda e: -e["tokens_per_second"]):
        table.add_row(
            entry["name"], f"{entry['weights']:,}", _ranged(entry["step_seconds"], ".3f"),
            f"{entry['tokens_per_second']:,.0f}",
        )  # fmt: skip
    lines: list[Any] = [table]
    for name, ratio in result["speed_over_best_peer"].items():
        if ratio:
            lines.append(f"speed of {name} / {result['best_peer']}: {_ratio(ratio)}")
    return lines


def _questions(result: dict[str, Any]) -> list[Any]:
    size = f"{result['questions']} questions about {result['tokens']:,} tokens, {result['rows']} rows"
    table = _table(f"answers: {size}", "prefill of the text", "tokens read", "seconds (range)")
    for name, what in (("shared", "once"), ("alone", "per question")):
        took = result["seconds"][name]
        table.add_row(what, f"{result['read'][name]:,}", _ranged(took, ".2f"))
    return [table, f"speed-up: {_ratio(result['speed_up'])}"]


def _inference(rows: list[dict[str, Any]]) -> list[Any]:
    beside = any("read_speed_over_transformers" in row for row in rows)
    more = ("prefill / transformers", "decode / transformers") if beside else ()
    columns = ("tokens", "prefill tokens/s", "decode tokens/s", "memory MiB", *more)
    table = _table("prefill of a text, and decoding after it", "model", *columns)
    for i, row in enumerate(rows):
        cells = [
            row["name"], f"{row['length']:,}", f"{row['read_tokens_per_second']:,.0f}",
            f"{row['write_tokens_per_second']:,.1f}", f"{row['held_mib']:,.2f}",
        ]  # fmt: skip
        ratios = [row.get(f"{what}_speed_over_transformers") for what in ("read", "write")]
        table.add_row(*cells, *([_ratio(ratio) if ratio else "" for ratio in ratios] if beside else []))
        if i + 1 < len(rows) and rows[i + 1]["length"] != row["length"]:
            table.add_section()
    return [table]


def _serving(rows: list[dict[str, Any]]) -> list[Any]:
    size = f"{rows[0]['prompt_tokens']} tokens read, at most {rows[0]['max_tokens']} made a request"
    table = _table(
        f"serving: {size}", "server", "clients", "read", "made", "requests/s", "tokens/s (range)",
        "/ one row", "first token s (range)", "answer s",
    )  # fmt: skip
    table.columns[0].no_wrap = True
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        over = row["tokens_per_second_over_reference"]
        table.add_row(
            row["name"], str(row["clients"]), "-" if row["read_tokens"] is None else f"{row['read_tokens']:.0f}",
            f"{row['made_tokens']:.0f}", f"{row['requests_per_second']['median']:.2f}",
            _ranged(row["tokens_per_second"], ".1f"), f"{over['median']:.2f}" if over else "-",
            _ranged(row["first_token_seconds"], ".2f"), f"{row['answer_seconds']['median']:.2f}",
        )  # fmt: skip
        if following and following["clients"] != row["clients"]:
            table.add_section()
    return [table]


def _plot_serving(figure_axes: Any, rows: list[dict[str, Any]]) -> None:
    """Plots tokens/s against the number of clients."""
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        median, low, high = (np.array([row["tokens_per_second"][key] for row in own]) for key in SPREAD)
        figure_axes.errorbar([row["clients"] for row in own], median, [median - low, high - median], marker="o",
                             capsize=3, label=plain(name))  # fmt: skip
    clients = sorted({row["clients"] for row in rows})
    figure_axes.set(xscale="log", ylim=(0, None), xlabel="clients at once", ylabel="tokens/s", title="serving")
    figure_axes.set_xticks(clients, list(map(str, clients)))
    figure_axes.minorticks_off()
    figure_axes.grid(alpha=0.3)
    figure_axes.legend(frameon=False)


def _plot_inference(figure_axes: Any, rows: list[dict[str, Any]]) -> None:
    """Plots tokens/s of prefill (solid) and of decoding (dashed) against the text's length."""
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        lengths = [row["length"] for row in own]
        (line,) = figure_axes.plot(lengths, [row["read_tokens_per_second"] for row in own], "o-", label=name)
        figure_axes.plot(lengths, [row["write_tokens_per_second"] for row in own], "o--", color=line.get_color())
    figure_axes.set(xscale="log", yscale="log", xlabel="tokens of the text", ylabel="tokens/s",
                    title="prefill, and decoding after it (dashed)")  # fmt: skip
    figure_axes.grid(alpha=0.3)
    figure_axes.legend(frameon=False)


_TABLES: dict[str, Callable[[Any], list[Any]]] = {
    "training": _training, "prefill": _prefill, "questions": _questions, "peers": _peers, "inference": _inference,
    "serving": _serving,
}  # fmt: skip
SUITES = tuple(_TABLES)  # in the order of docs/bench.md


def _ratio(values: dict[str, float]) -> str:
    return _ranged(values, ".3f")


def _ranged(values: dict[str, float], form: str) -> str:
    median, low, high = (format(values[key], form) for key in SPREAD)
    return f"{median} ({low}-{high})"


def _plot(path: Path, results: dict[str, Any]) -> None:
    """Plots tokens/s by sequence length (training), by blocks (prefill) and by model (peers); seconds of questions."""
    suites = [name for name in _TABLES if name in results]
    figure, axes = plt.subplots(1, len(suites), figsize=(6 * len(suites), 4.2), dpi=150, squeeze=False)
    for name, one in zip(suites, axes[0], strict=True):
        if name in ("inference", "serving"):
            {"inference": _plot_inference, "serving": _plot_serving}[name](one, results[name])
            continue
        if name == "peers":
            entries = sorted(results["peers"]["entries"], key=lambda e: e["tokens_per_second"])
            ours = ["tab:blue" if entry["name"] in ("FAM", "BSWA") else "0.7" for entry in entries]
            one.barh([e["name"] for e in entries], [e["tokens_per_second"] for e in entries], color=ours)
            one.set(xlabel="tokens/s in training", title="with torch peers")
            continue
        if name == "questions":
            seconds = results["questions"]["seconds"]
            one.barh(["per question", "once"], [seconds[n]["median"] for n in ("alone", "shared")])
            one.set(xlabel="seconds", title="prefill of the text")
            continue
        axis = {"training": "length", "prefill": "blocks"}[name]
        rates: dict[str, list[tuple[int, float]]] = {}
        for row in results[name]:
            for entry in row["variants"]:
                rates.setdefault(entry["name"], []).append((row[axis], entry["tokens_per_second"]))
        for label, points in rates.items():
            one.plot(*zip(*points, strict=True), marker="o", label=label)
        labels = {"training": "sequence length in tokens", "prefill": "blocks of the text"}
        one.set(xscale="log", ylim=(0, None), xlabel=labels[name], ylabel="tokens/s", title=name)
        one.set_xticks(sorted({row[axis] for row in results[name]}))
        one.get_xaxis().set_major_formatter(ScalarFormatter())
        one.minorticks_off()
        one.grid(alpha=0.3)
        one.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
