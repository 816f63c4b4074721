"""The runner: every example is run once with its context; answers are written as they arrive; unreadable examples are
counted.

A stand-in for the model recognises each text by its tokens, so its inputs can be inspected; one test at the end uses a
real model.
"""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from famjax.config import ConfigError, EvalConfig
from famjax.data.vocabulary import ByteVocabulary
from famjax.evals import results, run
from famjax.evals.engine import ModelEngine
from famjax.evals.reports import language_report
from famjax.evals.runner import Runner
from famjax.evals.samples import Sample, SampleFile, file_name, read
from famjax.evals.tasks.base import Example, Ratio, Task, Unreadable
from famjax.infer.codec import Codec
from tests import tiny

CODEC = Codec.of(ByteVocabulary())


def tokens(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


class Parrot:
    """Answers with the text between < and >; gives capitals a high probability."""

    def __init__(self, rows: int = 2):
        self.rows, self.was_read, self.asked = rows, [], []

    def read(self, texts, on_tokens):
        for i in reversed(range(len(texts))):
            text = bytes(texts[i].tolist()).decode()
            self.was_read.append(text)
            yield i, text

    def _whole(self, request):
        self.asked.append((request.state or "") + bytes(request.tokens.tolist()).decode())
        return self.asked[-1]

    def score(self, requests, on_tokens):
        for i, request in enumerate(requests):
            text = self._whole(request)[-len(request.tokens) :][int(request.state is None) :]
            capital = np.array([letter.isupper() for letter in text])
            yield i, np.where(capital, -1.0, -2.0).astype(np.float32), capital

    def generate(self, requests, max_tokens, stops, on_tokens, finished=None):
        for i, request in enumerate(requests):
            said = self._whole(request).split("<")[1].split(">")[0] * (2 if max_tokens > 3 else 1)
            yield i, tokens(said[:max_tokens]), False


def questions(context: str, *prompts: str, group: str = "g", targets=("yes",)) -> list[Example]:
    return [
        Example(f"{group}-{i}", tokens(prompt), tokens(context), group, targets=targets)
        for i, prompt in enumerate(prompts)
    ]


def generation(examples, **settings) -> Task:
    match = lambda said, targets: float(said in targets)
    return Task("t", "generate", lambda: iter(examples), {"match": match}, max_new_tokens=3, **settings)


def test_a_shared_context_is_read_once_and_every_question_asked_once():
    """Thirty questions about one book and one about another, with few rows; consecutive examples of one group with
    different contexts are prefilled separately."""
    examples = questions("Once <yes>", *(f" q{i}" for i in range(30)))
    examples += questions("Then <no>", " q", group="h") + questions("Or <yes>", " q", group="h2") * 1
    examples += questions("Or <yes>!", " r", group="h2")[:1]
    examples[-1] = Example("last", tokens(" r"), tokens("Or <yes>!"), "h2", targets=("yes",))
    parrot = Parrot()
    samples = list(Runner(parrot, CODEC).run(generation(examples)))
    assert sorted(parrot.was_read) == ["Once <yes>", "Or <yes>", "Or <yes>!", "Then <no>"]
    assert sorted(sample.id for sample in samples) == sorted(example.id for example in examples)
    assert all(sample.values == {"match": float(sample.group != "h")} for sample in samples)
    assert len(parrot.asked) == 33 and len(set(parrot.asked)) == 33
    told = results.summarize(generation(examples), samples, [], 8)
    assert told["tokens_not_read_again"] == 29 * len("Once <yes>")


def test_contexts_are_cut_to_the_limit_and_counted_and_questions_stay_whole():
    """20 tokens with 3 for the answer: the context keeps its beginning, the same for all questions of a group."""
    examples = questions("<yes>" + "x" * 30, " ab", " abcd") + questions("<yes>", "", group="short")
    parrot = Parrot()
    samples = {sample.id: sample for sample in Runner(parrot, CODEC, longest=20).run(generation(examples))}
    assert sorted(parrot.was_read) == ["<yes>", "<yes>" + "x" * 7]
    assert [samples[name].truncated for name in ("g-0", "g-1", "short-0")] == [23, 23, 0]
    assert {text[12:] for text in parrot.asked if len(text) > 5} == {" ab", " abcd"}
    told = results.summarize(generation(examples), list(samples.values()), [], 4)
    assert told["truncated"] == {"examples": 2, "tokens": 46}


def test_a_prompt_beyond_the_limit_keeps_its_end():
    """The question is at the end of a prompt without a context."""
    parrot = Parrot()
    (sample,) = Runner(parrot, CODEC, longest=8).run(generation(questions("", "x" * 30 + " ab<yes>")))
    assert parrot.asked == [" ab<yes>"] and sample.truncated == 30 and sample.values == {"match": 1.0}


def test_a_group_is_cut_at_the_same_place_when_it_is_resumed():
    """Also if its longest question, which leaves the least room for the context, was answered before."""
    examples = questions("<yes>" + "x" * 30, " ab", " abcd")
    whole = {sample.id: sample for sample in Runner(Parrot(), CODEC, longest=20).run(generation(examples))}
    parrot = Parrot()
    assert list(Runner(parrot, CODEC, longest=20).run(generation(examples), {"g-1"})) == [whole["g-0"]]
    assert parrot.was_read == ["<yes>" + "x" * 7] and len(parrot.asked) == 1


def test_a_document_that_is_predicted_is_cut_at_its_end():
    """Its bytes are reduced in proportion."""
    example = Example("d", tokens("a"), scored=tokens("BcDeFgHi"), size=16.0)
    task = Task("t", "score", lambda: [example], by_position=True)
    (sample,) = Runner(Parrot(), CODEC, longest=5, edges=(0, 2, 4, 8)).run(task)
    assert (sample.truncated, sample.tokens) == (4, 1)
    assert sample.sums == {
        "bits": pytest.approx([1 / np.log(2), 3 / np.log(2), 2 / np.log(2)]),
        "correct": [1, 1, 0], "tokens": [1, 2, 1], "sizes": [2, 4, 2],
    }  # fmt: skip
    assert sample.values["next_token_accuracy"] == 0.5
    assert results.summarize(task, [sample], [], 4)["tokens"] == 5


@pytest.mark.parametrize("longest", [9, 10, 11, 12])
def test_an_answer_that_is_scored_is_never_cut(longest):
    """The whole answer counts (its end is wrong) at any limit; the context makes room for it."""
    example = Example("a", tokens(" q"), tokens("abcdef"), scored=tokens("ABc"))
    parrot = Parrot()
    (sample,) = Runner(parrot, CODEC, longest=longest).run(Task("t", "score", lambda: [example]))
    assert sample.values["exact_match"] == 0 and sample.answer == -4
    assert parrot.asked == ["abcdef"[: longest - 5] + " qABc"] and sample.truncated == max(0, 11 - longest)


def test_choices_are_ranked_behind_their_prompt():
    """The most probable choice by sum; all four choices of two questions about one article are scored."""
    choices = tuple(map(tokens, ("ABC", "AbC", "abc", "A")))
    examples = [
        Example(f"{i}", tokens(" q"), tokens("book"), "g", choices=choices, choice_sizes=(3, 3, 3, 1), answer=answer)
        for i, answer in enumerate((3, 0))
    ]
    parrot = Parrot(rows=4)
    samples = list(Runner(parrot, CODEC).run(Task("t", "choose", lambda: examples)))
    assert parrot.was_read == ["book"] and len(parrot.asked) == 8
    assert [sample.answer for sample in samples] == [3, 3]
    assert [sample.values for sample in samples] == [
        {"accuracy": 1, "accuracy_by_byte": 0}, {"accuracy": 0, "accuracy_by_byte": 1},
    ]  # fmt: skip


def test_what_cannot_be_read_is_counted_and_fatal_only_if_nothing_can():
    """A bad line is reported with its place; if all lines are bad, or there is none, that is an error."""
    bad = Unreadable("data.jsonl:7", "this is not JSON")
    found = []
    samples = list(Runner(Parrot(), CODEC).run(generation([bad, *questions("<yes>", "")]), on_bad=found.append))
    assert len(samples) == 1 and found == [bad]
    told = results.summarize(generation([]), samples, found, 4)
    assert told["unreadable"] == {"examples": 1, "first": [{"place": "data.jsonl:7", "reason": "this is not JSON"}]}
    with pytest.raises(ConfigError, match="no example of t could be read; data.jsonl:7: this is not JSON"):
        list(Runner(Parrot(), CODEC).run(generation([bad, bad])))


def test_answers_that_do_not_end_and_empty_ones_are_counted():
    """Endless generation stops at its limit with finish `length`; an empty answer is scored by the metric."""
    samples = list(Runner(Parrot(), CODEC).run(generation(questions("<yes>", "") + questions("<>", "", group="h"))))
    told = results.summarize(generation([]), samples, [], 4)
    assert (told["n"], told["unfinished"], told["empty"]) == (2, 2, 1)
    assert told["metrics"]["match"]["value"] == 0.5


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path):
    """Killed in the middle of a line: complete lines count, the partial one is removed, and only the remaining examples
    are run; the results equal those of an uninterrupted run. Another key runs everything again."""
    examples = questions("<yes>", *(f" {i}" for i in range(9)))
    config, path = EvalConfig(), tmp_path / "out" / "samples.jsonl"
    with SampleFile(path) as file:
        whole = run.answer(Runner(Parrot(), CODEC, "key1"), generation(examples), config, file, [])
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 9
    path.write_bytes(b"".join(lines[:4]) + lines[4][:30])
    parrot = Parrot()
    with SampleFile(path) as file:
        again = run.answer(Runner(parrot, CODEC, "key1"), generation(examples), config, file, [])
    assert len(parrot.asked) == 5 and again == whole
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()][:4] == [
        json.loads(line)["id"] for line in lines[:4]
    ]
    parrot = Parrot()
    with SampleFile(path) as file:
        other = run.answer(Runner(parrot, CODEC, "key2"), generation(examples), config, file, [])
        repeated = run.answer(Runner(Parrot(), CODEC, "key1"), generation(examples), EvalConfig(again=True), file, [])
    assert len(parrot.asked) == 9 and len(other) == len(repeated) == 9
    assert len(list(read(path.parent, "key1"))) == len(list(read(path.parent, "key2"))) == 9


