"""One FAM update, next to the paper's three lines in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention.block_step import At, Carried, block_step
from famjax.nn.layer import Layer
from tests import reference, tiny


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("updates", [0, 3])
def test_one_update(updates: int) -> None:
    """QF, KF, VF = QKV(norm(F));  AF = attend(QF, [KF, K]) + F (0 at first);  F' = FF(norm(AF)) + AF."""
    config = tiny.config(num_heads=1, num_kv_heads=1, head_dim=6, num_layers=1)
    S, F, D = config.memory.block_size, config.memory.fam_length, config.d_model
    params = tiny.parameters(config)
    weights = reference.take(params["layers"], 0)
    rng = np.random.default_rng(0)
    x, fam = rng.normal(size=(S, D)).astype(np.float32), rng.normal(size=(F, D)).astype(np.float32)

    at = At(jnp.array([updates]), jnp.array([updates]))
    layer = Layer(config, config.layer(0), weights)
    _, found, _ = block_step(layer, jnp.asarray(x[None]), Carried(jnp.asarray(fam[None, None]), {}), (), at)

    w = reference.as_float64(weights)
    norm = lambda x, name: x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * w[name]["scale"]
    rotated = lambda x, start: np.stack([reference.rope(row, start + i, config.rope_base) for i, row in enumerate(x)])
    rows = norm(np.concatenate([fam, x]).astype(float), "attention_norm")
    q, k, v = (rows @ w["attention"][name][:, 0] for name in ("query", "key", "value"))
    q, k = rotated(q[:F], S - F), np.concatenate([rotated(k[:F], -F), rotated(k[F:], 0)])

    af = softmax(q @ k.T / np.sqrt(6)) @ v @ w["attention"]["output"][0] + (fam if updates else 0)
    h, ff = norm(af, "ff_norm"), w["feed_forward"]
    expected = (h @ ff["gate"] / (1 + np.exp(-(h @ ff["gate"]))) * (h @ ff["up"])) @ ff["down"] + af

    tiny.assert_close(found.fam[0, 0], expected)
