"""FAM replaced: the continuation equals that of the paper's equations with the same FAM."""

import numpy as np
import pytest

from famjax.config import EvalConfig
from famjax.data.passkey_text import Writer
from famjax.data.vocabulary import ByteVocabulary
from famjax.evals.inspect import recall
from famjax.evals.inspect.knockout import Case, knock_out
from famjax.evals.samples import Sample, updates
from famjax.evals.tasks import passkey
from famjax.infer.codec import Codec
from famjax.infer.prefill import prefill
from famjax.infer.session import start
from tests import reference, tiny
from tests.tiny import assert_close

CONFIG = tiny.config(memory_segments=0)
S = CONFIG.memory.block_size


def logprobs(params: dict, rest: np.ndarray, fam: np.ndarray) -> np.ndarray:
    """Returns the reference's log probabilities of rest[1:], if only this FAM [L, F, D] is known of the text before."""
    hidden = reference.run(CONFIG, params, rest, fam[:, None]).hidden_TD
    scores = reference.logits(CONFIG, params, hidden)
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    return scores[np.arange(len(rest) - 1), rest[1:]]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_text_goes_on_as_with_the_fam_that_it_is_given(seed: int) -> None:
    """Without memory segments, the text after a boundary depends on FAM alone: kept, it is the whole document's;
    swapped, that of a document which begins with the other's FAM; fresh and zero likewise. All differ."""
    params = tiny.parameters(CONFIG, seed)
    model = tiny.build(CONFIG, params)
    one, other = tiny.tokens(CONFIG, 2, 3 * S + 7, seed)
    edge = 3 * S
    sessions = [prefill(model, start(model), [[tokens[: edge + 1]]]) for tokens in (one, other)]
    (found,) = knock_out(model, [Case(sessions[0], one[edge + 1 :], sessions[1])])
    fams = [reference.run(CONFIG, params, tokens[:edge]).fam_LPFD[:, 0] for tokens in (one, other)]
    learned = np.stack(reference.learned_fam(CONFIG, reference.as_float64(params), 0))
    wanted = {"kept": fams[0], "swapped": fams[1], "fresh": learned, "zero": np.zeros_like(learned)}
    assert found.keys() == wanted.keys()
    for name, fam in wanted.items():
        assert_close(found[name][0], logprobs(params, one[edge:], fam))
        assert name == "kept" or np.abs(found[name][0] - found["kept"][0]).max() > 1e-3


def test_a_memory_that_is_not_used_can_be_taken_away() -> None:
    """If the attention output is multiplied by 0, FAM changes from block to block but reaches no token: every
    replacement gives identical values."""
    params = tiny.parameters(CONFIG)
    params["layers"]["attention"]["output"] = 0 * params["layers"]["attention"]["output"]
    model = tiny.build(CONFIG, params)
    tokens = tiny.tokens(CONFIG, 1, 6 * S)[0]
    edges = recall.edges_of(len(tokens), S, 3)
    assert edges == [S, 3 * S, 5 * S]
    sessions = recall.sessions_at(model, tokens, edges)
    found = recall.text_knock_out(model, tokens, edges, sessions, 8, sessions[0])
    for name, one in found.items():
        assert one["rest"] == found["kept"]["rest"], name
        assert one["rest_moves"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 3}
    assert all(row["gain"]["mean"] == 0 for row in recall.text_recall(model, tokens, edges, sessions, 8))


def test_edges_have_a_block_on_both_sides() -> None:
    assert recall.edges_of(3 * S, S, 8) == [S, 2 * S]
    assert recall.edges_of(2 * S - 1, S, 8) == []
    assert recall.edges_of(100 * S, S, 3) == [S, 50 * S, 99 * S]


def test_intervals_hold_the_mean_and_shrink_to_it() -> None:
    """Equal values have an interval of width 0, one value has none; the mean of others lies within its interval."""
    assert recall.interval([0.5] * 9) == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 9}
    assert recall.interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    wide = recall.interval([0.0, 1.0, 2.0, 3.0])
    assert wide["low"] < wide["mean"] == 1.5 < wide["high"]


@pytest.mark.parametrize("block", [4, 7, 64])
def test_updates_are_those_of_an_evaluation(block: int) -> None:
    """Also if the key itself is read in two blocks: the update after its last token is the first that can hold it."""
    codec, config = Codec.of(ByteVocabulary()), EvalConfig(filler_blocks=(1, 3), keys=2)
    asked = list(passkey.task("passkey", config, codec, block).examples())
    writer = Writer(codec.vocabulary)
    documents = [one for blocks in (1, 3) for one in passkey.documents(blocks, block, config, writer)]
    for document, example in zip(documents, asked, strict=True):
        sample = Sample("", "", "", "", example.tokens, 0, "", "", [], "", {}, dict(example.about))
        assert recall.updates_of(document, block) == updates(sample, block)
    assert any(np.ptp(document.mention // block) for document in documents) == (block < 64)
