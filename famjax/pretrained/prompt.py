"""Initial FAM prompts for a model that was trained without FAM.

The layers process the prompt like token embeddings, so it is initialised to resemble them: from a normal distribution
with their mean and standard deviation in each dimension, or with the embeddings of a given text.
"""

from collections.abc import Sequence

import numpy as np

_ROWS = 4096  # rows of the embedding converted to float64 at a time


def like_embeddings(embedding_VD: np.ndarray, fam_length: int, seed: int) -> np.ndarray:
    """Returns float32 [F, D], normally distributed with the embeddings' mean and standard deviation per dimension."""
    mean, spread = mean_and_spread(embedding_VD)
    noise = np.random.default_rng(seed).standard_normal((fam_length, embedding_VD.shape[1]))
    return (mean + spread * noise).astype(np.float32)


def of_text(embedding_VD: np.ndarray, tokens: Sequence[int] | np.ndarray, fam_length: int) -> np.ndarray:
    """Returns the embeddings [F, D] of the first F tokens, repeated from the first if there are fewer than F."""
    return embedding_VD[np.resize(np.asarray(tokens), fam_length)]


def mean_and_spread(embedding_VD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean, standard deviation) over the vocabulary, float64 [D] each, computed in chunks of rows."""
    V, D = embedding_VD.shape
    total, squares = np.zeros(D), np.zeros(D)
    for begin in range(0, V, _ROWS):
        total += embedding_VD[begin : begin + _ROWS].astype(np.float64).sum(axis=0)
    mean = total / V
    for begin in range(0, V, _ROWS):
        squares += ((embedding_VD[begin : begin + _ROWS].astype(np.float64) - mean) ** 2).sum(axis=0)
    return mean, np.sqrt(squares / V)
