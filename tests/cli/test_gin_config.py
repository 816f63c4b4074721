"""gin files and overrides become configurations; errors in them are reported in one line."""

import dataclasses
import math
import re
import sys
from pathlib import Path

import gin
import pytest

from famjax.cli import gin_config
from famjax.cli.gin_config import CONTRACT_MACROS, load_model_config, load_train_config
from famjax.config import ConfigError, LoraConfig, MemoryConfig, ModelConfig

ROOT = Path(__file__).resolve().parents[2]
FAM, BSWA = "gin/experiments/tiny_fam.gin", "gin/experiments/tiny_bswa.gin"

OVERRIDES = {
    "MODEL_DIR": ("'runs/x'", lambda c: c.model_dir == "runs/x"),
    "INITIAL_CHECKPOINT_PATH": ("'runs/y'", lambda c: c.initial_checkpoint == "runs/y"),
    "MIXTURE_OR_TASK_NAME": ("'passkey'", lambda c: c.task == "passkey"),
    "TASK_FEATURE_LENGTHS": ('{"targets": 640}', lambda c: c.sequence_length == 640),
    "TRAIN_STEPS": ("7", lambda c: c.steps == 7),
    "BATCH_SIZE": ("3", lambda c: c.batch_size == 3),
    "RANDOM_SEED": ("5", lambda c: c.seed == 5),
    "LEARNING_RATE": ("1e-2", lambda c: c.optimizer.learning_rate == 1e-2),
    "MESH": ('{"data": 1, "fsdp": 8, "tensor": 1}', lambda c: c.mesh == {"data": 1, "fsdp": 8, "tensor": 1}),
    "MICROBATCHES": ("2", lambda c: c.microbatches == 2),
    "CHECKPOINT_PERIOD": ("11", lambda c: c.checkpoint_period == 11),
    "CHECKPOINT_MINUTES": ("2.5", lambda c: c.checkpoint_minutes == 2.5),
    "KEEP_CHECKPOINTS": ("4", lambda c: c.keep_checkpoints == 4),
    "EVAL_PERIOD": ("50", lambda c: c.eval_period == 50),
    "DIAGNOSTICS_PERIOD": ("20", lambda c: c.diagnostics_period == 20),
    "PROFILE_STEPS": ("(3, 4)", lambda c: c.profile_steps == (3, 4)),
    "LOG_PERIOD": ("2", lambda c: c.log_period == 2),
    "LORA_RANK": ("4", lambda c: c.model.lora.rank == 4),
    "BLOCK_SIZE": ("32", lambda c: c.model.memory.block_size == 32),
    "MEMORY_SEGMENTS": ("2", lambda c: c.model.memory.memory_segments == 2),
    "FAM_LENGTH": ("4", lambda c: c.model.memory.fam_length == 4),
}


@pytest.mark.parametrize("file", [FAM, BSWA])
@pytest.mark.parametrize("macro", CONTRACT_MACROS)
def test_every_macro_of_the_contract_reaches_its_field(file: str, macro: str) -> None:
    value, reached = OVERRIDES[macro]
    config, text = load_train_config([file], (), [f"{macro}={value}"])
    assert reached(config)
    assert re.search(rf"^{macro} = ", text, re.MULTILINE)


def test_the_twins_differ_in_fam_alone() -> None:
    fam, _ = load_train_config([FAM])
    bswa, _ = load_train_config([BSWA])
    assert fam.model.memory.fam_length > 0 and bswa.model.memory.fam_length == 0
    memory = dataclasses.replace(bswa.model.memory, fam_length=fam.model.memory.fam_length)
    assert dataclasses.replace(bswa, model=dataclasses.replace(bswa.model, memory=memory)) == fam


@pytest.mark.parametrize("size", ["tiny", "1b", "8b", "24b"])
def test_models_and_their_twins_are_valid(size: str) -> None:
    fam = load_model_config([f"gin/models/fam_{size}.gin"])
    bswa = load_model_config([f"gin/models/bswa_{size}.gin"])
    memory = dataclasses.replace(fam.memory, fam_length=0)
    assert fam.memory.fam_length > 0
    assert bswa == dataclasses.replace(fam, memory=memory)


