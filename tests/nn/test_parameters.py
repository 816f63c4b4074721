"""The model's weights: their number, FAM's additional ones, and their initialisation."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from famjax.cli.gin_config import load_model_config
from famjax.config import ConfigError
from famjax.nn import weights as models
from tests import tiny

GIN = Path(__file__).parents[2] / "gin"


def shapes(tree: dict) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}


def significant(number: int, digits: int) -> float:
    """Rounds to some significant digits: 1189150000 with 3 is 1.19e9."""
    return float(f"{number:.{digits}g}")


@pytest.mark.parametrize(
    ("name", "weights", "embedding"), [("1b", 1.19e9, 0.4e9), ("8b", 8.59e9, 1.05e9), ("24b", 24.5e9, 1.05e9)]
)
def test_sizes_of_the_papers_models(name: str, weights: float, embedding: float) -> None:
    """Paper, Table 3: the numbers of weights without the embedding, and of the embedding, to the printed digits."""
    config = load_model_config([str(GIN / "models" / f"fam_{name}.gin")])
    tree = models.parameter_shapes(config)
    count = {path: int(np.prod(shape, dtype=np.int64)) for path, shape in shapes(tree).items()}
    of_embedding = count.pop("['embedding']")
    assert significant(sum(count.values()), 3) == weights
    assert significant(of_embedding, 1 if name == "1b" else 3) == embedding


@pytest.mark.parametrize("name", ["tiny", "1b", "8b", "24b"])
def test_fam_adds_the_prompt_alone(name: str) -> None:
    """FAM's only additional weight is the prompt [F, D]; all others have the shapes of the BSWA baseline."""
    fam, bswa = (load_model_config([str(GIN / "models" / f"{kind}_{name}.gin")]) for kind in ("fam", "bswa"))
    with_fam, without = (shapes(models.parameter_shapes(config)) for config in (fam, bswa))
    added = {"['fam']['prompt']": (fam.memory.fam_length, fam.d_model)}
    assert with_fam == without | added


def test_prefix_is_a_prompt_for_each_layer() -> None:
    """`fam_init="prefix"` learns [L, F, D] in place of [F, D]."""
    config = tiny.config(fam_init="prefix")
    tree = models.parameter_shapes(config)
    assert shapes(tree["fam"]) == {"['prefix']": (2, 2, 12)}


def test_twins_start_with_the_same_weights() -> None:
    """With the same seed, FAM and its BSWA baseline share all other weights; another seed gives other weights."""
    fam, bswa = (models.parameters(models.create(tiny.config(fam_length=F), seed=3)) for F in (2, 0))
    prompt = fam.pop("fam")["prompt"]
    assert np.asarray(prompt).std() > 0
    jax.tree.map(np.testing.assert_array_equal, fam, bswa)
    other = models.parameters(models.create(tiny.config(fam_length=0), seed=4))
    assert (np.asarray(other["embedding"]) != np.asarray(bswa["embedding"])).all()


def test_initial_spread() -> None:
    """Weights are initialised with the standard deviation that keeps activations in scale: 1/sqrt(inputs), less on the
    residual path."""
    config = tiny.config(d_model=64, d_ff=128, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=512, fam_length=4)
    tree = models.parameters(models.create(config))
    layers, depth = tree["layers"], (2 * config.num_layers) ** -0.5
    expected = [
        (tree["embedding"], config.embedding_std),
        (tree["fam"]["prompt"], config.embedding_std),
        (layers["attention"]["query"], 64**-0.5),
        (layers["attention"]["key"], 64**-0.5),
        (layers["attention"]["value"], 64**-0.5),
        (layers["attention"]["output"], 64**-0.5 * depth),
        (layers["feed_forward"]["gate"], 64**-0.5),
        (layers["feed_forward"]["up"], 64**-0.5),
        (layers["feed_forward"]["down"], 128**-0.5 * depth),
    ]
    for array, std in expected:
        assert abs(np.asarray(array).std() / std - 1) < 3 / np.sqrt(2 * array.size)
    for norm in (layers["attention_norm"], layers["ff_norm"], tree["final_norm"]):
        assert (np.asarray(norm["scale"]) == 1).all()


def test_memories_start_as_said() -> None:
    """Infini-attention's gates are half open; a matrix of DeltaNet decays by half in about a hundred tokens and is read
    by half; ARMT's holds nothing; gates of FAM's updates are mostly closed. Learned tokens are as embeddings."""
    sizes = {"d_model": 64, "num_heads": 64, "num_kv_heads": 64, "head_dim": 2, "memory_segments": 0}
    of = lambda **memory: models.parameters(models.create(tiny.config(**(sizes | {"fam_length": 0} | memory))))
    added = lambda **memory: jax.tree.map(np.asarray, of(**memory)["layers"]["memory"])
    assert (added(kind="infini")["gate"] == 0).all()
    delta = added(kind="deltanet")
    assert (delta["gate"] == 0.5).all() and (delta["rate"] == 0).all()
    half = np.log(2) / np.log1p(np.exp(delta["bias"]))  # tokens, at x W_alpha = 0
    error = np.sqrt(np.pi / 2 / half.size)  # of a median whose logarithm has a standard deviation of 1
    assert abs(np.log(np.median(half) / 103)) < 4 * error and abs(np.std(delta["bias"]) - 1) < 4 * error
    armt = added(kind="armt", memory_tokens=2, memory_key_dim=4)
    assert (armt.pop("value") == 0).all()
    for array in (delta["alpha"], delta["beta"], *armt.values()):
        assert abs(array.std() / 64**-0.5 - 1) < 4 / np.sqrt(2 * array.size)
    gated = added(fam_update="gated", fam_length=2)
    assert (gated["write_bias"] == -1).all() and not gated["write_old"].any() and not gated["write_new"].any()
    for kind in ("rmt", "armt", "autocompressor"):
        tokens = np.asarray(of(kind=kind, memory_tokens=4)["memory"]["tokens"])
        assert abs(tokens.std() / tiny.config().embedding_std - 1) < 4 / np.sqrt(2 * tokens.size)


def test_create_validates() -> None:
    """An invalid configuration is refused before any weight is created."""
    with pytest.raises(ConfigError, match="num_kv_heads"):
        models.create(dataclasses.replace(tiny.config(), num_heads=3))
