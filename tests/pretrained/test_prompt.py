"""FAM's initial prompt."""

from pathlib import Path

import numpy as np

from famjax.cli.main import main
from famjax.infer.load import load
from famjax.pretrained import prompt
from tests.pretrained.test_bad_folders import EMBEDDING, write_llama


def test_prompt_has_mean_and_spread_of_the_embeddings() -> None:
    """In each dimension: the mean and standard deviation over the vocabulary, up to sampling noise; seeded."""
    rng = np.random.default_rng(0)
    embedding = (rng.standard_normal((9000, 6)) * [1, 2, 3, 0.1, 0, 5] + [0, 1, -2, 3, 4, 0]).astype(np.float32)
    mean, spread = prompt.mean_and_spread(embedding)
    np.testing.assert_allclose(mean, embedding.mean(0, dtype=np.float64), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(spread, embedding.std(0, dtype=np.float64), rtol=1e-12)
    made = prompt.like_embeddings(embedding, 4000, seed=3)
    error = 5 / np.sqrt(4000)
    assert (np.abs(made.mean(0) - mean) <= error * spread + 1e-6).all()
    assert (np.abs(made.std(0) - spread) <= error * spread + 1e-6).all()
    np.testing.assert_array_equal(made, prompt.like_embeddings(embedding, 4000, seed=3))
    assert (made[:, :4] != prompt.like_embeddings(embedding, 4000, seed=4)[:, :4]).all()


def test_prompt_of_a_text() -> None:
    """The embeddings of the text's tokens, repeated from the first if there are fewer than F."""
    embedding = np.arange(20).reshape(10, 2)
    np.testing.assert_array_equal(prompt.of_text(embedding, [3, 9], 3), embedding[[3, 9, 3]])
    np.testing.assert_array_equal(prompt.of_text(embedding, [3, 9, 5], 2), embedding[[3, 9]])


def test_import_takes_the_prompt_from_the_folders_embeddings(tmp_path: Path) -> None:
    """`famjax import-hf --seed`: the prompt in the model directory is a function of the seed."""
    tensors = write_llama(tmp_path / "theirs")
    assert (
        main(["import-hf", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--fam-length", "3", "--seed", "5"]) == 0
    )
    wanted = prompt.like_embeddings(tensors[EMBEDDING], 3, seed=5)
    np.testing.assert_array_equal(load(tmp_path / "ours").fam.prompt[...], wanted)
