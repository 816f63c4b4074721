"""Cross entropy at the positions that carry a loss."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from famjax.nn.model import Transformer


class Loss(NamedTuple):
    """What a batch, or a part of one, costs.

    Attributes:
      cross_entropy: float32 [], the loss of the predictions.
      z_loss: float32 [], what is added to it; 0 where it is not asked for.
      correct: bool, of the shape of the targets: the model's first choice is the target.
    """

    cross_entropy: Any
    z_loss: Any
    correct: Any

    @property
    def total(self) -> Any:
        """What training minimises."""
        return self.cross_entropy + self.z_loss


def cross_entropy(logits: Any, targets: Any) -> Any:
    """-log softmax(logits)[targets] in float32. logits [..., V], targets int [...]."""
    return _cross_entropy(logits, targets)[0]


def _cross_entropy(logits: Any, targets: Any) -> tuple[Any, Any]:
    """(cross entropy, log of softmax's normaliser), both float32 [...]."""
    logits = logits.astype(jnp.float32)
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return log_z - right, log_z


@jax.named_scope("loss")
def weighted_loss(
    model: Transformer, hidden_BTD: Any, positions_BW: Any, targets_BW: Any, weights_BW: Any, *,
    total_weight: Any = None, tokens_at_once: int = 0, z_loss: float = 0.0,
) -> Loss:  # fmt: skip
    """Mean loss over weights: sum(w (nll + z_loss log(Z)^2)) / sum(w).

    Args:
      model: makes logits of hidden states.
      hidden_BTD: hidden states after the final norm.
      positions_BW: where a loss is taken; None is at every position, with targets and weights [B, T].
      targets_BW, weights_BW: the token that follows each position, and what its loss weighs.
      total_weight: sum of the weights to divide by; None is that of `weights_BW`. A microbatch divides
        by that of its whole batch, so that losses and gradients of microbatches just add up.
      tokens_at_once: at most about so many tokens' logits exist at once (at least one for each row), in
        the backward pass too, which makes them again; 0 sets no bound.
      z_loss: weight of log(Z)^2.
    """
    hidden_BWD = hidden_BTD
    if positions_BW is not None:
        hidden_BWD = jnp.take_along_axis(hidden_BTD, positions_BW[..., None], axis=1)
    if total_weight is None:
        total_weight = weights_BW.sum()
    B, W = targets_BW.shape
    width = max(1, tokens_at_once // B) if tokens_at_once else W

    def of_rows(table: Any, *args_BW: Any) -> tuple[Any, Any, Any]:
        def part(hidden: Any, targets: Any, weights: Any) -> tuple[Any, Any, Any]:
            logits = model.logits(hidden, table)
            nll, log_z = _cross_entropy(logits, targets)
            return (nll * weights).sum(-1), (log_z**2 * weights).sum(-1), logits.argmax(-1) == targets

        return _in_chunks(part, width, args_BW)

    table, axes = model.vocabulary_weights
    placement, run = model.execution.placement, of_rows
    if placement is not None and B % placement.row_shards == 0:
        # Left to the compiler, the table would be gathered, and its gradient summed over devices, for every chunk.
        run = placement.by_rows(of_rows, axes, model.config.dtype, (0,) * 3, (0,) * 3)
    nll_B, z_B, correct_BW = run(table, hidden_BWD, targets_BW, weights_BW)
    nll, z = (x.sum() / jnp.maximum(total_weight, 1e-9) for x in (nll_B, z_B))
    return Loss(nll, z_loss * z, correct_BW)


def _in_chunks(part: Any, width: int, args_BW: Any) -> tuple[Any, Any, Any]:
    """part(args) -> (sums [B], sums [B], [B, W]), so many columns at a time."""
    B, W = args_BW[1].shape
    if width >= W:
        return part(*args_BW)
    chunks = -(-W // width)

    def cut(x_BW: Any) -> Any:
        padded = jnp.pad(x_BW, ((0, 0), (0, chunks * width - W)) + ((0, 0),) * (x_BW.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, chunks, width, *x_BW.shape[2:]), 1, 0)

    def add(sums: tuple[Any, Any], chunk: Any) -> tuple[tuple[Any, Any], Any]:
        first, second, correct = part(*chunk)
        return (sums[0] + first, sums[1] + second), correct

    # Padding has weight 0. Without the checkpoint the scan would keep every chunk's logits.
    zero = jnp.zeros(B, jnp.float32)
    sums, correct = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), (zero, zero), jax.tree.map(cut, args_BW))
    return *sums, jnp.moveaxis(correct, 0, 1).reshape(B, chunks * width)[:, :W]
