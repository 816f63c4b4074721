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
SEED = 0  # of weights and tokens


def check_installed(packages: tuple[str, ...] | None = None) -> None:
    """Raises `ConfigError` with the install command if any of the packages (default: all) is missing."""
    missing = [name for name in packages or PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--peers needs {', '.join(name.replace('_', '-') for name in missing)}: {INSTALL}")


class Peer(NamedTuple):
    """A torch training step: `run` does forward, loss, backward and AdamW once."""

    run: Callable[[], None]
    weights: int


class Size(NamedTuple):
    """The settings that all peers share with our model.

    Attributes:
      config: our model; peers get the same vocabulary, width, depth, heads, block size and FAM length.
      rows, length: batch size and sequence length.
    """

    config: ModelConfig
    rows: int
    length: int

    def common(self, **names: str) -> dict[str, int]:
        """Returns the arguments that these packages share, some under other names."""
        config = self.config
        ours = {"vocab": config.vocab_size, "dim": config.d_model, "depth": config.num_layers,
                "heads": config.num_heads, "dim_head": config.head_dim}  # fmt: skip
        return {names.get(name, name): value for name, value in ours.items()}

    def step(self, module: Any, loss_of: Callable[[Any, Any], Any]) -> Peer:
        """Returns the training step of a module, on random tokens [rows, length + 1]."""
        import torch

        draw = torch.Generator().manual_seed(SEED)
        tokens = torch.randint(0, self.config.vocab_size, (self.rows, self.length + 1), generator=draw)
        adam = torch.optim.AdamW(module.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
        module.train()

        def run() -> None:
            adam.zero_grad(set_to_none=True)
            loss_of(module, tokens).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adam.step()

        return Peer(run, sum(p.numel() for p in module.parameters()))


def peers(config: ModelConfig, rows: int, length: int) -> dict[str, Callable[[], Peer]]:
    """Returns a function that builds each peer, by name; the arguments are those of `Size`."""
    size, window = Size(config, rows, length), config.memory.window

    def seeded(build: Callable[..., Peer], *how: Any) -> Callable[[], Peer]:
        def built() -> Peer:
            import torch

            torch.manual_seed(SEED)
            return build(size, *how)

        return built

    return {
        "block-recurrent-transformer-pytorch": seeded(_block_recurrent),
        "transformers Mistral, full causal": seeded(_mistral, None),
        f"transformers Mistral, window {window}": seeded(_mistral, window),
        "infini-transformer-pytorch": seeded(_infini),
        "recurrent-memory-transformer-pytorch": seeded(_recurrent_memory),
    }


def _block_recurrent(size: Size) -> Peer:
    from block_recurrent_transformer_pytorch import BlockRecurrentTransformer, RecurrentTrainerWrapper

    memory = size.config.memory
    model = BlockRecurrentTransformer(
        **size.common(vocab="num_tokens"), max_seq_len=size.length, block_width=memory.block_size,
        num_state_vectors=memory.fam_length,
    )  # fmt: skip
    return size.step(RecurrentTrainerWrapper(model), lambda module, tokens: module(tokens))


def _infini(size: Size) -> Peer:
    from infini_transformer_pytorch import InfiniTransformer, InfiniTransformerWrapper

    wrapper = InfiniTransformerWrapper(
        InfiniTransformer(**size.common(vocab="num_tokens")), segment_length=size.config.memory.block_size,
        detach_mems_every_num_segments=size.length,
    )  # fmt: skip
    return size.step(wrapper, lambda module, tokens: module(tokens))


def _recurrent_memory(size: Size) -> Peer:
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

    memory = size.config.memory
    model = RecurrentMemoryTransformer(
        **size.common(vocab="num_tokens"), num_memory_tokens=memory.fam_length, seq_len=memory.block_size
    )
    loss_of = lambda module, tokens: module(tokens, return_loss=True)[0]
    return size.step(RecurrentMemoryTransformerWrapper(model), loss_of)


def _mistral(size: Size, window: int | None) -> Peer:
    from transformers import MistralConfig, MistralForCausalLM

    config = size.config
    theirs = MistralConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, sliding_window=window,
        max_position_embeddings=size.length, tie_word_embeddings=True, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    loss_of = lambda module, tokens: module(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
    return size.step(MistralForCausalLM(theirs), loss_of)
