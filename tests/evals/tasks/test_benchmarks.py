"""Public benchmarks from generated files in the published formats: values equal those of lm-evaluation-harness's
definitions on the same model, or are counted by hand; malformed rows are counted and named."""

import gzip
import importlib
import json
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.tasks import TaskManager
from rouge_score import rouge_scorer

from famjax.cli.main import main
from famjax.config import ConfigError, EvalConfig
from famjax.data.vocabulary import ByteVocabulary, load_vocabulary
from famjax.evals.harness.model import FamjaxLM
from famjax.evals.runner import Runner
from famjax.evals.tasks import benchmarks, catalog
from famjax.evals.tasks.base import Example, Unreadable
from famjax.infer.codec import Codec
from famjax.storage.checkpoint import save_model
from tests import slow, tiny
from tests.evals.tasks.schemas import write_jsonl
from tests.evals.test_runner import Parrot
from tests.infer.test_chat import CHATML
from tests.pretrained import tokenizers_of_ours

LAMBADA = [
    {"text": 'The quick brown fox jumps over the lazy dog.\n\n"Why?" the dog said to the fox'},
    {"text": "Grüße to the lazy dog and \n the quick fox"},
    {"text": "the end of  the lazy User"},
    {"text": "over the dog"},
]
PIQA = [
    {
        "goal": "How do I wake a lazy dog?",
        "sol1": "Jump over the dog. ",
        "sol2": "Let the quick brown fox jump over it.",
    },
    {"goal": "fox", "sol1": "feed it Grüße", "sol2": "feed it a dog"},
    {"goal": "the end", "sol1": "a", "sol2": "the quick brown fox, why?"},
]
LABELS = (1, 0, 0)
WIKITEXT = """ \n = The Fox = \n \n The fox ( <unk> 's <unk> ) , a quick @-@ brown animal of 1 @,@ 000 N ,
 = = Dogs = = \n \n " Lazy " dogs ' end , by 3 @.@ 5 ° ; why ? \n
 = The Dog = \n \n A dog { lazy } [ brown ] : = = = x !
"""
HARNESS = Path(lm_eval.__file__).parent / "tasks"
BYTES = Codec.of(ByteVocabulary())


def theirs(folder: Path, name: str, rows: list[dict], **changes) -> dict:
    """Returns the harness's definition of a task, on the rows of a file."""
    path = write_jsonl(folder / f"{name}.theirs.jsonl", rows)
    data = {"dataset_path": "json", "dataset_name": None, "test_split": "test", "training_split": None,
            "validation_split": None}  # fmt: skip
    data["dataset_kwargs"] = {"data_files": {"test": path}, "cache_dir": str(folder / "cache")}
    return changes | data


def definition(path: str) -> dict:
    return yaml.safe_load((HARNESS / path).read_text())


def write(folder: Path) -> list[str]:
    """Writes the files in the published formats. Returns the flags that name them."""
    write_jsonl(folder / "lambada_test.jsonl", LAMBADA)
    write_jsonl(folder / "valid.jsonl", PIQA)
    (folder / "valid-labels.lst").write_text("".join(f"{label}\n" for label in LABELS))
    (folder / "wiki.test.tokens").write_text(WIKITEXT)
    files = {"lambada": "lambada_test.jsonl", "piqa": "valid.jsonl", "wikitext": "wiki.test.tokens"}
    return ["--task", ",".join(files), *(f"--data={name}={folder / file}" for name, file in files.items())]


