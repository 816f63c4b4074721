"""RoPE and window of every layer: as transformers' configuration of the same config.json says, or refused."""

import copy
import itertools
from typing import Any, NamedTuple

import pytest

from famjax.config import ConfigError
from famjax.pretrained.config_json import model_config
from famjax.pretrained.families import FAMILIES, Family
from tests.pretrained.test_every_key import SHAPE, config_of

ABSENT = object()
LINEAR = {"rope_type": "linear", "factor": 8.0}
FULL, LOCAL = "full_attention", "sliding_attention"
# Values of the keys that decide RoPE and windows; every combination of two of them is tried.
CHOICES: dict[str, tuple[Any, ...]] = {
    "rope_parameters": (
        ABSENT, None, {}, {"rope_theta": 50.0}, {"rope_type": "default", "rope_theta": 1e6},
        {"rope_theta": 50.0, **LINEAR}, LINEAR, {FULL: {"rope_theta": 3e5, "rope_type": "default"}},
        {FULL: {"rope_theta": 3e5}, LOCAL: None}, {FULL: LINEAR, LOCAL: {"rope_type": "default"}},
        {LOCAL: {"rope_theta": 300.0}}, {FULL: {"rope_theta": 3e5}, LOCAL: {"rope_theta": 3e5}},
        {FULL: {"rope_theta": 3e5}, LOCAL: {"rope_theta": 300.0}, "rope_theta": 7.0},
    ),
    "rope_scaling": (ABSENT, None, LINEAR, {"type": "linear", "factor": 2.0}, {"rope_theta": 9.0, **LINEAR}),
    "rope_theta": (ABSENT, 77.0, 1000000),
    "rope_local_base_freq": (ABSENT, 33.0),
    "layer_types": (ABSENT, None, [FULL] * 3, [LOCAL] * 3, [LOCAL, FULL, LOCAL]),
    "sliding_window_pattern": (ABSENT, 1, 2, 3, 6),
    "sliding_window": (ABSENT, None, 6),
    "use_sliding_window": (ABSENT, True, False),
    "max_window_layers": (ABSENT, 0, 1, 3),
}  # fmt: skip


class Layer(NamedTuple):
    """What decides a layer's attention beside its weights; `window` 0: none."""

    base: float
    scaling: str
    factor: float
    window: int


def test_every_layer_is_theirs() -> None:
    """All pairs of values, for every family; some 4,000 files are accepted by both."""
    accepted = {family.model_type: compare(family) for family in FAMILIES}
    assert min(accepted.values()) > 450 and sum(accepted.values()) > 4000, accepted


def compare(family: Family) -> int:
    """Compares all files that both accept; returns their number."""
    base = SHAPE | {"architectures": [family.architecture], "model_type": family.model_type}
    count = 0
    for one, other in itertools.combinations(CHOICES, 2):
        for values in itertools.product(CHOICES[one], CHOICES[other]):
            chosen = dict(zip((one, other), values, strict=True))
            hf = base | {key: value for key, value in chosen.items() if value is not ABSENT}
            try:
                ours = model_config(hf)
            except ConfigError:
                continue
            try:
                theirs = config_of(family, copy.deepcopy(hf))
                wanted = [layer_of(theirs, family, i) for i in range(3)]
            except Exception:  # transformers refuses the file
                continue
            ropes = [ours.layer(i).rope for i in range(3)]
            found = [
                Layer(rope.base, rope.scaling, rope.factor, ours.layer(i).memory.token_window)
                for i, rope in enumerate(ropes)
            ]
            assert found == wanted, (family.model_type, chosen)
            count += 1
    return count


def layer_of(theirs: Any, family: Family, index: int) -> Layer:
    """Returns a layer of a configuration of transformers, as the code of its models reads it."""
    kinds = theirs.layer_types if family.windows not in (None, "all") else None
    rope, window = theirs.rope_parameters, (theirs.sliding_window or 0) if family.windows else 0
    if kinds is not None:
        rope = rope.get(kinds[index], rope)
        window = window if kinds[index] == LOCAL else 0
    kind = rope["rope_type"]
    return Layer(
        float(rope["rope_theta"]), "none" if kind == "default" else kind, float(rope.get("factor", 1.0)), window
    )


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6, **LINEAR}}, "rope_parameters has factor, rope_type"),
        (
            "gemma3_text",
            {"rope_parameters": {FULL: {}, LOCAL: {}, "rope_theta": 7.0}},
            "rope_parameters has rope_theta",
        ),
        ("llama", {"rope_parameters": {FULL: {"rope_theta": 7.0}}}, "differ by kind of layer"),
        ("gemma2", {"sliding_window_pattern": 3}, "every second layer of Gemma 2 has a sliding window"),
    ],
)
def test_what_transformers_ignores_is_refused(model_type: str, change: dict[str, Any], message: str) -> None:
    """The file says something that transformers does not compute: nobody can mean both."""
    family = next(one for one in FAMILIES if one.model_type == model_type)
    hf = SHAPE | {"architectures": [family.architecture], "model_type": model_type} | change
    with pytest.raises(ConfigError, match=message):
        model_config(hf)