def test_operative_configuration_gives_the_same_training(tmp_path: Path) -> None:
    """config.gin, read back, is the training that wrote it, and still takes overrides."""
    config, text = load_train_config(
        [FAM], (), ["MODEL_DIR='a b'", "LEARNING_RATE=3e-4", "PassKeyConfig.stages=(1, 2)"]
    )
    (tmp_path / "config.gin").write_text(text)
    again, again_text = load_train_config([str(tmp_path / "config.gin")])
    assert again == config
    assert again_text == text
    shorter, _ = load_train_config([str(tmp_path / "config.gin")], (), ["TRAIN_STEPS=3"])
    assert shorter == dataclasses.replace(config, steps=3)


def test_later_wins_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "more.gin").write_text("TRAIN_STEPS = 12\nBATCH_SIZE = 2\n")
    config, _ = load_train_config([FAM, "more.gin"], [str(tmp_path)], ["BATCH_SIZE=4", "BATCH_SIZE=6"])
    assert (config.steps, config.batch_size) == (12, 6)
    assert gin.config_str() == ""
    plain, _ = load_train_config([FAM])
    assert plain.steps != 12


def test_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory comes first, then the given ones, then what comes with famjax; includes too."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "a.gin").write_text("include 'gin/experiments/tiny_fam.gin'\nTRAIN_STEPS = 1\n")
    (tmp_path / "there" / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "there" / "b.gin").write_text("include 'gin/experiments/tiny_fam.gin'\nTRAIN_STEPS = 2\n")
    monkeypatch.chdir(tmp_path)
    assert load_train_config(["a.gin"], [str(tmp_path / "there")])[0].steps == 2
    assert load_train_config(["a.gin"], ["here", "there"])[0].steps == 1
    monkeypatch.chdir(tmp_path / "here")
    assert load_train_config(["a.gin"], ["../there"])[0].steps == 1


def test_imports_find_modules_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `DataConfig.modules` do: unlike `python -m famjax`, the command `famjax` does not have it on Python's path."""
    (tmp_path / "tasks_beside_gin.py").write_text("")
    (tmp_path / "a.gin").write_text(f"import tasks_beside_gin\ninclude '{FAM}'\n")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    load_train_config(["a.gin"])
    assert sys.modules.pop("tasks_beside_gin").__file__ == str(tmp_path / "tasks_beside_gin.py")


@dataclasses.dataclass(frozen=True)
class ExtraConfig:
    """What another module might add."""

    width: int = 3


