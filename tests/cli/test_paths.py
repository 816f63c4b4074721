"""Paths as people have them: `[1]` and other letters of globs in names, `~` in quotes. Each works in every verb."""

import argparse
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from famjax.cli import flags, gin_config
from famjax.cli import main as cli
from famjax.config import ConfigError, DataConfig, SourceConfig, TrainConfig
from famjax.data import files
from famjax.infer.load import load
from famjax.storage import arrays, steps
from famjax.storage.checkpoint import save_model
from famjax.storage.model_dir import write_text
from tests import tiny
from tests.pretrained.test_bad_folders import write_llama
from tests.train.processes import GIN

# Values of flags that are no paths. A new word is put here or into `cli.PATHS`.
OTHERS = (
    "N", "N,N", "X", "X,X", "NAME", "NAME,NAME", "TEXT", "VALUE", "A,B", "AXIS=N,AXIS=N", "B", "F", "HOST:PORT", "I",
    "I/N", "K", "M", "M,M", "P", "S", "SECONDS", "TASK,TASK", "WHICH", "WHAT", "T", "ZONE", "TYPE", "V", "NET", "WHEN",
    "IMAGE", "NS", "C", "Q", "A", "FLAG", "URL",
)  # fmt: skip
# Fields of configurations that are text and no path.
TEXTS = (
    "kind", "rows", "text_field", "inputs_field", "targets_field", "separator", "packing", "modules", "split", "task",
    "part", "answer", "fam_position", "fam_init", "fam_layers", "scaling", "projections", "activation", "norm",
    "rope_scaling", "layer_pattern", "dtype", "param_dtype", "remat", "attention_kernel", "name", "schedule", "trained",
    "keep_best_metric", "keep_best_mode", "fam_update", "segments_hold",
    "stories", "elements", "key_words", "value_words", "sentences", "question",
)  # fmt: skip
NAME = "run [1] a*b what? {c} 100% #d ü"


def actions(verb: str) -> list[argparse.Action]:
    parser = cli.Parser()
    importlib.import_module(cli.VERBS[verb].module).add_arguments(parser)
    return [action for action in parser._actions if action.nargs != 0 and action.choices is None]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_flag_that_is_a_path_knows_the_home_directory(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for action in actions(verb):
        if action.metavar not in cli.PATHS:
            assert action.metavar in (*OTHERS, "-", None), (verb, action.dest)
            continue
        given = "some=~/a" if action.metavar == "TASK=PATH" else "~/a"
        parser = cli.Parser()
        parser.prog = verb

        def only(parser: argparse.ArgumentParser, action: argparse.Action = action) -> None:
            kept = {"nargs": action.nargs, "type": action.type, "metavar": action.metavar}
            if action.option_strings:
                kept |= {"dest": action.dest}
            if isinstance(action, argparse._AppendAction):
                kept |= {"action": "append"}
            parser.add_argument(*(action.option_strings or [action.dest]), **kept)

        module = argparse.Namespace(NAME=verb, HELP="", add_arguments=only)
        words = [*action.option_strings[:1], given]
        found = getattr(cli.parse(module, words), action.dest)
        assert str(given).replace("~", "/home/me") in (found if isinstance(found, (list, tuple)) else [found])


def test_every_setting_that_is_a_path_knows_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field of text in a configuration is known as a path or as something else, and paths are expanded."""
    monkeypatch.setenv("HOME", "/home/me")
    import famjax.config as configs

    classes = [c for name in gin_config._REGISTERED if dataclasses.is_dataclass(c := getattr(configs, name, None))]
    assert TrainConfig in classes
    for config in classes:
        for field in dataclasses.fields(config):
            if "str" in str(field.type) and "dict" not in str(field.type):
                assert field.name in (*gin_config.PATHS, *TEXTS), (config.__name__, field.name)
    source = SourceConfig(path="~/b/*.txt", separator="~/")
    config = TrainConfig(
        model_dir="~/m", initial_checkpoint="~/i",
        data=DataConfig(sources=("~/a.txt", source), vocabulary="~/v", cache_dirs=("~/c",)),
    )  # fmt: skip
    found = gin_config._at_home(config)
    assert (found.model_dir, found.initial_checkpoint) == ("/home/me/m", "/home/me/i")
    assert found.data.sources == ("/home/me/a.txt", dataclasses.replace(source, path="/home/me/b/*.txt"))
    assert (found.data.vocabulary, found.data.cache_dirs) == ("/home/me/v", ("/home/me/c",))


@pytest.mark.parametrize("name", [NAME, "[abc]", "**", "[", "]"])
def test_a_name_that_exists_is_no_glob(name: str, tmp_path: Path) -> None:
    """A file, a glob in a folder of that name, a glob of such folders; a glob without matches is reported."""
    folder = tmp_path / name
    folder.mkdir()
    for one in (f"{name}.txt", "plain.txt"):
        (folder / one).write_text("text")
    both = sorted(str(folder / one) for one in (f"{name}.txt", "plain.txt"))
    assert files.expand(str(folder / f"{name}.txt")) == [str(folder / f"{name}.txt")]
    assert files.expand(str(folder / "*.txt")) == both
    assert files.expand(str(folder / "pl*.txt")) == [str(folder / "plain.txt")]
    assert files.expand(str(tmp_path / "*" / "plain.txt")) == [str(folder / "plain.txt")]
    with pytest.raises(ConfigError, match="no file matches"):
        files.expand(str(folder / "*.json"))


def test_all_verbs_below_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Trained, continued, read, scored, evaluated, exported and imported, and copied to a plain name: with a
    home directory that has such a name, named by `~`."""
    home = tmp_path / NAME
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "tiny.gin").write_text(GIN)
    (home / "docs [2].jsonl").write_text(json.dumps({"text": "It is so."}) + "\n")
    (home / "text [2].txt").write_text("It is a truth universally acknowledged. " * 20)

    def famjax(*words: str) -> None:
        assert cli.main(words) == 0, capfd.readouterr().err

    for length in ("1", "2"):
        famjax("train", "--gin_file=~/tiny.gin", "--gin.MODEL_DIR='~/m'", f"--gin.TRAIN_STEPS={length}")
        assert steps.all_steps(home / "m")[-1] == int(length)
    model = "--model=~/m"
    famjax("generate", model, "--prompt-file=~/text [2].txt", "--max-tokens=2", "--state-out=~/s [3].session")
    famjax("generate", model, "--state-in=~/s [3].session", "--max-tokens=2")
    famjax("score", model, "--input=~/docs [2].jsonl", "--output=~/scores [2].jsonl")
    assert json.loads((home / "scores [2].jsonl").read_text())["tokens"] == 9
    famjax("eval", model, "--texts=~/text [2].txt", "--output=~/out [4]")
    assert (home / "out [4]" / "results.json").is_file()
    famjax("export-hf", "~/m", "~/hf [5]")
    famjax("import-hf", "~/hf [5]", "~/again [6]")
    famjax("generate", "--model=~/again [6]", "--prompt=It", "--max-tokens=2")
    assert not list(Path().glob("~*"))
    shutil.copytree(home / "m", tmp_path / "plain")
    load(tmp_path / "plain")


