"""Auxiliary losses on FAM in training (paper section 7: both were tried, without a gain). `sequence.py` adds them.

    diversity        1 - H(p) / log C,   p the mean over FAM's F queries of their attention to C keys, H its entropy
    reconstruction   |A(F_tau) - A(block)|^2 / |A(block)|^2,   A(x) what the block's queries read from the keys of x

The paper names the first as the entropy of the mean attention, and does not define the second. Here it follows the
attention reconstruction of Compressive Transformers (arXiv 1911.05507, section 3.2), with three differences: the
queries are those of the block itself, not of a later one; the error is a fraction of what is to be reconstructed; and
FAM's update, which shares all weights with the tokens, is trained through all of them. Only the reading has no
gradient: its queries, its projections, and A(block).

Blocks whose FAM no later block of their document reads have no loss, as those that are not full. `with_losses` computes
the block's queries and keys once more, which only trainings with these losses pay for.
"""

import jax
import jax.numpy as jnp
import numpy as np

from famjax.attention import block_step as steps
from famjax.attention.attend import Source, attend, weights_of
from famjax.attention.layer_weights import LayerWeights
from famjax.attention.positions import Blocks
from famjax.dims import Array, Bool, Float, KeysValues, Queries, Tokens


def with_losses(
    layer: LayerWeights, y: Tokens, x: Tokens, fams: tuple[steps.Carried, steps.Carried], at: steps.At,
    scale: float, prompt: Float[Array, "1 F D"] | None,
) -> Tokens:  # fmt: skip
    """The block's output `y`, unchanged, with the gradient of the block's losses, if the layer has any.

    Args:
      layer: the layer's weights and settings; `MemoryConfig.fam_diversity_loss` and `fam_reconstruction_loss` are the
        weights of the losses.
      y: `block_step`'s output activations.
      x, at, prompt: `block_step`'s arguments.
      fams: FAM before the block and after it.
      scale: factor of the losses, 1 / (rows x blocks x layers) for a mean over them; 0 if there are none.
    """
    config, (before, after) = layer.memory, fams
    if not (scale and config.fam_length):
        return y
    q, kv = steps.project(layer, x, before.fam, at, prompt)
    total = jnp.zeros(len(y))
    if config.fam_diversity_loss:
        total += config.fam_diversity_loss * diversity(layer, q, kv, at)
    if config.fam_reconstruction_loss:
        total += config.fam_reconstruction_loss * reconstruction(layer, q, kv, after.fam[:, 0], at)
    assert at.is_read is not None
    return _with_gradient_of(y, scale * jnp.where(at.is_read, total, 0.0).sum())


def is_read(where: Blocks) -> Bool[Array, "B N"]:
    """Which blocks are full and leave a FAM to another block of their document, in this row or in a later step."""
    if where.starts is None:
        return where.full
    ends = jnp.pad(where.starts[:, 1:], ((0, 0), (0, 1)))
    return where.full & ~ends


def diversity(layer: LayerWeights, q: Queries, kv: KeysValues, at: steps.At) -> Float[Array, "B"]:
    """1 - H(p) / log C of each row, the mean over heads: 0 if FAM's queries together attend to all keys evenly, 1 if
    all attend to one. C includes the keys of previous FAMs that do not exist yet. `q` and `kv` are those of
    `block_step.project`."""
    config = layer.memory
    (seen,) = steps.seen_by_fam(kv, at, config)
    mean = weights_of(q[..., config.block_size :, :], seen, layer.scoring).mean(-2)
    keys = mean.shape[-1]
    # The gradient is 0, not NaN, at keys that are hidden.
    entropy = -(mean * jnp.log(jnp.maximum(mean, 1e-30))).sum(-1)
    return 1 - entropy.mean((1, 2)) / np.log(keys)


def reconstruction(
    layer: LayerWeights, q: Queries, kv: KeysValues, fam: Float[Array, "B F D"], at: steps.At
) -> Float[Array, "B"]:  # fmt: skip
    """The squared error of what a block's queries read from its new FAM instead of the block, as a fraction of the
    square of the latter, for each row. The block is read without a causal mask, as FAM has read it."""
    S, stop = layer.memory.block_size, jax.lax.stop_gradient
    queries, (k, v) = stop(q[..., :S, :]), stop(kv)
    theirs = attend(queries, [Source(k[..., :S, :], v[..., :S, :])], layer.scoring)
    frozen = layer.with_arrays(stop(layer.weights))
    of_fam = frozen.keys_values(fam, steps.fam_query_offsets(at.origin, layer.memory))
    ours = attend(queries, [Source(*of_fam)], layer.scoring)
    squares = lambda x: jnp.square(x.astype(jnp.float32)).sum((1, 2, 3, 4))
    # Of a block of padding whose embedding is zero, `theirs` is 0, and so is what it counts.
    return squares(ours - theirs) / jnp.maximum(squares(theirs), 1e-20)


@jax.custom_vjp
def _with_gradient_of(y: Tokens, loss: Float[Array, ""]) -> Tokens:
    """y, unchanged. The backward pass adds the gradient of `loss`, with a factor of 1 whatever the cotangent of y, so
    that no scalar has to be carried through the scans over blocks and layers. What rescales the objective does not
    rescale it."""
    return y


_with_gradient_of.defvjp(
    lambda y, loss: (y, None),
    lambda _, gradient: (gradient, jnp.ones(())),
)  # fmt: skip
