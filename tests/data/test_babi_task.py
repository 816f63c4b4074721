"""Training on bAbI: the curriculum, files that cannot be used, and the commands."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from famjax.cli import plan
from famjax.cli.main import main
from famjax.config import ConfigError
from famjax.config.babi import BabiConfig
from famjax.data.babi_task import make_babi_task, notes
from famjax.evals.yardsticks import yardstick
from tests.data import babi_files
from tests.data.babi_files import BLOCK, BOOK, STORIES, config_of, documents, task_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """See `babi_files.write`."""
    return babi_files.write(tmp_path)


def test_all_turns_of_a_later_stage_fit_into_their_row(folder):
    """Every turn has filler of the same stage: two of the newest one, or, in what is left of a row, of the first."""
    task = task_of(folder, stories=("qa1",), stages=(1, 4), turns=2, newest_share=1.0)
    seen = set()
    for step in range(20):
        batch, progress = task.batch(step, task.start() | {"open_stages": 2})
        assert (batch.count <= batch.tokens.shape[1]).all()
        fillers = [filler for row in progress["documents"] for filler, _ in row]
        assert all(0 <= filler < 5 * BLOCK for filler in fillers)
        seen |= {filler >= 2 * BLOCK for filler in fillers}
    assert seen == {False, True}


def test_batches_depend_on_seed_step_and_open_stages_alone(folder):
    """The same task made twice gives the same batch; another step, seed or stage gives another one."""
    first = task_of(folder, seed=5)
    progress = first.start() | {"open_stages": 2}
    batches = [one.batch(step, progress | {"open_stages": stages})[0] for one, step, stages in (
        (first, 9, 2), (task_of(folder, seed=5), 9, 2), (first, 10, 2), (task_of(folder, seed=6), 9, 2), (first, 9, 1),
    )]  # fmt: skip
    assert all((a == b).all() for a, b in zip(batches[0][:-1], batches[1][:-1], strict=True))
    assert all((batches[0].tokens != other.tokens).any() for other in batches[2:])
    assert json.loads(json.dumps(progress)) == progress, "progress is stored as JSON"


def test_stages_open_by_exact_match_and_bound_the_filler(folder):
    """Filler stays below the open stage's; right answers open the next stage; one wrong token is a miss; a report has
    exact match by file."""
    task = task_of(folder, open_at=0.5)
    progress, longest = task.start(), {}
    for step in range(40):
        stage = progress["open_stages"]
        batch, progress = task.batch(step, progress)
        longest[stage] = max(filler for row in progress["documents"] for filler, _ in row)
        assert longest[stage] < (task.stages[stage - 1] + 1) * BLOCK
        progress = task.observe(progress, batch, np.ones(batch.targets.shape, bool))
    assert progress["open_stages"] == 2 and longest[2] > 2 * BLOCK and progress["documents"] == []
    assert task.report(progress)["exact_match/qa1"] == 1.0 and task.report(progress)["filler_blocks"] == 4
    before = progress["exact_match"]
    batch, progress = task.batch(41, progress)
    wrong = np.ones(batch.targets.shape, bool)
    wrong[:, task._answer_slots - 1] = wrong[:, 0] = False
    count = sum(map(len, progress["documents"]))
    after = task.observe(progress, batch, wrong)
    expected = before
    for row in progress["documents"]:
        for hit in (0.0, *([1.0] * (len(row) - 1))):
            expected += (hit - expected) / 64
    assert count > 3 and after["exact_match"] == pytest.approx(expected)


def test_answers_straddle_block_boundaries_as_often_as_asked(folder):
    """At `straddle_share` 1, answers begin before a block boundary and end after it, unless the row is too short."""
    task = task_of(folder, straddle_share=1.0)
    over = []
    for step in range(10):
        batch, progress = task.batch(step, task.start() | {"open_stages": 2})
        for positions, drawn in zip(batch.positions, progress["documents"], strict=True):
            for n in range(len(drawn)):
                answer = positions[task._answer_slots * n : task._answer_slots * (n + 1)] + 1
                answer = answer[answer > 1]
                over.append(answer[0] // BLOCK != answer[-1] // BLOCK)
    assert np.mean(over) > 0.7


def test_what_cannot_be_used_is_counted(folder):
    """A story without a question, a question of another form and questions that are longer than a row are left out and
    named with their number; the others are drawn."""
    path = folder / "qa1_of-some-kind_train.txt"
    long = "".join(f"{i} Mary moved to the bathroom, again.\n" for i in range(1, 80))
    path.write_text(
        f"1 Mary left.\n{long}80 Where is Mary?\tbathroom\t79\n{STORIES['qa1']}1 Mary left.\n2 How is Mary? \twell\t1\n"
    )
    task = task_of(folder, stories=("qa1",), stages=(1, 200))
    found = notes(task)
    assert found[0].startswith(f"2 places of bAbI's files cannot be read, the first is {path}:1: this story has no que")
    assert found[1] == "1 of 3 questions of qa1 do not fit into a row of 2560 tokens and are left out"
    assert found[2] == "rows of 2560 tokens hold at most 1 blocks of filler; longer stages are left out"
    assert documents(task, 0, 1)


MISTAKES = [
    ({"folder": ""}, "the task 'babi' needs a copy of bAbI"),
    ({"books": ()}, "the task 'babi' has no books; set --gin.BabiConfig.books"),
    ({"stories": ("qa21",)}, "'qa21' is not one of qa1 to qa20"),
    ({"stories": ("qa1", "qa1")}, "must be distinct names"),
    ({"form_weight": 1.5}, "form_weight is 1.5; it must be between 0 and 1"),
    ({"stories": ("qa1", "qa2"), "everyone": True}, "BabiConfig.everyone needs stories ('qa1',), not ('qa1', 'qa2')"),
    ({"stories": ("qa7",)}, "no file matches .*/qa7_*_train.txt"),
    ({"stages": (4, 1)}, "stages (4, 1) must be blocks of filler in ascending order"),
    ({"books": ("{}/no.txt",)}, "{}/no.txt"),
    ({"books": ("{}/latin.txt",)}, "{}/latin.txt: this is not UTF-8"),
    ({"books": ("{}/book.txt", "{}/short.txt")}, "{}/short.txt has 11 tokens, but a document has up to 319 tokens"),
    ({"books": ("{}/cut.txt",)}, "{}/cut.txt: it has Project Gutenberg's *** START line but no *** END"),
    ({"length": 8 * BLOCK}, "sequence length 512 is too short for a bAbI document with 1 blocks of filler; use at le"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_are_named_before_training(folder, changes, message):
    """Settings and files: what is wrong, in one line that names the file."""
    (folder / "latin.txt").write_bytes("Thénardier said so.".encode("latin-1"))
    (folder / "short.txt").write_text("He said so.")
    (folder / "cut.txt").write_text("*** START OF THIS PROJECT GUTENBERG EBOOK NOTHING ***\nHe said so.")
    filled = {name: tuple(str(one).format(folder) for one in value) if name == "books" else value
              for name, value in changes.items()}  # fmt: skip
    parts = [re.escape(part) for part in message.format(folder).split(".*")]
    with pytest.raises(ConfigError, match=".*".join(parts)) as error:
        config = config_of(folder, **filled)
        config.validate()
        make_babi_task(config)
    assert "\n" not in str(error.value)


def test_a_resumed_training_needs_the_same_stories_and_books(folder):
    """Positions in other data mean nothing, so a changed book is refused, as is a progress with more stages."""
    task = task_of(folder)
    progress = task.batch(0, task.start())[1]
    with pytest.raises(ConfigError, match="has opened 9 stages, but .* use its stages"):
        task.batch(1, progress | {"open_stages": 9})
    (folder / "book.txt").write_text(BOOK + BOOK)
    with pytest.raises(ConfigError, match="had other stories or books"):
        task_of(folder).batch(1, progress)


def test_famjax_train_and_data_take_it(folder, capsys):
    """Two steps of a tiny model through the command line: exact match by file is logged; `famjax data` shows rows."""
    words = ["--gin_file", "gin/models/fam_tiny.gin", "--gin_file", "gin/runs/pretrain.gin", "--gin.FAM_LENGTH=2"]
    words += ["--gin.MIXTURE_OR_TASK_NAME='babi'", f"--gin.BabiConfig.folder='{folder}'", "--gin.BLOCK_SIZE=64"]
    words += [f"--gin.BabiConfig.books=('{folder}/book.txt',)", "--gin.BabiConfig.stages=(1,)", "--gin.BATCH_SIZE=1"]
    words += ["--gin.BabiConfig.stories=('qa1', 'qa4')", "--gin.TASK_FEATURE_LENGTHS={'targets': 1536}"]
    words += [f"--gin.MODEL_DIR='{folder}/m'", "--gin.ModelConfig.num_layers=1", "--gin.LOG_PERIOD=1"]
    assert main(["data", *words, "--width", "0"]) == 0
    out = capsys.readouterr().out
    assert "babi: 1 rows of 1536 tokens" in out and "Question: " in out
    assert main(["train", *words, "--gin.TRAIN_STEPS=2", "--gin.DIAGNOSTICS_PERIOD=0"]) == 0
    lines = [json.loads(line) for line in (folder / "m" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and {"loss", "filler_blocks"} <= set(lines[-1])
    assert any(name.startswith("exact_match/qa") for name in lines[-1])


def test_other_verbs_know_the_task(folder):
    """`famjax compare`, whose memories must read the same batches, refuses it; `famjax plan` needs no files of it."""
    config = config_of(folder)
    with pytest.raises(ConfigError, match=r"needs a task that generates its documents \(passkey, mqar.*not 'babi'"):
        yardstick(config)
    words = argparse.Namespace(gin_files=["gin/models/fam_tiny.gin"], gin_search_paths=[])
    bindings = ["MIXTURE_OR_TASK_NAME='babi'", "BabiConfig.stages=(2, 3)", "BabiConfig.folder='no'"]
    planned = plan._config(words, [*bindings, "BabiConfig.books=('no',)"])
    planned.validate()
    assert planned.task == "passkey" and planned.passkey.stages == (2, 3)


def test_settings_of_the_curriculum_are_documented_where_they_are(folder):
    """Each field is in the docstring of its class."""
    for field in dataclasses.fields(BabiConfig):
        assert re.search(rf"\b{field.name}\b", BabiConfig.__doc__), field.name
