"""Synthetic tasks of labelled documents, against slow definitions: a dictionary of pairs, permutations done by hand.

The documents of multi-query associative recall have tests of their own (`test_mqar.py`).
"""

import dataclasses
import sys

import numpy as np
import pytest

from famjax.config import ConfigError, ModelConfig, MqarConfig, TrackingConfig, TrainConfig
from famjax.config.memory import MemoryConfig
from famjax.data.batch import Batch
from famjax.data.documents import LABELLED, labelled_documents
from famjax.data.labelled import Labelled, LabelledTask
from famjax.data.mqar import Mqar
from famjax.data.symbols import SYMBOLS_JSON, SymbolVocabulary
from famjax.data.tracking import Tracking
from famjax.data.vocabulary import load_vocabulary
from tests.data.test_mqar import S, drawn, names, recalled


def carried(words: list[str]) -> list[str]:
    """States after each element, by moving things: an element 231 sends what is in place 1 to place 2, and so on."""
    places = list(range(len(words[0])))
    states = []
    for word in words:
        places = [int(word[place]) - 1 for place in places]
        states.append("=" + "".join(str(place + 1) for place in places))
    return states


@pytest.mark.parametrize("name", ["parity", "s3", "s5"])
@pytest.mark.parametrize("elements", ["generators", "all"])
def test_states_are_products_done_by_hand(name: str, elements: str) -> None:
    """The label after each token is the product so far; bins are blocks; two elements reach all states."""
    task = Tracking(name, TrackingConfig(elements=elements))
    seen = set()
    for document in drawn(task, 40 * S):
        states = names(task, document.labels)
        assert states == carried(names(task, document.tokens))
        assert document.bins[0].tolist() == [at // S for at in range(40 * S)]
        seen |= set(states)
    assert len(seen) == {"parity": 2, "s3": 6, "s5": 120}[name] == round(1 / task.chance)


def test_parity_is_the_sum_of_bits() -> None:
    """`21` is a change, `=21` an odd number of them."""
    task = Tracking("parity", TrackingConfig())
    (document,) = drawn(task, count=1)
    bits = [int(word == "21") for word in names(task, document.tokens)]
    states = [int(word == "=21") for word in names(task, document.labels)]
    assert states == [sum(bits[: i + 1]) % 2 for i in range(len(bits))]


@pytest.mark.parametrize("name", LABELLED)
def test_a_document_depends_on_its_seed_alone(name: str) -> None:
    """Two tasks with the same settings draw the same documents; another seed draws others."""
    one, other = (labelled_documents(name, MqarConfig(), TrackingConfig()) for _ in range(2))
    assert one is not None and other is not None and one == other
    for ours, theirs in zip(drawn(one), drawn(other), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert len({document.tokens.tobytes() for document in drawn(one)}) > 15


def everywhere(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Targets and weights [B, T], also if the batch has them for some positions alone."""
    if batch.positions is None:
        return batch.targets, batch.weights
    targets, weights = np.zeros(batch.tokens.shape, np.int32), np.zeros(batch.tokens.shape, np.float32)
    for i, at in enumerate(batch.positions):
        assert len(set(at.tolist())) == len(at)
        targets[i, at], weights[i, at] = batch.targets[i], batch.weights[i]
    return targets, weights


def task_of(documents: Labelled, blocks: int = 6, seed: int = 1) -> LabelledTask:
    return LabelledTask(documents, blocks * S, S, 4, documents.vocabulary.size, seed)


@pytest.mark.parametrize("name", LABELLED)
def test_rows_hold_whole_documents_and_a_batch_depends_on_seed_and_step(name: str) -> None:
    """Documents start at blocks; tokens and weighted targets of each are those of the slow definition; the rest of a
    row is padding."""
    settings = MqarConfig(blocks=(2, 4), pairs=(1, 2), keys=5, values=5, times=2), TrackingConfig(blocks=(2, 4))
    documents = labelled_documents(name, *settings)
    assert documents is not None
    task = task_of(documents, blocks=7)
    batch, progress = task.batch(5, task.start())
    lengths = set()
    targets_of_rows, weights_of_rows = everywhere(batch)
    for tokens, count, starts, targets, weights in zip(
        batch.tokens, batch.count, batch.starts, targets_of_rows, weights_of_rows, strict=True
    ):
        edges = [*np.flatnonzero(starts) * S, int(count)]
        assert edges[0] == 0 and count in (4 * S, 6 * S)
        assert not weights[count:].any() and not tokens[count:].any()
        for begin, end in zip(edges, edges[1:], strict=False):
            lengths.add(end - begin)
            words = names(documents, tokens[begin:end])
            scored = np.flatnonzero(weights[begin:end])
            said = names(documents, targets[begin:end][scored])
            if name == "mqar":
                assert dict(zip(scored.tolist(), said, strict=True)) == {
                    at: v for at, (v, _) in recalled(words).items()
                }
            else:
                assert said == carried(words) and len(scored) == end - begin
    assert lengths == {2 * S, 4 * S} and set(np.unique(batch.weights)) == {0.0, 1.0}
    assert (batch.positions is None) == (name != "mqar") and batch.kept is None and progress == {}
    again, _ = task.batch(5, {"anything": 1})
    np.testing.assert_array_equal(batch.tokens, again.tokens)
    for changed in (dataclasses.replace(task, seed=2).batch(5, {})[0], task.batch(6, {})[0]):
        assert (changed.tokens != batch.tokens).any()


def training(**changes: object) -> TrainConfig:
    model = ModelConfig(vocab_size=128, num_layers=1, d_model=8, d_ff=8, num_heads=1, num_kv_heads=1, head_dim=8,
                        memory=MemoryConfig(block_size=S, fam_length=2))  # fmt: skip
    return TrainConfig(**{"model_dir": "x", "model": model, "task": "mqar", "sequence_length": 4 * S} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mqar": MqarConfig(pairs=(8, 4))}, "must be numbers of pairs in ascending order"),
        ({"mqar": MqarConfig(pairs=())}, "must be numbers of pairs in ascending order"),
        ({"mqar": MqarConfig(blocks=(0, 1))}, "must be document lengths in ascending order"),
        ({"mqar": MqarConfig(keys=4, pairs=(2, 5))}, "5 pairs need as many distinct keys and values"),
        ({"mqar": MqarConfig(power=0.0)}, "power is 0.0; it must be above 0"),
        ({"mqar": MqarConfig(fillers=0)}, "MqarConfig.fillers is 0; it must be at least 1"),
        ({"mqar": MqarConfig(rewritten=1.5)}, "MqarConfig.rewritten is 1.5; it must be between 0 and 1"),
        ({"mqar": MqarConfig(key_words=("a", "a"), keys=2, pairs=(2,))}, "('a', 'a') must be as many different words"),
        (
            {"mqar": MqarConfig(key_words=("a", "b"), value_words=("b", "c"), keys=2, values=2, pairs=(2,))},
            "['b'] are both in MqarConfig.key_words and value_words",
        ),
        ({"mqar": MqarConfig(sentences=("{key} is.",))}, "'{key} is.' must have {key} and {value} once each"),
        ({"mqar": MqarConfig(spread=-1)}, "MqarConfig.spread is -1; it must be at least 0"),
        ({"mqar": MqarConfig(question="who")}, "'who' must have {key} once"),
        ({"mqar": MqarConfig(ordered=-0.5)}, "MqarConfig.ordered is -0.5; it must be between 0 and 1"),
        ({"mqar": MqarConfig(ordered=0.5, pairs=(1,))}, "ordered changes nothing in lists of one pair; raise pairs"),
        ({"mqar": MqarConfig(rewritten=0.5, values=1, pairs=(1,))}, "rewritten needs a second value; raise"),
        ({"mqar": MqarConfig(times=0)}, "MqarConfig.times is 0; it must be at least 1"),
        (
            {"mqar": MqarConfig(blocks=(2, 4), pairs=(3,), times=2)},
            "3 pairs and their questions take 18 tokens, but a document has 16; use longer documents, or at most 2",
        ),
        (
            {"mqar": MqarConfig(blocks=(1, 4), pairs=(3,))},
            "3 pairs and their questions take 12 tokens, but a document has 8; use longer documents, or at most 2",
        ),
        ({"mqar": MqarConfig(blocks=(8,), pairs=(3,))}, "documents of 8 blocks of 8 tokens, but a row has 32"),
        (
            {"task": "s5", "tracking": TrackingConfig(blocks=(8,))},
            "documents of 8 blocks of 8 tokens, but a row has 32",
        ),
        (
            {"task": "s5", "tracking": TrackingConfig(elements="two")},
            "elements 'two' is neither 'generators' nor 'all'",
        ),
        ({"task": "s7"}, "MIXTURE_OR_TASK_NAME 's7' is not one of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """In one line, before anything is drawn."""
    monkeypatch.delitem(sys.modules, "seqio", raising=False)  # with it, any name may be a task of a gin file's module
    with pytest.raises(ConfigError) as error:
        training(**changes).validate()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_good_settings_and_small_vocabularies() -> None:
    """Pairs that just fit are accepted; a model without the task's tokens is refused."""
    training(mqar=MqarConfig(blocks=(1, 4), pairs=(2,))).validate()
    documents = Mqar("mqar", MqarConfig(keys=5, values=6, fillers=2, pairs=(2,)))
    with pytest.raises(ConfigError, match=r"has 13 tokens, .* --gin.ModelConfig.vocab_size=13"):
        LabelledTask(documents, 4 * S, S, 2, 12, 0)
    with pytest.raises(ConfigError, match="3 pairs and their questions take 12 tokens, but a document has 8"):
        documents.draw(np.random.default_rng(0), S, S, 3)


def test_names_of_tokens_are_a_vocabulary(tmp_path: object) -> None:
    """Names to ids and back; the file of a model directory; unknown names and damaged files are refused."""
    ours = Mqar("mqar", MqarConfig(keys=3, values=2, fillers=1, pairs=(1,))).vocabulary
    assert ours.names == (".0", "k0", "k1", "k2", "v0", "v1")
    assert ours.encode("k1  v0\n.0").tolist() == [2, 4, 0] and ours.decode([2, 4, 0, 9]) == "k1 v0 .0 ?"
    assert ours.certain([2, 4]) == ("k1 v0", True)
    path = tmp_path / SYMBOLS_JSON  # type: ignore[operator]
    path.write_bytes(ours.files[SYMBOLS_JSON])
    found = load_vocabulary(str(tmp_path))
    assert isinstance(found, SymbolVocabulary) and found.names == ours.names
    with pytest.raises(ConfigError, match="'k9' is not a token of this model"):
        ours.encode("k1 k9")
    path.write_text('["a b"]')
    with pytest.raises(ConfigError, match="is not a list of names of tokens"):
        load_vocabulary(str(tmp_path))