def test_other_classes_can_be_configured() -> None:
    config, _ = gin_config.load(ExtraConfig, [], (), ["ExtraConfig.width=5"])
    assert config == ExtraConfig(5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nTrainConfig.stps = 5\n", r"bad.gin:2: TrainConfig has no parameter stps; did you mean steps\?"),
        ("TranConfig.steps = 5\n", r"bad.gin:1: there is no configurable TranConfig; did you mean TrainConfig"),
        ("TrainConfig.model = @ModlConfig()\n", r"bad.gin:1: there is no configurable ModlConfig; .* ModelConfig"),
        ("\n\nTrainConfig.steps = = 5\n", r"bad.gin:3: gin cannot read this"),
        ("TrainConfig.mesh = {'data': 1\n", r"bad.gin: a bracket or a quote is not closed"),
        (
            "TrainConfig.steps = %TRAIN_STPES\nTRAIN_STEPS = 5\n",
            r"%TRAIN_STPES is used but has no value; .*TRAIN_STEPS",
        ),
        ("include 'gin/runs/pretrian.gin'\n", r"bad.gin:1: there is no gin file gin/runs/pretrian.gin; .*pretrain.gin"),
        ("import no_such_module\n", r"bad.gin:1: No module named 'no_such_module'"),
        (
            "OptimizerConfig.parameters = {'*': {'frozen': True},\n  '*': {'frozen': False}}\n",
            r"bad.gin:2: '\*' is given twice; give it once$",
        ),
        ("TASK_FEATURE_LENGTHS = 5\n", r"TASK_FEATURE_LENGTHS is 5; a decoder needs"),
        ("TASK_FEATURE_LENGTHS = {'inputs': -64, 'targets': 128}\n", r"'targets': 128}; a decoder needs"),
        ("include 'bad.gin'\n", r"bad.gin:1: .*bad.gin includes itself: .*bad.gin includes .*bad.gin"),
        ("A = %B\nB = %A\nTrainConfig.steps = %A\n", r"do not make a TrainConfig: one of them refers to itself"),
    ],
)
def test_mistakes_in_files(text: str, message: str, tmp_path: Path) -> None:
    """The place, what is wrong there, and the nearest that would be right."""
    base = "" if "include" in text else "include 'gin/runs/pretrain.gin'\n"
    (tmp_path / "bad.gin").write_text(text)
    files = ["gin/models/fam_tiny.gin", "gin/runs/pretrain.gin", "bad.gin"] if base else ["bad.gin"]
    with pytest.raises(ConfigError, match=message):
        load_train_config(files, [str(tmp_path)])


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("TRAIN_STPES=5", r"--gin.TRAIN_STPES: there is no macro TRAIN_STPES; did you mean TRAIN_STEPS"),
        ("XYZZY=5", r"there is no macro XYZZY; known are BATCH_SIZE, BLOCK_SIZE"),
        ("MODEL_DIR=runs/a", r"runs/a is not a gin value; text needs quotes: --gin.MODEL_DIR=\"'runs/a'\""),
        ("MODEL_DIR=/tmp/a", r"text needs quotes: --gin.MODEL_DIR=\"'/tmp/a'\""),
        ("MODEL_DIR", r"has no value; write --gin.NAME=VALUE"),
        ("MODEL_DIR=", r"write --gin.NAME=VALUE"),
        ("MESH={data: 8}", r"MESH={data: 8}: .* not a gin value"),
        ("MESH={'data': 1, 'data': 8}", r"^--gin.MESH={'data': 1, 'data': 8}: 'data' is given twice; give it once$"),
        ("MESH={'data': 8", r"a bracket or a quote is not closed"),
        (
            "OptimizerConfig.learning_rat=1",
            r"OptimizerConfig has no parameter learning_rat; did you mean learning_rate",
        ),
        ("TrainConfig.steps=%STEPZ", r"%STEPZ is used but has no value"),
        ("in_trainin/EvalConfig.seed=1", r"make no in_trainin/EvalConfig; did you mean in_training\?"),
        (
            "train/TrainConfig.steps=7",
            r"--gin.train/TrainConfig.steps has no effect: .* without the scope it is TrainConf",
        ),
        (
            "TRAIN_STEPS/TrainConfig.seed=4",
            r"these files make no TRAIN_STEPS/TrainConfig; without the scope it is Trai",
        ),
        ("in_training/TrainConfig.seed=4", r"these files make no in_training/TrainConfig; without the scope"),
        (
            "SourceConfig.kind='text'",
            r"SourceConfig.kind has no effect: .* a TrainConfig has one if .* @SourceConfig\(\)",
        ),
        ("model_of_checkpoint.path='runs/a'", r"these files make no model_of_checkpoint"),
        ("famjax.InferConfig.batch_size=3", r"--gin.InferConfig.batch_size has no effect"),
        ("TRAIN_STEPS=7\nBATCH_SIZE=3", r"--gin.TRAIN_STEPS: the value has a line break; write it on one line"),
        ("MODEL_DIR='a\nb'", r"--gin.MODEL_DIR: the value has a line break"),
        ("#TRAIN_STEPS=7", r"'#TRAIN_STEPS' is not the name of a setting; write --gin.NAME=VALUE"),
        ("TRAIN_STEPS = 7\nBATCH_SIZE=3", r"the value has a line break"),
        (
            "EvalConfig.filler_blocks=(7,)",
            r"--gin.EvalConfig.filler_blocks has no effect: in_training/EvalConfig.filler_blocks overrides it; set",
        ),
    ],
)
def test_mistakes_in_overrides(binding: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_train_config([FAM], (), [binding])


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1e", "\t", "  ", "#", "\\n"])
def test_texts_on_the_command_line_stay_as_they_are(character: str) -> None:
    """Every character in quotes is part of the text, also those at which Python's `splitlines` splits."""
    files = [FAM, "gin/runs/pretrain.gin"]
    config, _ = load_train_config(files, (), [f"MODEL_DIR='a{character}b'"])
    assert config.model_dir == f"a{character}b".replace("\\n", "\n")


def test_a_macro_that_nothing_reads_any_more_is_not_swallowed(tmp_path: Path) -> None:
    """A file gave the learning rate itself: the macro of the included file has no effect, in any scope."""
    (tmp_path / "mine.gin").write_text("OptimizerConfig.learning_rate = 0.1\n")
    files = [FAM, "gin/runs/pretrain.gin", str(tmp_path / "mine.gin")]
    with pytest.raises(ConfigError, match="--gin.LEARNING_RATE has no effect: %LEARNING_RATE is overridden where"):
        load_train_config(files, (), ["LEARNING_RATE=5.0"])
    config, _ = load_train_config(files, (), ["OptimizerConfig.learning_rate=%LEARNING_RATE", "LEARNING_RATE=5.0"])
    assert config.optimizer.learning_rate == 5.0


def test_a_setting_of_all_scopes_has_an_effect_where_no_scope_overrides_it() -> None:
    """The evaluation in training is made in the scope `in_training`, which sets its lengths but not its seed."""
    config, _ = load_train_config([FAM, "gin/runs/pretrain.gin"], (), ["EvalConfig.seed=11"])
    assert config.evaluation.seed == 11


def test_a_file_may_override_what_an_included_one_refers_to(tmp_path: Path) -> None:
    """The scope of the overridden reference, here `in_training`, is then used by nothing."""
    (tmp_path / "mine.gin").write_text("TrainConfig.evaluation = @mine/EvalConfig()\nmine/EvalConfig.seed = 5\n")
    config, _ = load_train_config([FAM, "gin/runs/pretrain.gin", str(tmp_path / "mine.gin")], (), [])
    assert config.evaluation.seed == 5


def test_scopes_that_a_reference_has_are_settings() -> None:
    """`in_training` of the files, and one that a binding itself refers to, also in a scope around it."""
    files = [FAM, "gin/runs/pretrain.gin"]
    config, _ = load_train_config(files, (), ["in_training/EvalConfig.seed=11"])
    assert config.evaluation.seed == 11
    bindings = [
        "DataConfig.sources=(@a/b/SourceConfig(),)",
        "a/SourceConfig.path='x.txt'",
        "a/b/SourceConfig.weight=2.0",
    ]
    config, _ = load_train_config(files, (), bindings)
    assert [(one.path, one.weight) for one in config.data.all_sources()] == [("x.txt", 2.0)]


BODY = "include 'gin/models/fam_tiny.gin'\ninclude 'gin/runs/pretrain.gin'\nMODEL_DIR = 'x'\nTRAIN_STEPS = 3\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        *((f"{name} = {text}", f"{text} is not a gin value; text needs quotes: {name} = '{text}'")
          for name in ("RUN", "TrainConfig.model_dir", "in_training/EvalConfig.task")
          for text in ("runs/x", "runs", "a b", "gs://b/x", "/tmp/x", "~/x", "x.y", "bert-base")),
        ("RUN = C:\\data", "text needs quotes: RUN = 'C:/data'"), ("RUN = 'runs/x", "a quote is not closed"),
        ("RUN = runs/x'", "text needs quotes: RUN = 'runs/x'"), ("RUN = true", "write RUN = True"),
        ("RUN = null", "write RUN = None"), ("RUN = 10k", "write a number, or a text in quotes"),
        ("RUN = {a: 1}", "texts in brackets need quotes"), ("RUN = (a,)", "texts in brackets need quotes"),
        *((f"RUN = {text}", "typographic quotes; write ' or") for text in ("\u2018x\u2019", "\u201cx\u201d")),
        ("train_steps: 3", "is not a setting; write train_steps = 3"), ("RUN 5", "is not a setting; write RUN = 5"),
        ("include base.gin", "write include 'base.gin'"),
        ("include 'gin\\runs\\pretrain.gin'", "write / in paths, since a backslash in quotes begins an escape"),
        ("include 'gin\\models\\fam_tiny.gin'", "write / in paths, since a backslash in quotes begins an escape"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_people_write_in_place_of_gin(line: str, message: str, end: str, mark: str, tmp_path: Path) -> None:
    """File and line, and what to write: the words of the command line."""
    (tmp_path / "bad.gin").write_bytes((mark + BODY + f"{line}\n").replace("\n", end).encode())
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_train_config(["bad.gin"], [str(tmp_path)])
    assert "bad.gin:5: " in str(error.value) and "object at 0x" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["main.gin", "sub/main.gin", "sub\\main.gin", "../w/sub/main.gin", "absolute"])
