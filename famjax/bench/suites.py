"""Three measurements: training, streamed prefill, and training compared with torch peers.

Each returns entries of plain numbers for `report.py` and `bench.json`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from famjax.bench.measure import Tell, alternate, paired_ratio, spread
from famjax.bench.programs import streamed_prefill, training_step
from famjax.bench.sizes import variants
from famjax.config import ModelConfig

# Blocks per device call of streamed prefill.
BLOCKS_PER_CALL = 8


def _ratio(times: dict[str, list[float]], above: str = "FAM", below: str = "BSWA") -> dict[str, float] | None:
    return paired_ratio(times, above, below)._asdict() if above in times and below in times else None


def training(
    model: ModelConfig, tokens: int, lengths: tuple[int, ...], repeats: int, names: tuple[str, ...], tell: Tell
) -> list[dict[str, Any]]:
    """Measures training steps of `tokens` tokens at each sequence length: FAM, BSWA and full attention, alternating.

    `names` selects among these (`sizes.variants`).

    Returns:
      One entry per length: `variants`, with seconds per step, tokens per second, compile and first-step seconds,
      and MiB by the compiler; and `fam_to_bswa`, the ratio of their times by round.
    """
    results = []
    for length in lengths:
        programs = {}
        for name, config in variants(model, length).items():
            if name in names:
                tell(f"{length} tokens: compiling {name}", 0, 1)
                programs[name] = training_step(config, tokens // length, length)
        turn = lambda done, all_runs, length=length: tell(f"{length} tokens: training", done, all_runs)
        times = alternate({name: program.run for name, program in programs.items()}, repeats, on_turn=turn)
        entries = [
            {
                "name": name, "weights": program.weights, "step_seconds": spread(times[name])._asdict(),
                "tokens_per_second": tokens / spread(times[name]).median, "compile_seconds": program.compile_seconds,
                "first_step_seconds": program.first_seconds, "compiled_memory_mib": program.memory_mib,
            }
            for name, program in programs.items()
        ]  # fmt: skip
        results.append({"length": length, "rows": tokens // length, "variants": entries, "fam_to_bswa": _ratio(times)})
    return results


def prefill(model: ModelConfig, rows: int, blocks: tuple[int, ...], repeats: int, tell: Tell) -> list[dict[str, Any]]:
    """Measures streamed prefill of texts of `blocks` blocks, FAM and BSWA alternating, all lengths in every round.

    Short texts are prefilled several times per run, so that the runs of different lengths take more similar times.
    Returns one entry per length, like those of `training`.
    """
    readers = {}
    per_call = min(BLOCKS_PER_CALL, *blocks)
    for name in ("FAM", "BSWA"):
        config = variants(model, model.memory.block_size).get(name)
        if config is not None:
            tell(f"prefill: compiling {name}", 0, 1)
            readers[name] = streamed_prefill(config, rows, per_call)
    again = {count: max(1, max(blocks) // (4 * count)) for count in blocks}

    def reader(read: Callable[[int], None], count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(again[count]):
                read(count)

        return run

    runs = {f"{name} {n}": reader(read, n) for n in blocks for name, (read, _) in readers.items()}
    times = alternate(runs, repeats, on_turn=lambda done, all_runs: tell("prefill", done, all_runs))
    results = []
    for count in blocks:
        tokens = again[count] * count * rows * model.memory.block_size
        entries = [
            {
                "name": name, "weights": program.weights, "compile_seconds": program.compile_seconds,
                "tokens_per_second": tokens / spread(times[f"{name} {count}"]).median,
                "compiled_memory_mib": program.memory_mib,
            }
            for name, (_, program) in readers.items()
        ]  # fmt: skip
        ratio = _ratio(times, f"FAM {count}", f"BSWA {count}")
        results.append({"blocks": count, "rows": rows, "variants": entries, "fam_to_bswa": ratio})
    return results


def flatness(results: list[dict[str, Any]], name: str) -> float:
    """Returns the relative range of prefill tokens/s over the lengths: largest over smallest, minus 1."""
    rates = [entry["tokens_per_second"] for row in results for entry in row["variants"] if entry["name"] == name]
    return max(rates) / min(rates) - 1


def beside_peers(model: ModelConfig, rows: int, length: int, repeats: int, threads: int, tell: Tell) -> dict[str, Any]:
    """Measures training steps of FAM, BSWA and the torch peers, alternating, on `rows` rows of `length` tokens.

    torch uses `threads` threads; those of jax are set by the caller.

    Returns:
      `entries` with seconds per step and tokens per second, and the times of the fastest peer divided by ours.
    """
    import torch

    torch.set_num_threads(threads)
    programs: dict[str, Any] = {}
    for name, build in _builders(model, rows, length):
        tell(f"building {name}", 0, 1)
        programs[name] = build()
    for name, program in programs.items():
        tell(f"warming up {name}", 0, 1)
        program.run()
    runs = {name: program.run for name, program in programs.items()}
    times = alternate(runs, repeats, on_turn=lambda done, all_runs: tell("peers", done, all_runs))
    entries = [
        {
            "name": name, "weights": programs[name].weights, "step_seconds": spread(seconds)._asdict(),
            "tokens_per_second": rows * length / spread(seconds).median,
        }
        for name, seconds in times.items()
    ]  # fmt: skip
    best = max((e for e in entries if e["name"] not in ("FAM", "BSWA")), key=lambda e: e["tokens_per_second"])["name"]
    ahead = {name: _ratio(times, best, name) for name in ("FAM", "BSWA")}
    return {"rows": rows, "length": length, "threads": threads, "entries": entries, "best_peer": best,
            "speed_over_best_peer": ahead, "fam_to_bswa": _ratio(times)}  # fmt: skip


def _builders(model: ModelConfig, rows: int, length: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    from famjax.bench import peers

    for name, config in variants(model, length).items():
        if name != "full":
            yield name, functools.partial(training_step, config, rows, length)
    yield from peers.peers(model, rows, length).items()
