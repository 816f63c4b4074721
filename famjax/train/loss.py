"""Cross entropy at the positions that carry a loss, and the divergence of a model from its teacher."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from famjax.dims import Array, Bool, Float, Int
from famjax.nn.model import Transformer

# Per row: sums of its tokens' cross entropies and z losses; per token: whether the prediction is correct.
Costs: TypeAlias = tuple[Float[Array, "B"], Float[Array, "B"], Bool[Array, "B W"]]
# Maps hidden states to logits.
Logits: TypeAlias = Callable[[Array], Array]


class Loss(NamedTuple):
    """The loss of a batch or of a part of one.

    Attributes:
      cross_entropy: float32, weighted mean of the targets' cross entropies.
      z_loss: float32, weighted mean of z_loss * log(Z)^2; 0 if it is off.
      correct: whether the token with the highest logit is the target.
    """

    cross_entropy: Float[Array, ""]
    z_loss: Float[Array, ""]
    correct: Bool[Array, "B W"]

    @property
    def total(self) -> Float[Array, ""]:
        """The loss that training minimises."""
        return self.cross_entropy + self.z_loss


def cross_entropy(logits: Float[Array, "... V"], targets: Int[Array, "..."]) -> Float[Array, "..."]:
    """Returns -log softmax(logits)[targets] in float32."""
    return _cross_entropy(logits, targets)[0]


def _cross_entropy(
    logits: Float[Array, "... V"], targets: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns (cross entropy, log of the softmax normaliser), both float32."""
    logits = logits.astype(jnp.float32)
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return log_z - right, log_z


@jax.named_scope("loss")
def weighted_loss(
    model: Transformer, hidden: Float[Array, "B T D"], positions: Int[Array, "B W"] | None,
    targets: Int[Array, "B W"], weights: Float[Array, "B W"], *, total_weight: Float[Array, ""] | None = None,
    tokens_at_once: int = 0, z_loss: float = 0.0,
) -> Loss:  # fmt: skip
    """Returns the weighted mean loss: sum(w (nll + z_loss log(Z)^2)) / sum(w).

    Args:
      model: maps hidden states to logits.
      hidden: hidden states after the final norm.
      positions: positions that carry a loss; None: all of them, with W = T.
      targets, weights: the token that follows each position, and its loss weight.
      total_weight: sum of weights to divide by; None: that of `weights`. A microbatch divides by the sum of its whole
        batch, so that losses and gradients of microbatches add up to the batch's.
      tokens_at_once: upper bound on the tokens whose logits exist at once (at least one per row), also in the backward
        pass, which rematerialises them; 0: no bound.
      z_loss: weight of log(Z)^2.
    """
    if positions is not None:
        hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)  # [B, W, D]
    if total_weight is None:
        total_weight = weights.sum()

    def part(logits_of: Logits, hidden: Array, targets: Array, weights: Array) -> Costs:
        logits = logits_of(hidden)
        nll, log_z = _cross_entropy(logits, targets)
        return (nll * weights).sum(-1), (log_z**2 * weights).sum(-1), logits.argmax(-1) == targets

    nll_B, z_B, correct = _by_rows(model, part, (hidden, targets, weights), tokens_at_once)
    nll, z = (x.sum() / jnp.maximum(total_weight, 1e-9) for x in (nll_B, z_B))
    return Loss(nll, z_loss * z, correct)


@jax.named_scope("loss")
def divergence(
    model: Transformer, hidden: Float[Array, "B T D"], teacher: Float[Array, "B T D"], weights: Float[Array, "B T"],
    total_weight: Float[Array, ""], tokens_at_once: int = 0,
) -> Float[Array, ""]:  # fmt: skip
    """Returns the distillation loss (Hinton et al., 2015): sum(w KL(teacher || model)) / total_weight.

    Args:
      model: maps both hidden states to logits over the vocabulary; the teacher's logits get no gradient.
      hidden, teacher: hidden states after the final norm, of the model and of its teacher.
      weights: weight of each token.
      total_weight, tokens_at_once: see `weighted_loss`.
    """

    def part(logits_of: Logits, hidden: Array, weights: Array, teacher: Array) -> Costs:
        ours = jax.nn.log_softmax(logits_of(hidden))
        theirs = jax.lax.stop_gradient(jax.nn.log_softmax(logits_of(teacher)))
        kl = (jnp.exp(theirs) * (theirs - ours)).sum(-1)
        sums = (kl * weights).sum(-1)
        return sums, jnp.zeros_like(sums), jnp.zeros(kl.shape, bool)

    teacher = jax.lax.stop_gradient(teacher)
    kl_B, _, _ = _by_rows(model, part, (hidden, weights, teacher), tokens_at_once)
    return kl_B.sum() / jnp.maximum(total_weight, 1e-9)


def _by_rows(model: Transformer, part: Callable[..., Costs], args: tuple[Array, ...], tokens_at_once: int) -> Costs:
    """Runs part(logits_of, *args) on each device's rows, a limited number of tokens at a time; args: [B, W(, D)]."""
    B, W = args[1].shape
    width = max(1, tokens_at_once // B) if tokens_at_once else W

    def of_rows(table: Float[Array, "..."], *args: Array) -> Costs:
        return _in_chunks(functools.partial(part, lambda hidden: model.logits(hidden, table)), width, args)

    table, axes = model.vocabulary_weights
    placement, run = model.execution.placement, of_rows
    if placement is not None and B % placement.row_shards == 0:
        # Left to itself, the compiler would gather the table and sum its gradient over devices for every chunk.
        run = placement.by_rows(of_rows, axes, model.config.dtype, (0,) * 3, (0,) * 3)
    costs: Costs = run(table, *args)
    return costs


def _in_chunks(part: Callable[..., Costs], width: int, args: tuple[Array, ...]) -> Costs:
    """Runs part(*args) on `width` columns [B, width] of the arguments at a time."""
    B, W = args[1].shape
    if width >= W:
        return part(*args)
    chunks = -(-W // width)

    def split(x_BW: Array) -> Array:
        padded = jnp.pad(x_BW, ((0, 0), (0, chunks * width - W)) + ((0, 0),) * (x_BW.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, chunks, width, *x_BW.shape[2:]), 1, 0)

    def add(sums: tuple[Array, Array], chunk: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        first, second, correct = part(*chunk)
        return (sums[0] + first, sums[1] + second), correct

    # Padding has weight 0. Without the checkpoint the scan would keep the logits of every chunk.
    zero = jnp.zeros(B, jnp.float32)
    sums, correct = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), (zero, zero), jax.tree.map(split, args))
    return *sums, jnp.moveaxis(correct, 0, 1).reshape(B, chunks * width)[:, :W]
