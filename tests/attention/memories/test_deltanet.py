"""The gated delta rule: chunks are the recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famjax.attention.memories.deltanet import delta_rule
from tests import tiny

B, K, G, Q, H = 2, 2, 3, 22, 4


def arrays(seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    q, k = unit(rng.normal(size=(B, K, G, Q, H))), unit(rng.normal(size=(B, K, Q, H)))
    log_alpha, beta = -rng.exponential(size=(B, K, Q)), rng.uniform(size=(B, K, Q))
    # One token forgets everything, some leave the matrix as it is.
    log_alpha[0, 0, 9] = -200.0
    log_alpha[:, :, 15:18] = beta[:, :, 15:18] = 0.0
    found = (q, k, rng.normal(size=(B, K, Q, H)), log_alpha, beta, rng.normal(size=(B, K, H, H)))
    return tuple(x.astype(np.float32) for x in found)


def recurrence(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_alpha: np.ndarray, beta: np.ndarray, s: np.ndarray):
    """S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, o_t = S_t^T q_t, in float64."""
    out, s = np.zeros((B, K, G, Q, H)), s.astype(float)
    for t in range(Q):
        for b, n in np.ndindex(B, K):
            key, strength = k[b, n, t].astype(float), float(beta[b, n, t])
            kept = np.exp(float(log_alpha[b, n, t])) * (np.eye(H) - strength * np.outer(key, key)) @ s[b, n]
            s[b, n] = kept + strength * np.outer(key, v[b, n, t])
            out[b, n, :, t] = q[b, n, :, t] @ s[b, n]
    return out, s


@pytest.mark.parametrize("chunk", [1, 5, 8, 64])
def test_chunks_of_any_length_are_the_recurrence(chunk: int) -> None:
    """Outputs, the last matrix, and their gradients by every input."""
    given = arrays(0)
    out, matrix = jax.jit(lambda *args: delta_rule(*args, chunk=chunk))(*given)
    wanted, last = recurrence(*given)
    tiny.assert_close(out, wanted)
    tiny.assert_close(matrix, last)

    def loss(chunk: int, args: tuple) -> jax.Array:
        out, matrix = delta_rule(*args, chunk=chunk)
        return (jnp.sin(out) * jnp.cos(jnp.arange(Q))[:, None]).sum() + (matrix**2).sum()

    gradients = [jax.jit(jax.grad(lambda args, n=n: loss(n, args)))(given) for n in (1, chunk)]
    for one, other in zip(*gradients, strict=True):
        tiny.assert_close(other, one, 2e-5)