@pytest.mark.parametrize("kind", slow.but(["byte-level", "metaspace"], "metaspace"))
def test_numbers_are_those_of_the_harness(kind, tmp_path):
    """LAMBADA's acc and perplexity, PIQA's acc and acc_norm and WikiText's three metrics equal those of lm-eval's YAML
    files and functions, on the same model with a real tokenizer, also through `famjax eval`."""
    config = tiny.config(vocab_size=400, block_size=32)
    save_model(tmp_path / "m", config, tiny.parameters(config))
    tokenizers_of_ours.write(tmp_path / "m", kind)
    words = ["eval", "--model", str(tmp_path / "m"), *write(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*words, "--gin.BATCH_SIZE=4"]) == 0
    ours = json.loads((tmp_path / "out" / "results.json").read_text())["models"][0]["tasks"]
    theirs_of = importlib.import_module("lm_eval.tasks.wikitext.preprocess_wikitext")
    rows = [row | {"label": label} for row, label in zip(PIQA, LABELS, strict=True)]
    wikitext = {
        "task": "wikitext", "output_type": "loglikelihood_rolling", "doc_to_text": "",
        "doc_to_target": theirs_of.wikitext_detokenizer, "process_results": theirs_of.process_results,
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }  # fmt: skip
    tasks = [
        theirs(tmp_path, "lambada", LAMBADA, **definition("lambada/lambada_openai.yaml")),
        theirs(tmp_path, "piqa", rows, **definition("piqa/piqa.yaml")),
        theirs(tmp_path, "wikitext", [{"page": page} for page in benchmarks.pages(WIKITEXT)], **wikitext),
    ]
    tasks = [{name: value for name, value in one.items() if name != "tag"} for one in tasks]
    found = lm_eval.simple_evaluate(
        FamjaxLM(str(tmp_path / "m"), 4), tasks=tasks, bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )["results"]  # fmt: skip
    compared = {"lambada": ("acc", "perplexity"), "piqa": ("acc", "acc_norm"),
                "wikitext": ("word_perplexity", "byte_perplexity", "bits_per_byte")}  # fmt: skip
    for (name, metrics), own in zip(compared.items(), ("lambada_openai", "piqa", "wikitext"), strict=True):
        assert list(ours[name]["metrics"]) == list(metrics)
        for metric in metrics:
            value = ours[name]["metrics"][metric]
            assert value["value"] == pytest.approx(found[own][f"{metric},none"], rel=1e-5), (name, metric)
            assert value["low"] <= value["value"] <= value["high"]
    assert ours["wikitext"]["n"] == 2 and ours["lambada"]["n"] == 4
    asked = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [one["about"]["name"] for one in asked if one["task"] == "wikitext"] == ["The Fox", "The Dog"]


def test_wikitext_is_split_and_detokenized_as_the_harness_reads_it():
    """Titles begin pages, sections do not; text before the first title is a page of its own; the detokenized text
    equals the harness's; words and bytes are counted on the original page."""
    theirs_of = importlib.import_module("lm_eval.tasks.wikitext.preprocess_wikitext")
    found = benchmarks.pages(WIKITEXT)
    assert [page.splitlines()[0] for page in found] == [" = The Fox = ", " = The Dog = "]
    assert "\n".join([" ", *found]) == WIKITEXT
    for page in [*found, "x ' 's \" a \" ( b ) [ c ] { d } ' e ' = = = = f = = = 7 N 8 @.@ 9 : ; . ! ? , \n g \n"]:
        assert benchmarks.detokenized(page) == theirs_of.wikitext_detokenizer({"page": page})
    assert len(benchmarks.pages(f"the end\n{WIKITEXT}")) == 3
    assert benchmarks.pages("no title\n= = only a section = =\n") == []


def test_a_page_that_is_cut_counts_the_words_that_are_left(tmp_path):
    """Words are scaled by the share of tokens that are left, so perplexities remain per word."""
    (tmp_path / "w").write_text(" = A = \n " + "one two three four " * 20)
    task = catalog.make("wikitext", EvalConfig(data=(f"wikitext={tmp_path / 'w'}",)), BYTES, 64)
    (whole,) = task.examples()
    (cut,) = Runner(Parrot(), BYTES, longest=101).run(task)
    share = 100 / len(whole.scored)
    assert cut.about["words"] == pytest.approx(whole.counts["words"] * share) and cut.truncated


