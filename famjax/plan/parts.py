"""The parts of a step that costs are told apart by, from the names that jax keeps of each operation.

The names are those of `jax.named_scope` in `attention`, `nn` and `train`. FAM's recurrence runs the layer's own
projections and feed-forward, so its name wins wherever it stands; of all others the innermost one does.
"""

import re

# Scope in the code -> part of the report, in its order.
PARTS = {
    "projections": "projections",
    "feed_forward": "feed-forward",
    "block_attention": "block attention",
    "fam_recurrence": "FAM recurrence",
    "embedding": "embedding",
    "weights": "weights gathered",
    "logits": "loss",
    "loss": "loss",
    "optimizer": "optimizer",
}
OTHER = "other"
NAMES = (*dict.fromkeys(PARTS.values()), OTHER)
_SCOPE = re.compile(rf"\b({'|'.join(PARTS)})\b")


def part_of(path: str) -> str:
    """`jit(step)/transpose(jvp(fam_recurrence))/while/body/projections/dot_general` is FAM recurrence."""
    scopes = _SCOPE.findall(path)
    if not scopes:
        return OTHER
    return PARTS["fam_recurrence" if "fam_recurrence" in scopes else scopes[-1]]
