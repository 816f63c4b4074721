"""Writes measurements of `famjax bench serve` into docs/serve.md, between its two markers.

    famjax bench serve --model runs/smollm2 --clients 1,2,4,8 --output runs/bench/smollm2
    python launch/studies/serving.py "SmolLM2 135M=runs/bench/smollm2/bench.json"

docs/serving.json keeps them by name: one of the same name is replaced, and `"SmolLM2 135M="` removes it. Without
arguments the tables are written again. Measure on a machine that does nothing else: its load average is in the page.
"""

import sys
from typing import Any

from pages import DOCS, Page, by_name, of_machine, publish, with_range

from famjax.bench.machine import summary

SETTINGS = ("name", "clients", "requests", "prompt_tokens", "answer_tokens", "repeats")
MEMORY = ("block_size", "memory_segments", "fam_length")


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a bench.json that docs/serving.json keeps, without folders and settings of the machine."""
    settings = {name: found["settings"][name] for name in SETTINGS}
    settings["memory"] = {name: found["settings"]["model"]["memory"][name] for name in MEMORY}
    return {"machine": of_machine(found["machine"]), "settings": settings, "serving": found["serving"]}


def section(name: str, found: dict[str, Any]) -> list[str]:
    """Returns Markdown lines: settings and machine, the table, and the gain from batching with the most clients."""
    settings, rows = found["settings"], found["serving"]
    S, M, F = settings["memory"].values()
    read = rows[0]["read_tokens"] or settings["prompt_tokens"]  # prompts that are texts have another number of tokens
    said = [
        f"**{name}**: block {S}, {M} memory segments, FAM {F}; a request reads {read:.0f} tokens and "
        f"makes at most {settings['answer_tokens']}, greedily; {settings['requests']} requests per client in each of "
        f"{settings['repeats']} rounds, in which the servers alternate. {summary(found['machine'])}. "
        f"{found['machine']['time'].split()[0]}.",
        "",
        "| clients | server | tokens read / made | requests/s | tokens/s | relative to one row | first token, s "
        "| answer, s |",
        "|---" * 8 + "|",
    ]
    said += [f"| {' | '.join(cells(row))} |" for row in rows]
    most = max(row["clients"] for row in rows)
    gain = next(row for row in rows if row["clients"] == most)["tokens_per_second_over_reference"]
    if most > 1:
        said += ["", f"With {most} clients, batching gives {ranged(gain, '.2f')} times the tokens/s of one row."]
    return said


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the cells of one row of the table: medians with their range."""
    read = "?" if row["read_tokens"] is None else f"{row['read_tokens']:.0f}"
    return (
        str(row["clients"]), row["name"].replace("|", "/"), f"{read} / {row['made_tokens']:.0f}",
        ranged(row["requests_per_second"], ".2f"), ranged(row["tokens_per_second"], ".1f"),
        ranged(row["tokens_per_second_over_reference"], ".2f"), ranged(row["first_token_seconds"], ".2f"),
        ranged(row["answer_seconds"], ".2f"),
    )  # fmt: skip


def ranged(values: dict[str, float], form: str) -> str:
    """Returns a median with its range, formatted with `form`."""
    return with_range(values["median"], values["low"], values["high"], form)


PAGE = Page(DOCS / "serve.md", DOCS / "serving.json", {"serving": by_name(section)})

if __name__ == "__main__":
    sys.exit(publish(PAGE, __doc__, "serving", kept, "famjax bench serve"))
