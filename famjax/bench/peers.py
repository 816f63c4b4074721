"""Memory models of other packages, in torch, at the size `peers` of `sizes.py`.

Each is built as its documentation shows, with about the same number of weights as ours, and trained with its
own loss. torch is imported only when a peer is built; famjax does not depend on it.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from famjax.config import ConfigError, ModelConfig

INSTALL = "pip install -e '.[peers]'"
PACKAGES = (
    "torch", "transformers", "block_recurrent_transformer_pytorch", "infini_transformer_pytorch",
    "recurrent_memory_transformer_pytorch",
)  # fmt: skip


def check_installed(packages: tuple[str, ...] | None = None) -> None:
    """Raises `ConfigError` with the install command if any of the packages (default: all) is missing."""
    missing = [name for name in packages or PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--peers needs {', '.join(name.replace('_', '-') for name in missing)}: {INSTALL}")


class Peer(NamedTuple):
    """A torch training step: `run` does forward, loss, backward and AdamW once."""

    run: Callable[[], None]
    weights: int


def set_threads(count: int) -> None:
    """Sets the number of torch's compute threads."""
    import torch

    torch.set_num_threads(count)


def peers(config: ModelConfig, rows: int, length: int, seed: int = 0) -> dict[str, Callable[[], Peer]]:
    """Returns a builder for each peer by name.

    Args:
      config: our model; peers get the same vocabulary, width, depth, heads, block size and FAM length.
      rows, length: batch size and sequence length.
      seed: seed of weights and tokens.
    """
    import torch

    def step(module: Any, loss_of: Callable[[Any, Any], Any]) -> Peer:
        torch.manual_seed(seed)
        tokens = torch.randint(0, config.vocab_size, (rows, length + 1))
        adam = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
        module.train()

        def run() -> None:
            adam.zero_grad(set_to_none=True)
            loss_of(module, tokens).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adam.step()

        return Peer(run, sum(p.numel() for p in module.parameters()))

    def common(**names: str) -> dict[str, int]:
        ours = {"vocab": config.vocab_size, "dim": config.d_model, "depth": config.num_layers,
                "heads": config.num_heads, "dim_head": config.head_dim}  # fmt: skip
        return {names.get(name, name): value for name, value in ours.items()}

    S, F = config.memory.block_size, config.memory.fam_length

    def block_recurrent() -> Peer:
        from block_recurrent_transformer_pytorch import BlockRecurrentTransformer, RecurrentTrainerWrapper

        model = BlockRecurrentTransformer(
            **common(vocab="num_tokens"), max_seq_len=length, block_width=S, num_state_vectors=F
        )
        return step(RecurrentTrainerWrapper(model), lambda module, tokens: module(tokens))

    def infini() -> Peer:
        from infini_transformer_pytorch import InfiniTransformer, InfiniTransformerWrapper

        model = InfiniTransformer(**common(vocab="num_tokens"))
        wrapper = InfiniTransformerWrapper(model, segment_length=S, detach_mems_every_num_segments=length)
        return step(wrapper, lambda module, tokens: module(tokens))

    def recurrent_memory() -> Peer:
        from recurrent_memory_transformer_pytorch import (
            RecurrentMemoryTransformer,
            RecurrentMemoryTransformerWrapper,
        )

        model = RecurrentMemoryTransformer(**common(vocab="num_tokens"), num_memory_tokens=F, seq_len=S)
        return step(
            RecurrentMemoryTransformerWrapper(model), lambda module, tokens: module(tokens, return_loss=True)[0]
        )

    def mistral(window: int | None) -> Callable[[], Peer]:
        def build() -> Peer:
            from transformers import MistralConfig, MistralForCausalLM

            theirs = MistralConfig(
                vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
                num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, sliding_window=window,
                max_position_embeddings=length, tie_word_embeddings=True, use_cache=False,
                attn_implementation="sdpa",
            )  # fmt: skip
            return step(
                MistralForCausalLM(theirs),
                lambda module, tokens: module(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss,
            )

        return build

    return {
        "block-recurrent-transformer-pytorch": block_recurrent,
        "transformers Mistral, full causal": mistral(None),
        f"transformers Mistral, window {config.memory.window}": mistral(config.memory.window),
        "infini-transformer-pytorch": infini,
        "recurrent-memory-transformer-pytorch": recurrent_memory,
    }
