"""The residuals that the forward pass keeps, by remat policy."""

import jax
import pytest

from famjax.config import REMAT_POLICIES
from tests import tiny


def kept(policy: str, block_size: int, scan_layers: bool = True, by_layer: bool = False) -> int:
    """Returns how many numbers five layers keep for the backward pass of 2 x 48 tokens; `by_layer`: without those that
    all layers share (positions and constants). Nothing is computed."""
    config = tiny.config(num_layers=5, remat=policy, block_size=block_size, scan_layers=scan_layers, fam_length=0)
    tokens = tiny.tokens(config, 2, 48)

    def backward(params):
        return jax.vjp(lambda params: tiny.whole_untraced(config, params, tokens)[0], params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(backward, tiny.parameters(config)))
    return sum(leaf.size for leaf in leaves if not by_layer or leaf.shape[:1] == (5,))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_each_policy_keeps_less_than_the_one_before(scan_layers):
    """none, dots, minimal, full, in this order."""
    amounts = {policy: kept(policy, 24, scan_layers) for policy in REMAT_POLICIES}
    assert amounts["none"] > amounts["dots"] >= amounts["minimal"] > amounts["full"]


@pytest.mark.parametrize("block_size", [4, 24])
def test_minimal_keeps_products_with_weights_alone(block_size):
    """In addition to `full`, for each layer and token: queries, keys and values [3 x 2 heads of 4], the two products of
    a gated feed-forward layer [2 x 20], the attention output [12]. Nothing of the window."""
    more = kept("minimal", block_size, by_layer=True) - kept("full", block_size, by_layer=True)
    assert more == 5 * (2 * 48) * (3 * 2 * 4 + 2 * 20 + 12)