SPOKEN = {"meeting_transcripts": [{"speaker": "A", "content": ""}], "general_query_list": [], "specific_query_list": []}
BAD = [
    ("lambada", ['{"text": "oneword"}\n', '{"txt": 1}\n', *LAMBADA[:1]], {1: "no last word", 2: "it has no text"}),
    ("lambada", ['{"text": "half\n', *LAMBADA[:1]], {1: "not JSON"}),
    ("qmsum", [{"general_query_list": []}, {"meeting_transcripts": [], "general_query_list": []},
               SPOKEN | {"general_query_list": 3}, SPOKEN | {"general_query_list": ["a"]}, SPOKEN],
     {1: "it has no meeting_transcripts", 2: "no transcript", 3: "not a list", 4: "not a list", 5: "no query"}),
    ("piqa", [*PIQA[:1]], {1: "no label"}),
    ("piqa", [PIQA[0] | {"label": -1}, PIQA[0] | {"label": 0}], {1: "neither 0 nor 1"}),
    ("kv_retrieval", [{"ordered_kv_records": [["a", "1"], ["b", "2"]], "key": "a", "value": "2"},
                      {"ordered_kv_records": [["a", "1"], ["a", "1"]], "key": "a", "value": "1"},
                      {"ordered_kv_records": [["a"]], "key": "a", "value": "1"}],
     {1: "not a record", 2: "a key twice", 3: "not a list of pairs"}),
    ("qmsum", [{"meeting_transcripts": [{"speaker": "A", "content": content}], "specific_query_list": [],
                "general_query_list": [{"query": "q", "answer": "a"}]} for content in ("x", None, ["x"])],
     {2: "is not a text", 3: "is not a text"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "bad"), BAD)
def test_rows_that_are_not_as_published_are_counted_and_named(tmp_path, name, rows, bad):
    """Each has file, line and reason; if no row is left, the error is one line before any work."""
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    make = lambda: catalog.make(name, EvalConfig(data=(path,)), BYTES, 64)
    if len(bad) == len(rows):
        with pytest.raises(ConfigError, match=rf"no example of {name} can be read; {path}:1: .*{bad[1]}"):
            make()
        return
    found = list(make().examples())
    assert list(make().bad) == [one for one in found if isinstance(one, Unreadable)]
    assert make().count == len(rows) - len(bad)
    told = [one for one in found if isinstance(one, Unreadable)]
    assert [(one.place, reason in one.reason) for one, reason in zip(told, bad.values(), strict=True)] == [
        (f"{path}:{line}", True) for line in bad
    ]
    assert len(found) == len(rows)


@pytest.mark.parametrize(("data", "answers"), [("", LABELS), ("/*.jsonl", (1, 1, *LABELS)), ("/va*.jsonl", LABELS)])
def test_labels_lie_beside_each_file_of_a_folder_or_glob(tmp_path, data, answers):
    """A folder has the published files of several splits, of which one is read; a glob reads all that it names."""
    write(tmp_path / "piqa")
    write_jsonl(tmp_path / "piqa" / "train.jsonl", PIQA[:2])
    (tmp_path / "piqa" / "train-labels.lst").write_text("1\n1\n")
    (tmp_path / "piqa" / "lambada_test.jsonl").unlink()
    task = catalog.make("piqa", EvalConfig(data=(f"{tmp_path / 'piqa'}{data}",)), BYTES, 64)
    assert [one.answer for one in task.examples()] == list(answers) and not task.bad


def test_labels_that_do_not_belong_and_pages_without_a_title_are_refused(tmp_path):
    """One line, before any work."""
    write(tmp_path)
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(ConfigError, match="has 2 labels, .*valid.jsonl 3 rows; they do not belong together"):
        catalog.make("piqa", EvalConfig(data=(str(tmp_path / "valid.jsonl"),)), BYTES, 64)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="lambada has no example; .*empty.jsonl is empty"):
        catalog.make("lambada", EvalConfig(data=(str(tmp_path / "empty.jsonl"),)), BYTES, 64)
    with pytest.raises(ConfigError, match="it has no page"):
        catalog.make("wikitext", EvalConfig(data=(str(tmp_path / "valid.jsonl"),)), BYTES, 64)
    with pytest.raises(ConfigError, match=r"add --data kv_retrieval=PATH, PATH being 'kv-retrieval-\*_keys"):
        catalog.make("kv_retrieval", EvalConfig(), BYTES, 64)


# --- keys and values ------------------------------------------------------------------------------


def write_kv(folder: Path, keys: int, rows: int) -> str:
    """Writes a file in the format of Lost in the Middle: records in order, with the queried key among them."""
    draw = np.random.default_rng(keys)
    one = lambda: f"{draw.integers(16**8):08x}-{draw.integers(16**4):04x}"
    path = folder / f"kv-retrieval-{keys}_keys.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for _ in range(rows):
            records = [[one(), one()] for _ in range(keys)]
            key, value = records[int(draw.integers(keys))]
            file.write(json.dumps({"ordered_kv_records": records, "key": key, "value": value}) + "\n")
    return str(folder / "kv-retrieval-*_keys.jsonl.gz")


@pytest.mark.parametrize("kind", ["bytes", "byte-level", "metaspace"])
def test_the_gold_record_is_moved_and_its_place_known(tmp_path, kind):
    """Rows cycle through the depths, over the first N rows of each file; the context is the published JSON of all
    records, with the queried one at its position; `needles` begin at its tokens."""
    path = write_kv(tmp_path, 5, 8)
    write_kv(tmp_path, 9, 3)
    codec = BYTES if kind == "bytes" else Codec.of(load_vocabulary(str(tokenizers_of_ours.write(tmp_path / "t", kind))))
    config = EvalConfig(data=(path,), examples=6, depths=(0.0, 0.5, 1.0))
    examples = list(catalog.make("kv_retrieval", config, codec, 64).examples())
    places = [(example.about["source"], example.about["position"]) for example in examples]
    assert places == [("5 keys", i) for i in (0, 2, 4) * 2] + [("9 keys", i) for i in (0, 4, 8)]
    packed = (tmp_path / "kv-retrieval-5_keys.jsonl.gz").read_bytes()
    originals = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    for example, row in zip(examples[:6], originals, strict=False):
        context, prompt = (codec.vocabulary.decode(part) for part in (example.context, example.prompt))
        data = json.loads(context[context.index("{") :])
        others = [key for key in data if key != row["key"]]
        assert data == dict(row["ordered_kv_records"])
        assert others == [key for key, _ in row["ordered_kv_records"] if key != row["key"]]
        assert list(data).index(row["key"]) == example.about["position"] and example.targets == (row["value"],)
        assert f'"{row["key"]}"' in prompt
        record = f'"{row["key"]}": "{row["value"]}"'
        inside = codec.vocabulary.decode(example.context[example.needles[0][0] :])
        assert inside.lstrip(" {").startswith(record)
        assert record in codec.vocabulary.decode(example.context[: example.about["needle"] + 2])


