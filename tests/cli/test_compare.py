"""`famjax compare`: equal conditions, one report, resumed where it stopped."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from famjax.cli import compare, compare_runs, side_by_side
from famjax.cli.gin_config import load_train_config
from famjax.cli.main import main, parse
from famjax.evals import memories, memories_page
from famjax.nn.weights import create, parameters
from famjax.train.start import make_task

SHIPPED = sorted(path.stem for path in Path("gin/memories").glob("*.gin"))
SMALL = ["--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=2", "--gin.BLOCK_SIZE=64", "--gin.LOG_PERIOD=1"]


TASKS = [compare_runs.TASK, "gin/experiments/compare_mqar.gin", "gin/experiments/compare_s5.gin"]
MQAR = ["--gin_file", TASKS[1]]


def config_of(memory: str, *bindings: str, task: str = TASKS[0]) -> Any:
    """The settings of a training of the comparison."""
    files = [task, f"gin/memories/{memory}.gin"]
    config, _ = load_train_config(files, (), ["MODEL_DIR='none'", *bindings])
    config.validate()
    return config


def test_a_training_with_other_settings_is_neither_resumed_nor_reported(tmp_path: Path, capfd: Any) -> None:
    """Whether it finished or diverged: its steps, rates and tokens would be those of other settings."""
    job = side_by_side.job("bswa_seed0", [compare_runs.TASK, "gin/memories/bswa.gin"], ["RANDOM_SEED=0"], tmp_path)
    files = [compare_runs.TASK, "gin/memories/bswa.gin"]
    _, text = load_train_config(files, (), [f"MODEL_DIR={job.config.model_dir!r}", "RANDOM_SEED=0"])
    Path(job.config.model_dir).mkdir()
    (Path(job.config.model_dir) / "config.gin").write_text(text)
    (tmp_path / "diverged.json").write_text('{"bswa_seed0": "FloatingPointError: loss nan"}')
    words = ["compare", "--memories", "bswa", "--output", str(tmp_path)]
    for change, differs in (
        (["--gin.LEARNING_RATE=0.5"], "optimizer.learning_rate 0.5, was 0.003"),
        (["--tokens", "36k"], f"steps 10, was {job.config.steps}"),
        (["--gin.OptimizerConfig.weight_decay=0.3", "--gin.LOG_PERIOD=3"], "optimizer.weight_decay 0.3, was 0.01;"),
    ):
        assert main([*words, *change]) == 2
        said = capfd.readouterr().err
        assert f"bswa_seed0 was trained with other settings: {differs}" in said and "use another output" in said
    side_by_side.check_same([job, job._replace(config=dataclasses.replace(job.config, log_period=3, mesh={"data": 1}))])


@pytest.mark.parametrize("task", TASKS)
def test_every_memory_begins_with_the_same_weights_and_reads_the_same_batches(task: str) -> None:
    """All weights but a memory's own are bit for bit equal; a batch does not depend on what was answered before."""
    configs = {name: config_of(name, task=task) for name in SHIPPED}
    first = parameters(create(configs["bswa"].model, 5))
    for config in configs.values():
        params = parameters(create(config.model, 5))
        params.pop("fam", None)
        params.pop("memory", None)
        params["layers"].pop("memory", None)
        jax.tree.map(np.testing.assert_array_equal, params, first)
    batches = []
    for name, right in (("bswa", False), ("fam", True)):
        made = make_task(configs[name], np.arange(configs[name].batch_size))
        progress = made.start()
        for step in range(3):
            batch, progress = made.batch(step, progress)
            progress = made.observe(progress, batch, np.full(batch.targets.shape, right))
        batches.append(batch)
    jax.tree.map(np.testing.assert_array_equal, *batches)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memories", "fam,smal"], "gin/memories/smal.gin"),
        (["--memories", ""], "--memories is empty"),
        (["--memories", "fam,fam"], "fam is there twice"),
        (["--memories", "fam:previous_fams"], "'previous_fams' is not FIELD=VALUE, for example fam:previous_fams=2"),
        (
            ["--memories", "fam:previous_fam=2"],
            "MemoryConfig has no field 'previous_fam'; did you mean 'previous_fams'",
        ),
        (["--memories", "fam:previous_fams=two"], "previous_fams is 'two', not a number, True or False"),
        (["--memories", "fam:fam_position=first"], "fam_position 'first' is not one of last, float, zero"),
        (["--memories", "fam,fam:block_size=32"], "has block_size 32"),
        (["--tokens", "10"], "--tokens 10 is less than a step's 8 rows of 448 tokens; give at least 3584"),
        (["--tokens", "many"], "is not a number of tokens"),
        (["--seeds", "0,0"], "write numbers, each once"),
        (["--at-once", "0"], "--at-once is 0"),
        (["--keys", "0"], "keys is 0"),
        (["--examples", "3"], "--examples is not a setting of this task's evaluation, which has --blocks, --keys"),
        (["--flops", "5"], "--flops 5 is less than a step's"),
        (["--flops", "5t", "--tokens", "1m"], "not allowed with argument"),
        (["--learning-rates", "1e-3,0"], "write positive numbers, each once"),
        (["--part", "3/2"], "--part 3/2 is not I/N"),
        (["--part", "\u00b2/3"], "is not I/N"),
        (["--gin.MODEL_DIR='x'"], "--gin.MODEL_DIR is set for every training by --output; leave it out"),
        (["--gin.RANDOM_SEED=7"], "--gin.RANDOM_SEED is set for every training by --seeds"),
        (["--gin.LEARNING_RATE=0.5", "--learning-rates", "1e-3"], "is set for every training by --learning-rates"),
        (["--gin.TRAIN_STEPS=5", "--flops", "5t"], "--gin.TRAIN_STEPS is set for every training by --flops"),
        (
            ["--gin.OptimizerConfig.learning_rate=0.1", "--learning-rates", "1e-3,1e-2"],
            "--gin.LEARNING_RATE has no effect",
        ),
        (["--learning-rates", "1e-3,1.0000001e-3"], "two trainings would both be"),
        (["--memories", "fam:previous_fams=2:previous_fams=3"], "a field is there twice; name each once"),
        (["--seeds", "5,4294967301"], "RANDOM_SEED is 4294967301; it must be at least 0 and below 2^32"),
        (["--tokens", "1e30"], "it must be below 2^31, since steps are counted in 32 bits"),
        ([*MQAR, "--keys", "2"], "--keys is not a setting of this task's evaluation, which has --blocks, --examples"),
        ([*MQAR, "--blocks", "0"], "--blocks 0 is shorter than any document of the training"),
        ([*MQAR, "--examples", "0"], "examples is 0"),
        ([*MQAR, "--gin.MqarConfig.pairs=(99,)"], "99 pairs need as many distinct keys and values"),
        (
            ["--gin_file", TASKS[2], "--gin.ModelConfig.vocab_size=50"],
            "has 122 tokens, but the model's vocab_size is 50",
        ),
        (["--gin.MIXTURE_OR_TASK_NAME='text'", "--gin.DataConfig.sources=('x',)"], "that generates its documents"),
        (["--output", __file__], "is a file"),
        (["--gin.PassKeyConfig.stages=(1, 2)"], "with one stage and a stream_share of 0"),
        (["--gin.PassKeyConfig.stream_share=1.0"], "with one stage and a stream_share of 0"),
        (["--gin.MemoryConfig.kind='infini'"], "fam_length 8 with kind 'infini'"),
    ],
)
def test_mistakes_are_one_line_before_any_training(tmp_path: Path, words: list[str], said: str, capfd: Any) -> None:
    """Exit code 2, one line, nothing written."""
    assert main(["compare", "--output", str(tmp_path / "out"), *words]) == 2
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FAM_LENGTH = 0\nLEARNING_RATE = 1.0", "wrong.gin changes optimizer, not the memory alone"),
        ("FAM_LENGTH = 0\nModelConfig.num_layers = 4", "wrong.gin changes model, not the memory alone"),
        ("FAM_LENGTH = 0\nBLOCK_SIZE = 32", "wrong.gin has block_size 32, gin/memories/fam.gin 64"),
    ],
)
def test_a_memory_changes_nothing_else(tmp_path: Path, text: str, said: str, capfd: Any) -> None:
    """A gin file of a memory that sets something of the task is refused."""
    wrong = tmp_path / "wrong.gin"
    wrong.write_text(text + "\n")
    assert main(["compare", "--output", str(tmp_path / "out"), "--memories", f"fam,{wrong}"]) == 2
    assert said in capfd.readouterr().err


