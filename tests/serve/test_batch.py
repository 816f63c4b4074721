"""What a device call adds to the answer of a row."""

import numpy as np
import pytest

from famjax.data.vocabulary import ByteVocabulary
from famjax.infer.codec import Codec
from famjax.infer.rows import Scored
from famjax.infer.session import start
from famjax.serve import batch as batches
from famjax.serve.batch import Batch, Row
from famjax.serve.jobs import Ask, Job
from tests import tiny
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


def test_a_row_has_as_many_alternatives_as_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every call, whatever other rows ask for: a response joins the scores of all calls."""

    def decode_rows(graphdef, params, session, limit, before, stops, sampling, room, top):
        best = np.broadcast_to(np.arange(top, dtype=np.int32), (len(limit), room, top))
        scores = Scored(np.zeros((len(limit), room), np.float32), best, best.astype(np.float32))
        return np.zeros((len(limit), room), np.int32), scores, limit, np.zeros(len(limit), bool), session

    monkeypatch.setattr(batches, "decode_rows", decode_rows)
    config = tiny.config(vocab_size=256, block_size=8)
    model = tiny.build(config, tiny.parameters(config))
    batch, session, found = Batch(model, 2), start(model), []
    codec = Codec.of(ByteVocabulary())
    for top in (3, 20):
        job = Job(Ask(np.zeros(1, np.int32), max_tokens=9, top=top), lambda event: None)
        batch.join(Row(job, 0, codec.stream(())), session)
        found += [(row.job.ask.top, made.scores.best) for row, made in batch.decode(2)]
    assert [(top, best.tolist()) for top, best in found] == [(top, [list(range(top))] * 2) for top in (3, 3, 20)]
