"""Prefill and decoding at several text lengths: famjax, and transformers with the same weights."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from famjax.bench.measure import Tell, alternate, paired_ratio, spread
from famjax.config import ModelConfig
from famjax.data.vocabulary import BYTE_VOCABULARY
from famjax.infer import decode, prefill, session
from famjax.infer.load import load
from famjax.nn.model import Transformer
from famjax.nn.weights import create, unstacked
from famjax.storage.arrays import size_of

# Tokens that are decoded after a text.
NEW = 32
# Tokens of a text that are generated and passed to prefill at a time.
CHUNK = 2**14
# Sizes of the models for the comparison with transformers.
LLAMAS = {
    "tiny": {"hidden_size": 256, "intermediate_size": 680, "num_hidden_layers": 4, "num_attention_heads": 4,
             "num_key_value_heads": 4, "vocab_size": 4096},
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
              "num_key_value_heads": 12, "vocab_size": 16000},
}  # fmt: skip


class Ours:
    """A famjax model, run as by `famjax generate`."""

    def __init__(self, model: Transformer):
        self._model = model
        self._session = session.start(model)

    def read(self, tokens: int) -> None:
        """Prefills a new text of `tokens` tokens and waits until it is done."""
        rng = np.random.default_rng(0)
        whole = (tokens // CHUNK) * [CHUNK] + [tokens % CHUNK]
        text = (rng.integers(0, self._model.config.vocab_size, n).astype(np.int32) for n in whole if n)
        self._session = prefill.prefill(self._model, session.start(self._model), [text])
        jax.block_until_ready(self._session.memory)

    def write(self) -> None:
        """Decodes `NEW` tokens after the text, one by one; the state after the text is kept."""
        for made in decode.generate(self._model, session.repeat_rows(self._session, 1), NEW):
            jax.block_until_ready(made.session.memory)

    def held_mib(self) -> float:
        """Returns the size of the text's state (memory or KV cache) in MiB."""
        return size_of(self._session.memory) / 2**20


class Theirs:
    """A causal language model of transformers with its KV cache, with the methods of `Ours`."""

    def __init__(self, folder: Path):
        import torch
        import transformers

        self._torch = torch
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model = loaded.eval()
        self._cache: Any = None
        self._last: Any = None

    def read(self, tokens: int) -> None:
        """See `Ours`."""
        with self._torch.no_grad():
            ids = self._torch.randint(0, self._model.config.vocab_size, (1, tokens))
            out = self._model(ids, use_cache=True, logits_to_keep=1)
        self._cache, self._last = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)

    def write(self) -> None:
        """See `Ours`."""
        last = self._last
        with self._torch.no_grad():
            for _ in range(NEW):
                out = self._model(last, past_key_values=self._cache, use_cache=True)
                last = out.logits[:, -1].argmax(-1, keepdim=True)
        self._cache.crop(-NEW)

    def held_mib(self) -> float:
        """See `Ours`."""
        layers = self._cache.layers
        return sum(x.nbytes for layer in layers for x in (layer.keys, layer.values)) / 2**20


Runner = Ours | Theirs


def write_llama(size: str, folder: Path) -> None:
    """Writes a transformers Llama with random weights, of a size in `LLAMAS`, to a folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMAS[size], max_position_embeddings=2**20, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / BYTE_VOCABULARY).write_text("{}\n")  # an import without any vocabulary is refused


def over_lengths(
    model: ModelConfig, lengths: tuple[int, ...], full_to: int, repeats: int, tell: Tell
) -> list[dict[str, Any]]:
    """Measures FAM (if the model has it), BSWA and full attention with a KV cache, with random weights, alternating at
    each length.

    Full attention is the same model with a ring that holds the whole text, at lengths up to `full_to` tokens.

    Returns:
      One entry per length and model: `name`, `length` (tokens), `held_mib` (the state's size in MiB), and for `read`
      (prefill) and `write` (decoding) tokens per second and seconds.
    """
    S = model.memory.block_size
    ours = lambda **memory: Ours(unstacked(create(model.with_memory(**memory))))
    windowed: dict[str, Runner] = {"FAM": ours()} if model.memory.fam_length else {}
    windowed["BSWA"] = ours(fam_length=0)
    results: list[dict[str, Any]] = []
    for length in lengths:
        runners = dict(windowed)
        if length <= full_to:
            blocks = -(-(length + NEW) // S)
            runners["full"] = ours(fam_length=0, memory_segments=blocks - 1, token_window=0)
        results += _at_length(runners, length, repeats, tell)
    return results


def beside_transformers(
    theirs: Path, ours: Path, memory: Mapping[str, int | None], lengths: tuple[int, ...], repeats: int, threads: int,
    tell: Tell,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measures the transformers model in the folder `theirs` and the same weights in famjax (the model directory
    `ours`), without and, if it has one, with FAM, alternating; all compute in float32.

    `memory` changes memory settings of ours, as in `load`; torch uses `threads` threads.

    Returns:
      Entries as in `over_lengths`, with the speed relative to transformers.
    """
    import torch

    torch.set_num_threads(threads)
    model = load(ours, None, "float32", **memory)
    runners: dict[str, Runner] = {"FAM": Ours(model)} if model.config.memory.fam_length else {}
    runners["BSWA"] = Ours(load(ours, None, "float32", **{**memory, "fam_length": 0}))
    runners["transformers"] = Theirs(theirs)
    return [row for n in lengths for row in _at_length(runners, n, repeats, tell)]


def _at_length(runners: dict[str, Runner], length: int, repeats: int, tell: Tell) -> Iterator[dict[str, Any]]:
    """Yields one entry per runner. Each runner is warmed up first, which compiles its programs."""
    for name, runner in runners.items():
        tell(f"{length} tokens: warming up {name}", 0, 1)
        runner.read(length)
        runner.write()
    runs: dict[str, Callable[[], None]] = {}
    for name, runner in runners.items():
        runs[f"read {name}"] = lambda runner=runner: runner.read(length)  # type: ignore[misc]
        runs[f"write {name}"] = runner.write
    # Each runner prefills before it decodes, in every round.
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        order = list(runners) if turn % 2 == 0 else list(runners)[::-1]
        one = {f"{what} {name}": runs[f"{what} {name}"] for name in order for what in ("read", "write")}
        for name, seconds in alternate(one, 1).items():
            times[name] += seconds
        tell(f"{length} tokens", turn + 1, repeats)
    last = "transformers" if "transformers" in runners else None
    for name, runner in runners.items():
        entry: dict[str, Any] = {"name": name, "length": length, "held_mib": runner.held_mib()}
        for what, tokens in (("read", length), ("write", NEW)):
            found = spread(times[f"{what} {name}"])
            entry[f"{what}_tokens_per_second"] = tokens / found.median
            entry[f"{what}_seconds"] = found._asdict()
            if last and name != last:
                ahead = paired_ratio(times, f"{what} {last}", f"{what} {name}")
                entry[f"{what}_speed_over_{last}"] = ahead._asdict()
        yield entry