def test_an_import_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Nothing that another verb has imported before makes the difference."""
    (tmp_path / NAME).mkdir()
    write_llama(tmp_path / "llama")
    words = ["import-hf", str(tmp_path / "llama"), str(tmp_path / NAME / "m"), "--block-size=16", "--fam-length=2"]
    done = subprocess.run(
        [sys.executable, "-m", "famjax", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    load(tmp_path / NAME / "m")


def test_every_use_of_orbax_escapes_globs() -> None:
    """Each module that imports Orbax imports `storage/arrays.py` too, which repairs its globs."""
    for path in sorted(Path(arrays.__file__).parents[1].rglob("*.py")):
        text = path.read_text()
        if "import orbax" in text or "from orbax" in text:
            assert path.stem == "arrays" or re.search("from famjax.storage import .*arrays", text), path


def test_a_step_that_cannot_be_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is lost on the way to the disk: the save fails in words, and the step before stays the newest."""
    config = tiny.config()
    params = tiny.parameters(config)
    save_model(tmp_path / "m", config, params)
    original = arrays.stored
    for change, words in (
        (lambda found: found.pop("embedding"), r"weights/embedding \[17, 12\] float32 is missing"),
        (lambda found: found.update(more=found["embedding"]), r"weights/more \[17, 12\] float32 is not part of it"),
        (lambda found: found.update(embedding=found["final_norm/scale"]), r"weights/embedding is \[12\] float32 inst"),
    ):

        def stored(folder: Path, change=change) -> dict:
            found = original(folder)
            change(found) if "-tmp" in folder.parent.name else None
            return found

        monkeypatch.setattr(arrays, "stored", stored)
        with pytest.raises(RuntimeError, match=f"could not be saved .*cannot be read back: {words}"):
            save_model(tmp_path / "m", config, params)
        assert steps.all_steps(tmp_path / "m") == [0]
    monkeypatch.undo()
    assert save_model(tmp_path / "m", config, params) == 1


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Files are written beside their place and moved there: as root, `--output /dev/null` would end the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in ("/dev/null", "/dev/stdout", pipe):
        with pytest.raises(ConfigError, match=f"--output {path} is not a regular file; name a file"):
            flags.check_file("--output", path)
    flags.check_file("--output", tmp_path / "new")
    assert pipe.is_fifo()


def test_a_link_stays_and_its_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell's `>` does. The folder that must be writable is that of the file."""
    (tmp_path / "disk").mkdir()
    link = tmp_path / "scores.jsonl"
    link.symlink_to(tmp_path / "disk" / "real.jsonl")
    for text in ("new", "newer"):
        flags.check_file("--output", link)
        write_text(link, text)
        assert link.is_symlink() and (tmp_path / "disk" / "real.jsonl").read_text() == text
    assert [path.name for path in sorted((tmp_path / "disk").iterdir())] == ["real.jsonl"]
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != tmp_path / "disk")
    with pytest.raises(ConfigError, match=f"nothing may be written in {tmp_path / 'disk'}"):
        flags.check_file("--output", link)


def test_a_folder_that_may_not_be_written_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if folders within it are still to be made."""
    flags.check_folder("--output", tmp_path / "a" / "b")
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != tmp_path)
    said = f"nothing may be written in {tmp_path}; name another place"
    for check, name in ((flags.check_folder, "a/b"), (flags.check_folder, ""), (flags.check_file, "c")):
        with pytest.raises(ConfigError, match=said):
            check("--output", tmp_path / name)
    for elsewhere in ("", "gs://bucket/folder"):
        flags.check_folder("--output", elsewhere)