def test_two_evaluations_do_not_write_one_file(tmp_path):
    """A second one would take the line that is being written for the rest of a killed process, and remove it."""
    path = tmp_path / "samples.jsonl"
    with SampleFile(path) as file:
        path.write_bytes(b'{"half": ')
        with pytest.raises(ConfigError, match=f"another process is writing {path}; wait for it"):
            SampleFile(path)
        assert path.read_bytes() == b'{"half": ' and file.path == path
    SampleFile(path).__exit__()
    assert path.read_bytes() == b""


def test_a_damaged_line_is_no_answer(tmp_path):
    """Whatever a line has become, the answers on the others are read."""
    with SampleFile(tmp_path / "samples.jsonl") as file:
        run.answer(Runner(Parrot(), CODEC, "k"), generation(questions("<yes>", " 0")), EvalConfig(), file, [])
    whole = (tmp_path / "samples.jsonl").read_bytes()
    damaged = [b'"k"\xff\n', whole[:-9] + b"\n", b"\0" * 9 + b"\n", b'{"key": "k"}\n', b'"k"' + b"[" * 2**17 + b"\n"]
    (tmp_path / "samples.jsonl").write_bytes(b"".join([*damaged, whole, *damaged]))
    assert [sample.id for sample in read(tmp_path, "k")] == ["g-0"]


