"""What a device call adds to the answer of a row."""

import numpy as np
import pytest

from famjax.infer.codec import Codec
from famjax.infer.rows import Scored
from famjax.serve.batch import Batch, Row
from famjax.serve.jobs import Ask, Job
from tests.pretrained import tokenizers_of_ours


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_tokens_after_a_stop_text_are_not_of_the_answer(at_once: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A call makes tokens beyond a stop text, which is found in the text: how many depends on the other rows. Neither
    the answer's tokens, which usage counts, nor its scores have them."""
    codec = Codec(tokenizers_of_ours.write(tmp_path_factory.mktemp("model"), "byte-level"), 1000)
    ids = codec.vocabulary.encode("the lazy fox jumps over the lazy dog").astype(np.int32)
    stops = ["fox"]
    job = Job(Ask(ids[:1], max_tokens=1000, stops=codec.token_stops(stops), stream=None), lambda event: None)
    row = Row(job, 0, codec.stream(stops))
    made = []
    for at in range(0, len(ids), at_once):
        tokens = ids[at : at + at_once]
        scores = Scored(tokens.astype(np.float32), tokens[:, None], tokens[:, None].astype(np.float32))
        made.append(Batch._generated(row, tokens, scores, False))
        if made[-1].ended:
            break
    tokens = np.concatenate([one.tokens for one in made]).tolist()
    assert codec.vocabulary.decode(tokens).endswith("fox") and row.made == len(tokens) < len(ids)
    assert np.concatenate([one.scores.logprob for one in made]).tolist() == tokens
    assert "".join(one.text for one in made) == "the lazy " and made[-1].ended == "stop"