def test_files_of_other_systems_and_includes_beside_them(
    mark: str, end: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte order marks, line ends, Windows separators; an include is also searched next to the including file."""
    here = tmp_path / "w"
    folder = here if name == "main.gin" else here / "sub"
    (folder / "deep").mkdir(parents=True)
    written = lambda path, text: path.write_bytes((mark + text).replace("\n", end).encode())
    written(folder / "base.gin", BODY + "BATCH_SIZE = 7\n")
    written(folder / "deep/next.gin", "include 'last.gin'\n")
    written(folder / "deep/last.gin", "LOG_PERIOD = 9\n")
    written(folder / "main.gin", "include 'base.gin'\ninclude 'deep/next.gin'\nTRAIN_STEPS = 4\n")
    monkeypatch.chdir(here)
    config, _ = load_train_config([str(folder / "main.gin") if name == "absolute" else name])
    assert (config.steps, config.batch_size, config.log_period) == (4, 7, 9)


def test_two_files_for_one_include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An include next to the including file and on the search path is refused if the two differ."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.gin").write_text(BODY)
    (tmp_path / "sub/base.gin").write_text(BODY)
    (tmp_path / "sub/main.gin").write_text("include 'base.gin'\n")
    monkeypatch.chdir(tmp_path)
    assert load_train_config(["sub/main.gin"])[0].steps == 3
    (tmp_path / "sub/base.gin").write_text(BODY + "TRAIN_STEPS = 5\n")
    with pytest.raises(ConfigError, match=r"main.gin:1: the include of base.gin is ambiguous: .*; write a longer path"):
        load_train_config(["sub/main.gin"])
    (tmp_path / "sub/only.gin").write_text("TRAIN_STEPS = 6\n")
    (tmp_path / "main.gin").write_text("include 'base.gin'\ninclude 'only.gin'\n")
    with pytest.raises(ConfigError, match="main.gin:2: there is no gin file only.gin"):
        load_train_config(["main.gin"])
    (tmp_path / "sixteen.gin").write_text(BODY, encoding="utf-16")
    (tmp_path / "main.gin").write_text("include 'sixteen.gin'\n")
    with pytest.raises(ConfigError, match="main.gin:1: .*sixteen.gin: this is not UTF-8 text but UTF-16"):
        load_train_config(["main.gin"])


def test_required_macros_are_named() -> None:
    """`%gin.REQUIRED` in a file: one line that names the macro, until it has a value."""
    files = ["gin/models/fam_1b.gin", "gin/runs/finetune.gin"]
    given: list[str] = []
    for name, value in (
        ("MODEL_DIR", "'m'"),
        ("INITIAL_CHECKPOINT_PATH", "'i'"),
        ("MIXTURE_OR_TASK_NAME", "'passkey'"),
    ):
        with pytest.raises(ConfigError, match=f"{name} must be set; add --gin.{name}=VALUE"):
            load_train_config(files, (), given)
        given.append(f"{name}={value}")
    config, _ = load_train_config(files, (), given)
    assert config.initial_checkpoint == "i"


def test_fine_tuning_follows_the_paper() -> None:
    """Section 5: Adafactor with beta1 0.9 and decay 0.99, constant 1e-4, 50k steps of 128 rows."""
    given = ["MODEL_DIR='m'", "INITIAL_CHECKPOINT_PATH='i'", "MIXTURE_OR_TASK_NAME='passkey'"]
    config, _ = load_train_config(["gin/models/fam_1b.gin", "gin/runs/finetune.gin"], (), given)
    config.validate()
    found = config.optimizer
    assert (found.name, found.beta1, found.beta2, found.schedule) == ("adafactor", 0.9, 0.99, "constant")
    assert (found.learning_rate, found.warmup_steps, config.steps, config.batch_size) == (1e-4, 0, 50_000, 128)
    assert (config.model.lora.rank, config.model.param_dtype, config.tuning.trained) == (64, "bfloat16", "lora")


@pytest.mark.parametrize(("size", "devices", "rate"), [("1b", 16, 1e-4), ("8b", 32, 3e-3), ("24b", 64, 3e-3)])
def test_the_large_fine_tunings_are_valid(size: str, devices: int, rate: float) -> None:
    """The paper's batch, length and rates; they want weights to start from, data and a directory."""
    given = ["MODEL_DIR='m'", "INITIAL_CHECKPOINT_PATH='i'", "SOURCES=('a.jsonl',)"]
    config, _ = load_train_config([f"gin/experiments/finetune_{size}.gin"], (), given)
    config.validate()
    assert math.prod(config.mesh_sizes) == devices
    assert (config.optimizer.learning_rate, config.sequence_length, config.batch_size) == (rate, 8192, 128)
    plain = load_model_config([f"gin/models/fam_{size}.gin"])
    assert config.model == dataclasses.replace(plain, lora=LoraConfig(rank=64), param_dtype="bfloat16")
    assert config.saves_a_part and config.task == "text" and config.data.repeat_segment == 256


def test_an_imported_model_is_its_own_configuration(tmp_path: Path) -> None:
    """Without a file of gin/models: the model of model.json, with LoRA, and the memory macros that are set."""
    model = ModelConfig(d_model=24, qkv_bias=True, param_dtype="bfloat16", memory=MemoryConfig(8, 2, 3))
    (tmp_path / "model.json").write_text(model.to_json())
    given = ["MODEL_DIR='m'", f"INITIAL_CHECKPOINT_PATH='{tmp_path}'", "MIXTURE_OR_TASK_NAME='passkey'"]
    files = ["gin/runs/finetune_imported.gin"]
    config, text = load_train_config(files, (), [*given, "LORA_RANK=2", "LoraConfig.alpha=4.0"])
    config.validate()
    assert config.model == dataclasses.replace(model, lora=LoraConfig(rank=2, alpha=4.0), remat="full")
    changed, _ = load_train_config(files, (), [*given, "MEMORY_SEGMENTS=1"])
    assert changed.model.memory == MemoryConfig(8, 1, 3)
    changes = "model_of_checkpoint.changes={'random_state_passing': 0.0, 'remat': 'none'}"
    changed, _ = load_train_config(files, (), [*given, "FAM_LENGTH=2", changes])
    assert changed.model.memory == MemoryConfig(8, 2, 2, random_state_passing=0.0)
    assert changed.model == dataclasses.replace(model, lora=LoraConfig(rank=64), memory=changed.model.memory)
    (tmp_path / "config.gin").write_text(text)
    again, _ = load_train_config([str(tmp_path / "config.gin")])
    assert again == config
    with pytest.raises(ConfigError, match="ModelConfig has no dtyp; did you mean dtype"):
        load_train_config(files, (), [*given, "model_of_checkpoint.changes={'dtyp': 'float32'}"])
    with pytest.raises(ConfigError, match="/no/such does not exist"):
        load_train_config(files, (), [given[0], "INITIAL_CHECKPOINT_PATH='/no/such'", given[2]])


@pytest.mark.parametrize(("size", "devices"), [("1b", 16), ("8b", 32), ("24b", 64)])
def test_the_large_trainings_are_valid(size: str, devices: int) -> None:
    """They need a directory and a task, and then run on N devices."""
    file = f"gin/experiments/pretrain_{size}.gin"
    with pytest.raises(ConfigError, match="MODEL_DIR must be set"):
        load_train_config([file])
    config, _ = load_train_config([file], (), ["MODEL_DIR='m'", "MIXTURE_OR_TASK_NAME='passkey'"])
    config.validate()
    assert math.prod(config.mesh_sizes) == devices
    assert config.model == load_model_config([f"gin/models/fam_{size}.gin"])


def test_missing_files_and_their_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    for name, near in (
        ("gin/experiments/tiny_fma.gin", FAM),
        ("tiny_fam.gin", FAM),
        ("fam_1b.gin", "gin/models/fam_1b.gin"),
    ):
        with pytest.raises(ConfigError, match=f"there is no gin file {name}; nearest are .*{near}"):
            load_train_config([name])
    assert not caplog.records


def test_a_macro_that_no_file_uses_is_not_swallowed() -> None:
    """A model alone uses no TRAIN_STEPS; setting it there must not pass in silence."""
    with pytest.raises(ConfigError, match="no gin file uses TRAIN_STEPS; include 'gin/runs/pretrain.gin'"):
        load_model_config(["gin/models/fam_tiny.gin"], (), ["TRAIN_STEPS=5"])
    assert load_model_config(["gin/models/fam_tiny.gin"], (), ["FAM_LENGTH=3"]).memory.fam_length == 3