def test_a_reused_answer_is_judged_again(tmp_path):
    """A metric may have changed, or depend on examples that have: answers are reused, values are those of the present
    metric, also in the file, from which runs are compared."""
    examples = questions("<yes>", " 0", " 1")
    with SampleFile(tmp_path / "samples.jsonl") as file:
        run.answer(Runner(Parrot(), CODEC, "k"), generation(examples), EvalConfig(), file, [])
        stricter = dataclasses.replace(generation(examples), metrics={"match": lambda said, targets: 0.25})
        parrot = Parrot()
        again = run.answer(Runner(parrot, CODEC, "k"), stricter, EvalConfig(), file, [])
    assert not parrot.asked and [sample.values for sample in again] == [{"match": 0.25}] * 2
    assert list(read(tmp_path, "k")) == again


def test_parts_ask_each_example_once_and_make_one_evaluation(tmp_path):
    """Three processes with one part each, then one without a part, which runs nothing more. A document's questions stay
    in one part; unreadable examples are counted once; with fewer examples, only those are in the results."""
    examples = [Unreadable("x:1", "bad")]
    for number in range(7):
        examples += questions(f"<yes>{number}", *(f" {i}" for i in range(number % 3 + 1)), group=f"g{number}")
    ids, groups, bad = [], [], []
    for part in ("1/3", "2/3", "3/3"):
        config = EvalConfig(part=part)
        with SampleFile(tmp_path / file_name(config.part_of)) as file:
            mine = run.answer(Runner(Parrot(), CODEC, "k"), generation(examples), config, file, bad)
        ids += [sample.id for sample in mine]
        groups.append({sample.group for sample in mine})
    assert sorted(ids) == sorted(example.id for example in examples[1:]) and len(bad) == 1
    assert not groups[0] & groups[1] | groups[1] & groups[2] | groups[0] & groups[2] and all(groups)
    parrot = Parrot()
    with SampleFile(tmp_path / file_name()) as file:
        whole = run.answer(Runner(parrot, CODEC, "k"), generation(examples), EvalConfig(), file, [])
        others: set[str] = set()
        few = run.answer(Runner(parrot, CODEC, "k"), generation(examples[:3]), EvalConfig(), file, [], others=others)
        again = EvalConfig(again=True)
        whole_again = run.answer(Runner(Parrot(), CODEC, "k"), generation(examples), again, file, [], others=others)
    assert sorted(sample.id for sample in whole) == sorted(ids) and not parrot.asked
    assert [sample.id for sample in few] == [example.id for example in examples[1:3]]
    assert others == {sample.id for sample in whole} - {sample.id for sample in few} and len(whole_again) == len(ids)
    for wrong in ("3", "0/3", "4/3", "a/b"):
        with pytest.raises(ConfigError, match="write 1/4 to 4/4"):
            EvalConfig(model_dirs=("m",), part=wrong).validate()


