"""Cross entropy at the positions that carry a loss."""

from typing import Any

import jax
import jax.numpy as jnp

from famjax.nn.model import Transformer


def cross_entropy(logits: Any, targets: Any) -> Any:
    """-log softmax(logits)[targets] in float32. logits [..., V], targets int [...]."""
    logits = logits.astype(jnp.float32)
    right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - right


def weighted_loss(
    model: Transformer, hidden_BTD: Any, positions_BW: Any, targets_BW: Any, weights_BW: Any
) -> tuple[Any, Any]:
    """Mean loss over weights, and which targets [B, W] the model's first choice gets right."""
    hidden_BWD = jnp.take_along_axis(hidden_BTD, positions_BW[..., None], axis=1)
    logits_BWV = model.logits(hidden_BWD)
    loss = (cross_entropy(logits_BWV, targets_BW) * weights_BW).sum() / jnp.maximum(weights_BW.sum(), 1e-9)
    return loss, logits_BWV.argmax(-1) == targets_BW
