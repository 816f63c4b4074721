"""What people read is what `bench.json` holds."""

import io
import json

from rich.console import Console

from famjax.bench import report
from famjax.bench.suites import flatness

SPREAD = {"median": 1.25, "low": 1.125, "high": 2.5}


def _entry(name: str, rate: float) -> dict:
    return {
        "name": name, "weights": 1234567, "step_seconds": SPREAD, "tokens_per_second": rate, "compile_seconds": 7.5,
        "first_step_seconds": 1.75, "compiled_memory_mib": 321.0,
    }  # fmt: skip


RESULTS = {
    "training": [
        {"length": 2048, "rows": 4, "variants": [_entry("FAM", 5432.0), _entry("BSWA", 6543.0)], "fam_to_bswa": SPREAD}
    ],
    "prefill": [
        {"blocks": 8, "rows": 1, "variants": [_entry("FAM", 1000.0), _entry("BSWA", 1040.0)], "fam_to_bswa": SPREAD},
        {"blocks": 64, "rows": 1, "variants": [_entry("FAM", 1100.0), _entry("BSWA", 1040.0)], "fam_to_bswa": SPREAD},
    ],
    "peers": {
        "rows": 4, "length": 2048, "threads": 2, "best_peer": "them", "fam_to_bswa": SPREAD,
        "entries": [_entry("FAM", 5432.0), _entry("them", 4321.0)],
        "speed_over_best_peer": {"FAM": SPREAD, "BSWA": None},
    },
    "peak_rss_mib": 987.0,
}  # fmt: skip


def test_tables_say_what_the_json_says(tmp_path) -> None:
    """Every figure of a suite is in its table, read back from the file."""
    report.write(tmp_path, RESULTS)
    results = json.loads((tmp_path / report.BENCH_JSON).read_text())
    assert results == RESULTS
    text = io.StringIO()
    report.print_tables(results, Console(file=text, width=200))
    shown = text.getvalue()
    for figure in ("1.250 (1.125-2.500)", "5,432", "6,543", "4,321", "7.5", "1.75", "321", "987", "1,234,567"):
        assert figure in shown
    assert "FAM 10.0%, BSWA 0.0%" in shown
    assert (tmp_path / report.PLOT_PNG).read_bytes().startswith(b"\x89PNG")


def test_flatness_is_the_largest_rate_over_the_smallest() -> None:
    """1000 and 1100 tokens/s lie apart by 10%."""
    assert abs(flatness(RESULTS["prefill"], "FAM") - 0.1) < 1e-12
    assert flatness(RESULTS["prefill"], "BSWA") == 0.0


def test_a_server_is_shown_by_its_label(tmp_path, capsys) -> None:
    """Brackets are no markup of the table, and dollars no mathematics of the plot."""
    rates = dict.fromkeys(("requests_per_second", "tokens_per_second", "first_token_seconds", "answer_seconds"), SPREAD)
    row = {"name": "[/v1] $x_{$", "clients": 1, "prompt_tokens": 4, "max_tokens": 2, "read_tokens": 4.0,
           "made_tokens": 2.0, "tokens_per_second_over_reference": None} | rates  # fmt: skip
    results = {"serving": [row], "peak_rss_mib": 1.0}
    report.write(tmp_path, results)
    report.print_tables(results)
    assert "[/v1] $x_{$" in capsys.readouterr().out