def test_gin_files_are_searched_here_and_in_the_trainings(tmp_path: Path) -> None:
    """A task's gin file that is found on the search path only: the trainings get the path, too."""
    (tmp_path / "mine.gin").write_text("include 'gin/experiments/compare.gin'\nTRAIN_STEPS = 7\n")
    for one in subjects(tmp_path, "--gin_file", "mine.gin", "--gin_search_paths", str(tmp_path), "--memories", "fam"):
        assert one.job.config.steps == 7
        assert f"--gin_search_paths={tmp_path}" in one.job.command


def subjects(tmp_path: Path, *words: str) -> list[compare_runs.Subject]:
    return compare_runs.subjects_of(parse(compare, ["--output", str(tmp_path), *words]), tmp_path)


def test_what_diverges_is_kept_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A non-finite loss ends one training, not the comparison, and is not tried again; another failure ends it. It is
    tried again once its directory is deleted, as the error of changed settings says."""
    tmp_path.mkdir(exist_ok=True)
    code = {
        "fam": "import os,sys; os.makedirs(%r); sys.exit('famjax train: FloatingPointError: step 3: the loss is nan')",
        "bswa": "import json,os; os.makedirs(%r); open(%r,'w').write(json.dumps({'step': 1500, 'loss': 1.0}))",
        "sinks": "import sys; sys.exit('famjax train: no space left')",
    }
    found = []
    for one in subjects(tmp_path, "--memories", "fam,bswa,sinks"):
        folder = one.job.config.model_dir
        places = {"fam": (folder,), "bswa": (folder, f"{folder}/metrics.jsonl"), "sinks": ()}[one.memory]
        text = code[one.memory] % places
        found.append(one._replace(job=one.job._replace(command=[sys.executable, "-c", text])))
    diverged = compare_runs.train(found[:2], tmp_path, 1)
    assert list(diverged) == ["fam_seed0"] and "the loss is nan" in diverged["fam_seed0"]
    tried: list[list[str]] = []
    monkeypatch.setattr(side_by_side, "train", lambda jobs, at_once: tried.append([job.name for job in jobs]))
    assert compare_runs.train(found[:2], tmp_path, 1) == diverged and tried == [["bswa_seed0"]]
    shutil.rmtree(tmp_path / "fam_seed0")
    assert compare_runs.train(found[:2], tmp_path, 1) == {} and tried[1] == ["fam_seed0", "bswa_seed0"]
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="no space left"):
        compare_runs.train(found[2:], tmp_path, 1)


def test_trainings_side_by_side_keep_all_places_filled(tmp_path: Path) -> None:
    """Of four trainings on two places one diverges. What finished before is not started again, what was stopped by it
    and what waited is."""
    # Once `sinks` runs, `fam` has ended and left its place.
    until = f"import os, sys, time\nwhile not os.path.exists({str(tmp_path / 'sinks')!r}): time.sleep(0.05)\n"
    fails = until + "sys.exit('famjax train: FloatingPointError: the loss is nan')"
    found = []
    for one in subjects(tmp_path, "--memories", "fam,bswa,sinks,infini"):
        folder, ran = Path(one.job.config.model_dir), tmp_path / one.memory
        # Stopped in its first run, it ends in its second.
        first = f"import os, time; begun = os.path.exists({str(ran)!r}); open({str(ran)!r}, 'a').write('x')"
        wait = "time.sleep(0 if begun else 600)" if one.memory == "sinks" else ""
        line = json.dumps({"step": 1500, "loss": 1.0})
        ends = (
            f"os.makedirs({str(folder)!r}, exist_ok=True); open({str(folder / 'metrics.jsonl')!r}, 'w').write({line!r})"
        )
        code = fails if one.memory == "bswa" else f"{first}\n{wait}\n{ends}"
        found.append(one._replace(job=one.job._replace(command=[sys.executable, "-c", code])))
    assert list(compare_runs.train(found, tmp_path, 2)) == ["bswa_seed0"]
    runs = {name: len((tmp_path / name).read_text()) for name in ("fam", "sinks", "infini")}
    assert runs == {"fam": 1, "sinks": 2, "infini": 1}


def test_a_budget_of_flops_gives_a_cheaper_memory_more_steps(tmp_path: Path) -> None:
    """Each training costs at most the budget, and a step more would exceed it; `--tokens` gives all the same steps."""
    found = subjects(tmp_path, "--memories", "fam,bswa", "--flops", "1t", "--seeds", "0,1")
    steps = {}
    for one in found:
        config = one.job.config
        cost = memories.training_flops(config)
        assert cost <= 1e12 < cost * (config.steps + 1) / config.steps
        assert f"--gin.TRAIN_STEPS={config.steps}" in one.job.command
        steps.setdefault(one.memory, set()).add(config.steps)
    assert all(len(one) == 1 for one in steps.values()) and min(steps["bswa"]) > max(steps["fam"])
    assert {one.job.config.steps for one in subjects(tmp_path, "--tokens", "36k")} == {10}


def log(subject: compare_runs.Subject, *losses: float) -> None:
    folder = Path(subject.job.config.model_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": i + 1, "loss": loss}) + "\n" for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_a_variant_is_a_memory_with_other_settings(tmp_path: Path) -> None:
    """Its settings reach the training, whose directory has a plain name; all else is that of the memory."""
    words = "fam,fam:fam_position=zero:previous_fams=2,fam:memory_segments=1:stop_gradient=True"
    plain, *others = subjects(tmp_path, "--memories", words)
    assert [one.memory for one in (plain, *others)] == words.split(",")
    assert Path(others[0].job.config.model_dir).name == "fam_fam_position_zero_previous_fams_2_seed0"
    of = [one.job.config.model.memory for one in (plain, *others)]
    assert of[1] == dataclasses.replace(of[0], fam_position="zero", previous_fams=2)
    assert of[2] == dataclasses.replace(of[0], memory_segments=1, stop_gradient=True)
    assert all("--gin.MemoryConfig.previous_fams=2" in one.job.command for one in others[:1])


def test_each_memory_reports_its_best_learning_rate(tmp_path: Path) -> None:
    """The lowest mean loss over seeds, at the end of the log; a rate with a diverged seed comes last, also if its other
    seed is the best of all."""
    words = ["--memories", "fam,bswa", "--seeds", "0,1", "--learning-rates", "1e-3,3e-3,1e-2"]
    found = subjects(tmp_path, *words)
    assert [one.job.name for one in found[:3]] == ["fam_lr0.001_seed0", "fam_lr0.003_seed0", "fam_lr0.01_seed0"]
    assert {one.job.config.optimizer.learning_rate for one in found} == {1e-3, 3e-3, 1e-2}
    # The first nine losses do not count: the last tenth is one of ten.
    ends = {"fam": {1e-3: (3.0, 1.0), 3e-3: (1.5, 1.6), 1e-2: (0.1, 9.0)},
            "bswa": {1e-3: (1.0, 1.0), 3e-3: (2.0, 1.0), 1e-2: (1.1, 1.0)}}  # fmt: skip
    for one in found:
        log(one, *[0.0] * 9, ends[one.memory][one.rate][one.seed])
    kept, tried = compare_runs.chosen(found, {"fam_lr0.01_seed1": "the loss is nan"})
    assert [one.job.name for one in kept] == [
        "fam_lr0.003_seed0", "bswa_lr0.001_seed0", "fam_lr0.003_seed1", "bswa_lr0.001_seed1"
    ]  # fmt: skip
    assert [(one["rate"], one["loss"], one["best"]) for one in tried["fam"]] == [
        (1e-3, 2.0, False), (3e-3, 1.55, True), (1e-2, None, False)
    ]  # fmt: skip
    assert compare_runs.chosen(subjects(tmp_path, "--memories", "fam"), {})[1] == {"fam": []}
    everywhere = {f"fam_lr{rate}_seed{seed}": "" for rate in (0.001, 0.003, 0.01) for seed in (0, 1)}
    del everywhere["fam_lr0.01_seed1"]  # one seed of one rate is left
    kept, _ = compare_runs.chosen(found, everywhere)
    assert [one.job.name for one in kept if one.memory == "fam"] == ["fam_lr0.01_seed0", "fam_lr0.01_seed1"]


def test_a_part_trains_its_share_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each training belongs to one part; what diverged on another machine is known here; the last part reports."""
    words = ["compare", "--output", str(tmp_path), "--memories", "fam,bswa,sinks", *SMALL]
    trained: list[str] = []

    def pretend(jobs: list[side_by_side.Job], at_once: int) -> None:
        for job in jobs:
            if job.name == "bswa_seed0":
                Path(job.config.model_dir).mkdir()
                job.log.write_text("famjax train: FloatingPointError: the loss is nan\n")
                raise side_by_side.TrainingFailed(job, [])
            trained.append(job.name)
            (Path(job.config.model_dir) / "checkpoints" / str(job.config.steps)).mkdir(parents=True)

    reported: list[dict[str, str]] = []
    monkeypatch.setattr(side_by_side, "train", pretend)
    monkeypatch.setattr(compare, "_report", lambda *args: reported.append(args[-1]) or ("data", "page"))
    assert main([*words, "--part", "2/2"]) == 0
    assert trained == [] and "bswa_seed0" in (tmp_path / "diverged-2-of-2.json").read_text()
    assert "2 of 3 trainings that are not in" in capsys.readouterr().out
    assert main([*words, "--part", "1/2"]) == 0
    assert trained == ["fam_seed0", "sinks_seed0"]
    assert [list(one) for one in reported] == [["bswa_seed0"]] and "wrote data and page" in capsys.readouterr().out


