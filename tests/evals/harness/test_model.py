"""famjax under lm-evaluation-harness: results equal those of the harness's class for transformers."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.pretrained import tokenizers_of_ours

BLOCK, SEGMENTS = 32, 7  # a window of 256 tokens covers every text here
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "why", "User", "end", "Grüße"]


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


def task(folder: Path, name: str, rows: list[dict], **settings) -> dict:
    """Returns a harness task on the rows of a file."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": name, "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder / "cache")},
        "metadata": {"version": 1}, **settings,
    }  # fmt: skip


def tasks(folder: Path) -> list[dict]:
    """Returns one task of each kind: questions with answers of different lengths, some after the same story; texts;
    prompts with stop texts that occur, do not occur, and span several tokens."""
    rng = np.random.default_rng(0)
    stories = [sentence(rng, n) + ".\n\n" for n in (40, 3)] + [""]
    questions = [
        {
            "q": f"{stories[i % 3]}User: {sentence(rng, 4)} why?",
            "a": [" " + sentence(rng, n) for n in (1, 2, 5)],
            "y": i % 3,
        }
        for i in range(9)
    ]
    texts = [{"text": sentence(rng, n)} for n in (60, 1, 17)]
    return [
        task(folder, "choice", questions, output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="a",
             doc_to_target="y", metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}]),
        task(folder, "rolling", texts, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="text",
             metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]),
        task(folder, "answer", questions, output_type="generate_until", doc_to_text="{{q}}", doc_to_target="{{a[0]}}",
             generation_kwargs={"until": ["e f", "z", "\n"], "max_gen_toks": 24},
             metric_list=[{"metric": "exact_match"}]),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns a tiny Llama of transformers with a tokenizer, and its import by import-hf."""
    import torch
    import transformers

    from famjax.cli.main import main

    theirs = tokenizers_of_ours.write(tmp_path_factory.mktemp("theirs"), "byte-level")
    ours = tmp_path_factory.mktemp("ours") / "model"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=330, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.4)
    model.save_pretrained(theirs)
    sizes = ["--block-size", str(BLOCK), "--memory-segments", str(SEGMENTS), "--fam-length", "0"]
    assert main(["import-hf", str(theirs), str(ours), *sizes]) == 0
    return theirs, ours


def test_results_are_those_of_the_harness_own_class(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Multiple choice, rolling perplexity and generation on local files: equal accuracies, identical answers,
    perplexities and log probabilities equal up to float32 rounding, and nothing counts as truncated."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from famjax.evals.harness.model import FamjaxLM

    theirs, ours = folders
    some = tasks(tmp_path)
    manager = TaskManager(include_defaults=False)
    evaluate = lambda model: lm_eval.simple_evaluate(model, tasks=some, bootstrap_iters=0, task_manager=manager)
    reference = evaluate(HFLM(pretrained=str(theirs), dtype="float32", batch_size=2, device="cpu"))
    result = evaluate(FamjaxLM(str(ours), batch_size=3))
    assert result["results"].keys() == {"choice", "rolling", "answer"}
    for name, wanted in reference["results"].items():
        for metric, value in wanted.items():
            rounded = name == "rolling" and isinstance(value, float)
            assert result["results"][name][metric] == (pytest.approx(value, rel=1e-5) if rounded else value)
    samples = lambda results, name: sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    for name in reference["results"]:
        for one, other in zip(samples(result, name), samples(reference, name), strict=True):
            if name == "answer":
                assert one["resps"] == other["resps"]
                continue
            numbers = lambda sample: np.array([np.ravel(np.asarray(r[0], object))[0] for r in sample["resps"]], float)
            np.testing.assert_allclose(numbers(one), numbers(other), rtol=1e-5)
            if name == "choice":
                assert [r[0][1] for r in one["resps"]] == [r[0][1] for r in other["resps"]]
    lengths = [len(sample["resps"][0][0]) for sample in samples(result, "answer")]
    assert len(set(lengths)) > 1  # stops came at different places
    assert result["config"]["famjax_truncated"] == 0 and result["config"]["famjax_longer_than_window"] == 0


CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}"
    "{% endif %}\n[{{ message['role'] }}] {{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_conversations_are_written_as_transformers_writes_them(add_generation_prompt: bool, tmp_path: Path) -> None:
    """The template of a model directory, with its special tokens and trimmed blocks; a prefilled answer ends where it
    ends. Templates in a file of their own or among several are found; a template's own error is reported."""
    import transformers

    from famjax.config import ConfigError
    from famjax.data.chat_template import chat_template

    folder = tokenizers_of_ours.write(tmp_path / "m", "byte-level")
    assert chat_template(folder) is None
    (folder / "chat_template.jinja").write_text(CHAT)
    messages = [
        {"role": "system", "content": " Be brief.  "}, {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "the fox"},
    ]  # fmt: skip
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )  # fmt: skip
    assert chat_template(folder).render(messages, add_generation_prompt) == wanted
    with pytest.raises(ConfigError, match="no tools"):
        chat_template(folder).render([{"role": "tool", "content": "x"}])
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "x"}, {"name": "rag", "template": CHAT}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat_template(folder, "rag").render(messages, add_generation_prompt) == wanted
    assert chat_template(folder).render(messages) == "x"
    with pytest.raises(ConfigError, match="it has default, rag"):
        chat_template(folder, "chat")


