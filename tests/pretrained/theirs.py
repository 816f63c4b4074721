"""Tiny random models of transformers, as folders, to compare pretrained models with.

python -m tests.pretrained.theirs      prints the parity table of docs/pretrained.md
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LENGTHS = (21, 1, 8, 13)  # of a batch's rows, for blocks of 8
BLOCK, SEGMENTS = 8, 2  # a window of three blocks covers the longest row

_SHAPE = {"vocab_size": 61, "num_hidden_layers": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 64}


class Case(NamedTuple):
    """A model of transformers: the name of its config class, its settings, and whether it is sharded."""

    family: str
    settings: dict[str, Any]
    sharded: bool = False


def _sizes(d_model: int, d_ff: int, heads: int, kv_heads: int, head_dim: int | None = None) -> dict[str, Any]:
    sizes = {"hidden_size": d_model, "intermediate_size": d_ff}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return sizes | ({"head_dim": head_dim} if head_dim else {})


CASES = {
    "llama2-untied": Case("Llama", _sizes(24, 40, 4, 4)),
    "llama3-grouped-tied": Case(
        "Llama", _sizes(24, 36, 6, 2, 10) | {"tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }}, sharded=True,
    ),
    "llama-biases-linear": Case(
        "Llama", _sizes(20, 28, 2, 1, 14) | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 4.0}},
    ),
    "mistral-window": Case("Mistral", _sizes(24, 40, 4, 2, 8) | {"sliding_window": 6}),
    "mistral-grouped": Case("Mistral", _sizes(32, 24, 8, 2, 6) | {"sliding_window": None}),
    "qwen2-grouped": Case("Qwen2", _sizes(24, 40, 4, 2)),
    "qwen2-window-tied": Case(
        "Qwen2", _sizes(20, 32, 2, 1) | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1,
        "num_hidden_layers": 3, "tie_word_embeddings": True},
    ),
    "qwen3-grouped": Case("Qwen3", _sizes(24, 40, 4, 2, 12)),
    "qwen3-tied-biases": Case(
        "Qwen3", _sizes(20, 32, 2, 2, 6) | {"tie_word_embeddings": True, "attention_bias": True}, sharded=True
    ),
    "gemma-multi-query": Case("Gemma", _sizes(24, 40, 4, 1, 10)),
    "gemma-grouped": Case("Gemma", _sizes(32, 24, 4, 2, 16)),
    "gemma2": Case(
        "Gemma2", _sizes(24, 40, 4, 2, 8) | {"sliding_window": 5, "num_hidden_layers": 3, "query_pre_attn_scalar": 6,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2-uncapped": Case(
        "Gemma2", _sizes(32, 24, 2, 1, 14) | {"sliding_window": 9, "attn_logit_softcapping": None,
        "final_logit_softcapping": None},
    ),
    "gemma3": Case(
        "Gemma3Text", _sizes(24, 40, 4, 2, 8) | {"sliding_window": 6, "num_hidden_layers": 4,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        }},
    ),
    "gemma3-multi-query": Case(
        "Gemma3Text", _sizes(32, 24, 2, 1, 10) | {"sliding_window": 4, "layer_types": ["full_attention"] * 2}
    ),
}  # fmt: skip


def build(case: Case, seed: int = 0) -> Any:
    """Returns the model, float32, with random weights large enough that all of them matter."""
    import torch
    import transformers

    settings = _SHAPE | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | case.settings
    config = getattr(transformers, f"{case.family}Config")(**settings, attn_implementation="eager")
    model = getattr(transformers, f"{case.family.removesuffix('Text')}ForCausalLM")(config).eval()
    rng = np.random.default_rng(seed)
    around = 0.0 if case.family.startswith("Gemma") else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = rng.standard_normal(weight.shape)
            if name.endswith("norm.weight"):
                value = around + 0.2 * noise
            elif "embed_tokens" in name:
                value = noise / (weight.shape[1] ** 0.5 if case.family.startswith("Gemma") else 1.0)
            else:
                value = noise * (0.3 if weight.ndim == 1 else weight.shape[1] ** -0.5)
            weight.copy_(torch.as_tensor(value, dtype=weight.dtype))
    return model


def save(case: Case, folder: Path, dtype: str = "float32", seed: int = 0) -> Path:
    """Writes the model as a folder, with transformers."""
    import torch

    model = build(case, seed).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="8KB" if case.sharded else "1GB")
    return folder


def tokens(vocab_size: int) -> np.ndarray:
    """Returns int32 [B, T]; rows are as long as `LENGTHS`, then padded."""
    return np.random.default_rng(7).integers(0, vocab_size, (len(LENGTHS), max(LENGTHS))).astype(np.int32)


def logits(folder: Path, tokens_BT: np.ndarray) -> np.ndarray:
    """Returns transformers' logits for the folder: float32 [B, T, V]."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    mask = torch.arange(tokens_BT.shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens_BT, dtype=torch.long), attention_mask=mask.long())
    return np.asarray(out.logits.float())


def relative_errors(actual: np.ndarray, desired: np.ndarray) -> list[np.ndarray]:
    """Returns, for each row and position, the largest difference relative to the largest logit there."""
    errors = np.abs(actual - desired).max(axis=-1) / np.abs(desired).max(axis=-1)
    return [row[:length] for row, length in zip(errors, LENGTHS, strict=True)]


def main() -> int:
    """Prints the parity table."""
    from tests.pretrained import ours

    print("| model | whole | streamed |\n|---|---|---|")
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            source = save(case, Path(place) / "theirs")
            ours.imported(source, Path(place) / "ours")
            text = tokens(case.settings.get("vocab_size", _SHAPE["vocab_size"]))
            desired = logits(source, text)
            whole, streamed = ours.logits(Path(place) / "ours", text)
        worst = [max(row.max() for row in relative_errors(x, desired)) for x in (whole, streamed)]
        print(f"| {name} | {worst[0]:.1e} | {worst[1]:.1e} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