@pytest.mark.slow
def test_from_end_to_end_and_again(tmp_path: Path, capfd: Any) -> None:
    """Four memories train and are evaluated; a second run trains nothing and finds the same."""
    words = ["compare", "--output", str(tmp_path), "--memories", "fam,bswa,sinks,infini", *SMALL]
    words += ["--filler-blocks", "1,4", "--alignments", "4"]
    assert main(words) == 0
    first = json.loads((tmp_path / memories_page.COMPARISON_JSON).read_text())
    assert [one["name"] for one in first["memories"]] == ["fam", "bswa", "sinks", "infini"]
    assert all(len(one["lengths"]) == 2 and one["curves"][0]["points"] for one in first["memories"])
    lines = [(tmp_path / f"{one}_seed0" / "metrics.jsonl").read_text() for one in ("fam", "infini")]
    assert main(words) == 0
    assert json.loads((tmp_path / memories_page.COMPARISON_JSON).read_text()) == first
    assert lines == [(tmp_path / f"{one}_seed0" / "metrics.jsonl").read_text() for one in ("fam", "infini")]
    assert (tmp_path / memories_page.COMPARISON_HTML).is_file()


@pytest.mark.slow
def test_mqar_in_parts_with_two_rates(tmp_path: Path, capfd: Any) -> None:
    """Two parts train two memories at two rates; the second finds all of them and reports the better rates."""
    words = ["compare", "--output", str(tmp_path), "--memories", "fam,bswa", *MQAR, *SMALL, "--examples", "2"]
    words += ["--learning-rates", "1e-3,3e-3", "--blocks", "2,4"]
    assert main([*words, "--part", "1/2"]) == 0
    said = capfd.readouterr().out
    assert "2 of 4 trainings that are not in" in said and "fam_lr0.003_seed0, bswa_lr0.003_seed0" in said
    assert main([*words, "--part", "2/2"]) == 0
    found = json.loads((tmp_path / memories_page.COMPARISON_JSON).read_text())
    assert [row["blocks"] for row in found["memories"][0]["lengths"]] == [2, 4]
    assert all(sum(rate["best"] for rate in one["learning_rates"]) == 1 for one in found["memories"])
    assert [table["label"] for table in found["memories"][1]["tables"]] == ["blocks between pair and question", "pairs"]