@pytest.mark.slow
def test_the_lists_name_tasks_that_the_harness_has() -> None:
    """Every name of paper-gpt3 and of long is a task or a group of the pinned lm-eval."""
    from lm_eval.tasks import TaskManager

    from famjax.evals.harness.tasks import LISTS, expand

    known = set(TaskManager().all_tasks)
    for name, tasks in LISTS.items():
        assert set(tasks) <= known and expand(name) == list(tasks)
    assert expand("wikitext, paper-gpt3-generated,wikitext") == ["wikitext", *LISTS["paper-gpt3-generated"]]


@pytest.mark.slow
def test_the_command(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`famjax eval --lm-eval` on a user-defined task: table, results and samples; a cache answers the second run; the
    harness's own command line knows famjax. An unknown task is a one-line error."""
    import subprocess
    import sys

    import yaml

    from famjax.cli.main import main

    _, ours = folders
    (tmp_path / "mine").mkdir()
    choice = tasks(tmp_path)[0]
    (tmp_path / "mine" / "choice.yaml").write_text(yaml.safe_dump(choice))
    words = [
        "eval",
        "--model",
        str(ours),
        "--lm-eval",
        "choice",
        "--include-path",
        str(tmp_path / "mine"),
        "--limit",
        "5",
    ]
    words += ["--output", str(tmp_path / "out"), "--cache", str(tmp_path / "answers")]
    found = []
    for _ in range(2):
        assert main(words) == 0
        found.append(json.loads((tmp_path / "out/lm_eval.json").read_text())[str(ours)])
    assert found[0]["results"] == found[1]["results"] and found[0]["n-samples"]["choice"]["effective"] == 5
    assert len((tmp_path / "out/lm_eval_samples_choice.jsonl").read_text().splitlines()) == 5
    ours_told = json.loads((tmp_path / "out/results.json").read_text())["models"][0]["tasks"]["lm-eval:choice"]
    assert ours_told["metrics"]["acc"]["value"] == found[0]["results"]["choice"]["acc,none"]
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == 5  # once, after two evaluations
    assert "lm-eval:choice" in (tmp_path / "out/report.html").read_text()
    assert main(["eval", "--compare", str(tmp_path / "out"), str(tmp_path / "out")]) == 0
    caches = set(tmp_path.glob("answers*"))
    assert main([*words, "--block-size", "4", "--output", str(tmp_path / "other")]) == 0
    assert len(set(tmp_path.glob("answers*")) - caches) == len(caches)  # answers of other settings are not used
    capsys.readouterr()
    assert main([*words[:3], "--lm-eval", "hellaswagg"]) == 2
    assert "did you mean" in (error := capsys.readouterr().err) and error.count("\n") == 1
    plain = [sys.executable, "-m", "famjax.evals.harness", "--model", "famjax", "--model_args", f"path={ours}"]
    plain += ["--batch_size", "4", "--tasks", "choice", "--include_path", str(tmp_path / "mine"), "--limit", "5"]
    done = subprocess.run(plain, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    acc = found[0]["results"]["choice"]["acc,none"]
    assert f"|{acc:g}|" in done.stdout.replace(" ", "")


def test_a_task_that_samples_without_a_temperature_samples() -> None:
    """`do_sample: true` alone has temperature 1 in transformers; without it decoding is greedy."""
    from lm_eval.models.utils import normalize_gen_kwargs

    from famjax.evals.harness.model import _sampling

    def temperature(**asked: object) -> float:
        settings = {**normalize_gen_kwargs(asked)}
        return _sampling(
            {name: settings[name] for name in settings if name not in ("until", "max_gen_toks")}
        ).temperature

    assert temperature(do_sample=True) == 1.0 and temperature(do_sample=True, temperature=0.3) == 0.3
    assert temperature() == temperature(do_sample=False) == temperature(do_sample=False, temperature=0.3) == 0.0


def test_lists_expand_without_the_harness() -> None:
    """`paper-gpt3` has the paper's 24 tasks, ranked and generated."""
    from famjax.evals.harness.tasks import GENERATED, RANKED, expand

    assert expand("paper-gpt3") == [*RANKED, *GENERATED] and len(set(RANKED + GENERATED)) == 24
