"""score and generate take gin settings too; flags win over them, defaults come last."""

import json
from pathlib import Path

import pytest

from famjax.cli import flags, generate, main, serve
from famjax.storage.checkpoint import save_model
from tests import tiny


def settled(*words: str):
    args = main.parse(generate, list(words))
    flags.settle(args)
    return args


def test_flags_win_over_gin_and_gin_over_defaults() -> None:
    """The same setting from each of the three; the macros are those of training."""
    assert settled("--model", "m").batch_size == 8
    given = settled("--model", "m", "--gin.BATCH_SIZE=3", "--gin.InferConfig.top_p=0.5", "--gin.FAM_LENGTH=0")
    assert (given.batch_size, given.top_p, given.fam_length, given.max_tokens) == (3, 0.5, 0, 256)
    both = settled("--model", "m", "--batch-size", "2", "--gin.BATCH_SIZE=3", "--gin.MODEL_DIR='other'")
    assert (both.batch_size, both.model) == (2, "m")
    assert settled("--gin.MODEL_DIR='other'").model == "other"


def test_gin_settings_of_a_server() -> None:
    """The limit of an answer comes from gin, too, unless the flag is given."""

    def limit(*words: str) -> int:
        args = main.parse(serve, ["--model", "m", *words])
        flags.settle(args)
        return serve.settings_of(args).max_tokens

    of_gin = "--gin.InferConfig.max_tokens=20"
    assert (limit(), limit(of_gin), limit(of_gin, "--max-tokens", "30")) == (256, 20, 30)


def test_gin_files_are_read_as_everywhere(tmp_path: Path) -> None:
    """A user's file that includes the run's, and overrides on the command line."""
    (tmp_path / "mine.gin").write_text("include 'gin/runs/infer.gin'\nMODEL_DIR = 'a'\nRANDOM_SEED = 5\n")
    args = settled("--gin_file", str(tmp_path / "mine.gin"), "--gin.RANDOM_SEED=6")
    assert (args.model, args.seed) == ("a", 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", "--prompt", "x"], "no model; add --model DIR"),
        (["score", "--input", "a", "--output", "b", "--gin.BATCHSIZE=3"], "did you mean BATCH_SIZE"),
        (["generate", "--prompt", "x", "--gin.MODEL_DIR='none'", "--gin.BATCH_SIZE=0"], "--batch-size is 0"),
        (
            ["generate", "--prompt", "x", "--gin.MODEL_DIR='none'", "--gin.InferConfig.temperature=1e999"],
            "InferConfig.temperature is inf; it must be a finite number",
        ),
        (
            ["chat", "--gin.MODEL_DIR='none'", "--gin.InferConfig.mesh='a'"],
            "InferConfig.mesh is 'a'; it must be of type",
        ),
        (["chat", "--model", "none", "--seed", "4294967296"], "--seed is 4294967296; it must be at least 0 and below"),
        (
            ["score", "--input", "a", "--output", "b", "--model", "m", "--gin.RANDOM_SEED=3"],
            "--gin settings of InferConfig.seed have no effect here",
        ),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert main.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_scores_with_other_memory_settings_by_gin_are_those_by_flags(tmp_path: Path) -> None:
    """FAM off by the macro and by the flag: the same numbers, and not those with FAM."""
    config = tiny.config(vocab_size=256)
    save_model(tmp_path / "m", config, tiny.parameters(config))
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": "The quick brown fox"}))
    outputs = []
    for i, more in enumerate(([], ["--fam-length", "0"], ["--gin.FAM_LENGTH=0"])):
        output = tmp_path / f"{i}.jsonl"
        words = [
            "score",
            "--model",
            str(tmp_path / "m"),
            "--input",
            str(tmp_path / "docs.jsonl"),
            "--output",
            str(output),
        ]
        assert main.main([*words, *more]) == 0
        outputs.append(json.loads(output.read_text()))
    assert outputs[1] == outputs[2] != outputs[0]