@pytest.mark.parametrize("last", [file_name(), file_name((1, 2))])
def test_the_last_answer_is_in_the_file_that_was_written_last(last, tmp_path):
    """`--again` re-runs a part of a whole evaluation, or the whole after its parts."""
    for path in (file_name(), file_name((1, 2))):
        with SampleFile(tmp_path / path) as file:
            file.add(sample("a", float(path == last)))
        os.utime(tmp_path / path, (9, 9 + (path == last)))
    assert [one.values for one in read(tmp_path)] == [{"match": 1.0}]


def sample(name: str, value: float, group: str = "", **about) -> Sample:
    return Sample("t", name, group or name, "", 100, 0, "", "", [], "", {"match": value}, about)


def test_models_are_compared_on_the_examples_that_both_answered():
    """Differences on the same examples: a constant .25 has a narrow interval although the values vary."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 0.7, 40)
    one = [sample(str(i), value + 0.25) for i, value in enumerate(values)]
    other = [sample(str(i), value) for i, value in enumerate(values)][:30] + [sample("x", 0.0)]
    gap = results.paired(one, other)["match"]
    assert (gap["mean"], gap["low"], gap["high"], gap["n"]) == (*[pytest.approx(0.25)] * 3, 30)


def test_questions_about_one_document_are_drawn_together():
    """Metrics, differences, ratios and metrics of all answers have the same intervals if every document is asked about
    once or, with the same answers, four times."""

    def told(times: int) -> list:
        rng, one, other = np.random.default_rng(0), [], []
        for document in range(30):
            values, nats = rng.uniform(0, 1, 2), rng.uniform(1, 5)
            for i in range(times):
                for found, value in zip((one, other), values, strict=True):
                    made = sample(f"{document}-{i}", value, str(document), words=2.0)
                    found.append(dataclasses.replace(made, answer=-nats))
        mean = lambda targets, answers: {"all": float(np.mean(answers))}
        pairs = lambda answers: [(id, "", answer) for id, answer in answers.items()]
        task = Task(
            "t", "score", list, ratios={"r": Ratio("words", lambda nats: 2 * nats)}, corpus_metrics=(mean,), pairs=pairs
        )
        found = results.summarize(task, one, [], 8)["metrics"] | {"gap": results.paired(one, other)["match"]}
        return [(name, metric["low"], metric["high"], metric["n"] / times) for name, metric in found.items()]

    once, often = told(1), told(4)
    assert {name for name, *_ in once} == {"match", "r", "all", "gap"} and all(low < high for _, low, high, _ in once)
    for (name, *bounds), (_, *others) in zip(once, often, strict=True):
        assert others == pytest.approx(bounds), name


def test_the_worst_answers_are_shown():
    """Three by the first metric, the worst first; answers without a mistake are none of them."""
    values = {"a": 0.5, "b": 0.0, "c": 1.0, "d": 0.9, "e": 0.25}
    assert [one["id"] for one in results.misses([sample(*one) for one in values.items()])] == ["b", "e", "a"]
    assert results.misses([sample("a", 1.0)]) == []


def test_models_are_compared_on_the_examples_that_have_the_metric():
    """A target without text has no bits per byte."""
    without = dataclasses.replace(sample("a", 1.0), values={"exact": 1.0})
    one = [without, *(dataclasses.replace(sample(name, 0.5), values={"exact": 1.0, "bits": 0.5}) for name in "bc")]
    other = [without, *(dataclasses.replace(sample(name, 0.5), values={"exact": 0.0, "bits": 0.25}) for name in "bc")]
    for ordered in (one, one[::-1]):
        found = results.paired(ordered, other)
        assert found["bits"] == {"mean": 0.25, "low": 0.25, "high": 0.25, "n": 2} and found["exact"]["n"] == 3


def test_texts_that_end_at_other_places_are_not_compared(capsys):
    """The same number of tokens is more or less of a text for another tokenizer; complete texts are the same."""

    def read(truncated: int, size: float) -> list[Sample]:
        sums = {"bits": [9.0], "correct": [1.0], "tokens": [8.0], "sizes": [size]}
        return [Sample("t", name, name, "", 1, truncated, "", -1.0, [], "", {}, {}, sums) for name in "ab"]

    first, other = results.by_position([read(5, 8.0), read(5, 30.0)], (0, 16, 32))
    assert other.against_first == {} and {row["less_than_first"] for row in other.rows} == {None}
    assert other.metrics["bits_per_byte"]["value"] == pytest.approx(0.3)
    for truncated, size in ((5, 8.0), (0, 30.0)):
        assert results.by_position([read(truncated, 8.0), read(truncated, size)], (0, 16, 32))[1].against_first
    entry = lambda of: {"text": {"by_position": of.rows, "against_first": of.against_first}}
    language_report.print_table([{"name": "m", "tasks": entry(first)}, {"name": "n", "tasks": entry(other)}])
    assert "n: not compared, since --longest ended the texts at other places" in capsys.readouterr().out


def test_models_are_compared_length_by_length_too():
    """Better at 100 tokens by .5, equal at 2000; a length that only one model has is omitted."""
    make = lambda length, value, n: [sample(f"{length}-{i}", value, length=length) for i in range(n)]
    one, other = make(100, 1.0, 9) + make(2000, 0.5, 9) + make(7, 1.0, 3), make(100, 0.5, 9) + make(2000, 0.5, 8)
    rows = results.paired_by_length(one, other)
    assert [row["length"] for row in rows] == [100, 2000]
    told = [(row["metrics"]["match"]["mean"], row["metrics"]["match"]["n"]) for row in rows]
    assert told == [(0.5, 9), (0.0, 8)]


def test_results_are_told_by_length_depth_and_updates():
    """One row each, in order; updates are block boundaries between needle and answer, in powers of two."""
    samples = [
        sample(f"{length}-{depth}", float(depth > 0), length=length, depth=depth, needle=needle)
        for length in (2000, 100)
        for depth, needle in ((0.0, 0), (1.0, 98))
    ]
    told = results.summarize(generation([]), samples, [], 8)
    assert [row["length"] for row in told["by_length"]] == [100, 2000]
    assert [(row["length"], row["depth"]) for row in told["by_depth"]] == [(100, 0), (100, 1), (2000, 0), (2000, 1)]
    assert [row["metrics"]["match"]["value"] for row in told["by_depth"]] == [0, 1, 0, 1]
    assert [row["updates_from"] for row in told["by_updates"]] == [0, 8]  # 99//8 - 98//8 = 0; 99//8 - 0 = 12
    assert told["by_length"][0]["fam_updates"] == 6


CONFIG = tiny.config(vocab_size=256, block_size=16, memory_segments=1)


def test_a_model_is_asked_as_if_each_example_stood_alone():
    """Scores of choices and of tokens, and greedy answers, after shared contexts equal those of a forward pass over
    each whole text."""
    params = tiny.parameters(CONFIG)
    engine = ModelEngine(tiny.build(CONFIG, params), 2)
    rng = np.random.default_rng(0)
    draw = lambda n: rng.integers(97, 122, n).astype(np.int32)
    long, short = draw(37), draw(5)
    choices = (draw(3), draw(6))
    examples = [
        Example(f"{i}", draw(4), context, str(len(context)), choices=choices, choice_sizes=(3, 6), scored=draw(5))
        for i, context in enumerate((long, long, short))
    ]

    def logprobs(text):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(text)] = text
        hidden, _ = tiny.whole(CONFIG, params, padded, count_B=np.array([len(text)], np.int32))
        return np.asarray(jax.nn.log_softmax(engine.model.logits(hidden[0]), axis=-1))

    def total(example, behind):
        text = np.concatenate([example.context, example.prompt, behind])
        scores = logprobs(text)
        first = len(text) - len(behind)
        return sum(float(scores[t - 1, text[t]]) for t in range(first, len(text)))

    runner = Runner(engine, CODEC, edges=(0, 16, 32, 64))
    by_id = lambda task: {sample.id: sample for sample in runner.run(task)}
    scored = by_id(Task("s", "score", lambda: examples, by_position=True))
    chosen = by_id(Task("c", "choose", lambda: examples))
    made = by_id(generation(examples))
    for example in examples:
        bits = -total(example, example.scored) / np.log(2)
        assert sum(scored[example.id].sums["bits"]) == pytest.approx(bits, rel=1e-4)
        sums = [total(example, choice) for choice in choices]
        assert chosen[example.id].answer == int(np.argmax(sums))
        text = np.concatenate([example.context, example.prompt])
        for _ in range(3):
            text = np.append(text, logprobs(text)[len(text) - 1].argmax())
        assert made[example.id].answer == bytes(text[-3:].tolist()).decode("utf-8", "replace")
