"""Assigns operations to the parts of a step by their op names, for reporting costs.

The names come from `jax.named_scope` in `attention`, `nn` and `train`. FAM's recurrence runs the layer's own
projections and feed-forward, so its scope takes precedence; otherwise the innermost scope counts.
"""

import re

# Scope in the code -> part in the report.
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
_SCOPE = re.compile(rf"\b({'|'.join(PARTS)})\b")


def part_of(path: str) -> str:
    """Returns the part of an op name (or of several, separated by spaces, from the outermost caller inwards).

    Example: `jit(step)/transpose(jvp(fam_recurrence))/while/body/projections/dot_general` is "FAM recurrence".
    """
    scopes = _SCOPE.findall(path)
    if not scopes:
        return "other"
    return PARTS["fam_recurrence" if "fam_recurrence" in scopes else scopes[-1]]