def test_a_folder_of_keys_and_values_is_read_file_by_file(tmp_path):
    """As their glob is: the number of examples is one of each file, not of all files together."""
    glob = write_kv(tmp_path, 5, 3)
    write_kv(tmp_path, 9, 3)
    tasks = [catalog.make("kv_retrieval", EvalConfig(data=(path,), examples=2), BYTES, 64)
             for path in (glob, str(tmp_path))]  # fmt: skip
    of_glob, of_folder = ([(one.id, one.about["source"]) for one in task.examples()] for task in tasks)
    assert of_folder == of_glob == [(f"{i:06d}", f"{keys} keys") for i, keys in enumerate((5, 5, 9, 9))]
    assert [task.count for task in tasks] == [4, 4]


def test_an_answer_that_has_the_value_anywhere_is_right(tmp_path):
    """Case-insensitive substring accuracy, by part, position and reach."""
    metric = catalog.make("kv_retrieval", EvalConfig(data=(write_kv(tmp_path, 5, 2),)), BYTES, 64).metrics["accuracy"]
    assert metric('\nIt is "ABC-1".', ["abc-1"]) == 1 and metric("abc-", ["abc-1"]) == 0


# --- meetings -------------------------------------------------------------------------------------

SAID = {"query": "What did A say?", "answer": "A wanted a dog.", "relevant_text_span": [["0", "0"]]}
MEETING = {
    "topic_list": [], "general_query_list": [{"query": "Summarize the meeting.", "answer": "They agreed on a fox."}],
    "specific_query_list": [SAID],
    "meeting_transcripts": [{"speaker": "A", "content": "A dog <yes>, please."}, {"speaker": "B", "content": "A fox."}],
}  # fmt: skip


def test_line_ends_of_wikitext_are_not_scored(tmp_path):
    """Pages and counts are the same with the line ends of other systems."""
    found = []
    for name, end in (("a", "\n"), ("b", "\r\n")):
        (tmp_path / name).write_bytes(WIKITEXT.replace("\n", end).encode())
        found.append(list(benchmarks._pages(str(tmp_path / name))))
    assert found[0] == found[1] and len(found[0]) == 2


def test_qmsum_reads_a_meeting_once_and_scores_by_rouge(tmp_path):
    """Both kinds of queries follow the meeting's transcript; ROUGE-L equals the library's with its stemmer."""
    path = write_jsonl(tmp_path / "test.jsonl", [MEETING, MEETING | {"general_query_list": []}])
    task = catalog.make("qmsum", EvalConfig(data=(path,), max_new_tokens=3), BYTES, 64)
    parrot = Parrot()
    samples = sorted(Runner(parrot, BYTES).run(task), key=lambda sample: sample.id)
    assert parrot.was_read == ["A: A dog <yes>, please.\nB: A fox."]
    assert [(one.about["source"], one.targets[0]) for one in samples] == [
        ("general", "They agreed on a fox."), ("specific", "A wanted a dog."), ("specific", "A wanted a dog."),
    ]  # fmt: skip
    assert all(asked.endswith("\nAnswer:") for asked in parrot.asked)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    said = "They want dogs"
    for sample in samples:
        expected = scorer.score(sample.targets[0], said)["rougeL"].fmeasure
        assert task.metrics["rouge_l"](said, sample.targets) == expected


def test_instructions_take_the_chat_template(tmp_path):
    """With a chat template, a key-value question is one message."""
    tokenizers_of_ours.write(tmp_path, "byte-level")
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    example = next(iter(catalog.make("kv_retrieval", EvalConfig(data=(write_kv(tmp_path, 5, 1),)), Codec(tmp_path, 400),
                                     64).examples()))  # fmt: skip
    assert isinstance(example, Example)
    vocabulary = load_vocabulary(str(tmp_path))
    assert vocabulary.decode(example.context).startswith("<s>user\nFind")
    assert vocabulary.decode(example.prompt).endswith("value:</s>\n<s>assistant\n")
