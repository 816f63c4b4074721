"""The byte-level vocabulary: token ids are the bytes of UTF-8."""

import numpy as np

BYTE_VOCABULARY_SIZE = 256


def encode(text: str) -> np.ndarray:
    """Text to int32 ids."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


def decode(tokens: np.ndarray) -> str:
    """Ids to text; bytes that are no UTF-8 become replacement characters."""
    return bytes(int(t) for t in tokens).decode("utf-8", errors="replace")
