"""What the documents name exists: paths, verbs, flags, settings, targets of make; and their figures agree."""

import ast
import dataclasses
import functools
import importlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import famjax.config
from famjax.cli import main as cli
from famjax.config import ConfigError
from famjax.storage import checkpoint
from tests import tiny

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "launch/README.md"],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
SOURCES = ("famjax", "gin", "launch", "tests")
# Files that a run writes or a user has, which are named without being part of this tree.
ELSEWHERE = re.compile(r"^(runs|DIR|MODEL_DIR|job)/|^(config|my|NAME)\.gin$")
# Flags and variables of other programs.
OTHER_FLAGS = {"--xla_force_host_platform_device_count"}
OTHER_VARIABLES = {"TMPDIR"}


def text(path: Path) -> str:
    """A file; of tables that map T5X's names to ours, the column of ours."""
    found = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        return found
    lines, mapping = [], False
    for line in found.splitlines(keepends=True):
        mapping = line.startswith("| T5X |") or (mapping and line.startswith("|"))
        lines.append(re.sub(r"^\| .*? \| ", "| ", line) if mapping else line)
    return "".join(lines)


def spans(page: str) -> list[str]:
    """What stands between backquotes, outside of blocks of code."""
    return re.findall(r"`([^`\n]+)`", "\n".join(line for line in page.splitlines() if not line.startswith("    ")))


def commands(page: str) -> Iterator[list[str]]:
    """Words of every command in a block of code, continued lines joined, without comments."""
    for line in page.replace("\\\n", " ").splitlines():
        if not line.startswith("    "):
            continue
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a line of output or of another language
            continue
        words = words[next((i for i, word in enumerate(words) if "=" not in word or word.startswith("-")), 0) :]
        for end, word in enumerate([*words, "|"]):
            if word in ("|", "&&", ";", ">", "2>&1", "||"):
                yield from ([words[:end]] if words[:end] else [])
                words = words[end + 1 :]
                if words:
                    yield words
                break


@functools.cache
def parsers() -> dict[str, cli.Parser]:
    """The parser of each verb."""
    found = {}
    for name, verb in cli.VERBS.items():
        found[name] = cli.Parser(prog=f"famjax {name}")
        importlib.import_module(verb.module).add_arguments(found[name])
    return found


@functools.cache
def source() -> str:
    """All source text of the tree, in which a setting or a flag must occur to exist."""
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in
             (".py", ".gin", ".sh", ".yaml") and path.name != "test_docs.py"]  # fmt: skip
    return "\n".join(text(path) for path in [*files, ROOT / "Makefile", ROOT / "setup.py"])


@functools.cache
def macros() -> set[str]:
    """Macros that shipped gin files set or use."""
    found = [text(path) for path in (ROOT / "gin").rglob("*.gin")]
    pairs = re.findall(r"^([A-Z][A-Z_]+) *=|%([A-Z][A-Z_]+)", "\n".join(found), re.MULTILINE)
    return {name for pair in pairs for name in pair if name}


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain.lower()).strip())


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    """Relative links name files, and their anchors headings."""
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in {slug(found) for found in re.findall(r"^#+ (.+)$", text(there), re.MULTILINE)}, target


@pytest.mark.parametrize("name", NAMES)
def test_paths_exist(name: str) -> None:
    """A path in backquotes or in a command is a file of this tree; names before it may be left out (`cli/main.py`)."""
    page = ROOT / name
    words = [word for command in commands(text(page)) for word in command]
    for span in {*spans(text(page)), *words}:
        for word in re.findall(r"(?:[\w./*-]|\{[^}]*\})+", span):
            if not re.search(r"\w\.(py|gin|md|sh|yaml|toml|cff|ipynb)$", word) or ELSEWHERE.search(word):
                continue
            if "/" in word:
                found = any(any(root.glob(word)) for root in (ROOT, ROOT / "famjax", ROOT / "tests", page.parent))
            else:
                found = (ROOT / word).exists() or any(any((ROOT / one).rglob(word)) for one in (*SOURCES, "docs"))
            assert found, f"{word} in {span!r}"


@pytest.mark.parametrize("name", NAMES)
def test_functions_stand_where_they_are_said_to(name: str) -> None:
    """`train/loop.py` `train`: the file has that name."""
    for path, function in re.findall(r"`([\w/]+\.py)` `(\w[\w.]*)(?:\(\))?`", text(ROOT / name)):
        found = [root / path for root in (ROOT, ROOT / "famjax") if (root / path).exists()]
        assert found, path
        assert re.search(rf"\b{re.escape(function.split('.')[-1])}\b", text(found[0])), f"{function} in {path}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse(name: str) -> None:
    """Each verb exists, takes the flags that it is given, and has those that it needs."""
    for words in commands(text(ROOT / name)):
        if words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            script = text(ROOT / words[1])
            flags = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
            assert all(f'"{flag}"' in script for flag in flags), words
        if words[0] not in ("famjax", ".venv/bin/famjax") or len(words) < 2 or words[1].isupper():
            continue
        verb = words[1]
        if verb in ("--help", "--version"):
            continue
        assert verb in cli.VERBS, words
        module = importlib.import_module(cli.VERBS[verb].module)
        if {"...", "[...]"} & set(words):  # shown in part
            known = parsers()[verb]._option_string_actions
            assert all(w.split("=")[0] in known or w.startswith("--gin.") for w in words if w.startswith("--")), words
            continue
        if words[2:] in (["--help"], ["--list"]):
            continue
        try:
            args = cli.parse(module, [word for word in words[2:] if not word.startswith("--gin.NAME")])
        except ConfigError as error:
            pytest.fail(f"{shlex.join(words)}: {error}")
        for binding in getattr(args, "gin_bindings", None) or ():
            check_setting(binding.split("=")[0], words)


def check_setting(setting: str, where: object) -> None:
    """A macro that gin files have, or a field of a configuration's class."""
    if "." not in setting:
        assert setting in macros(), (setting, where)
        return
    owner, field = setting.split("/")[-1].rsplit(".", 1)
    config = getattr(famjax.config, owner, None)
    assert config is not None, (setting, where)
    assert field in {one.name for one in dataclasses.fields(config)} or callable(getattr(config, field, None)), setting


@pytest.mark.parametrize("name", NAMES)
def test_flags_verbs_and_settings_exist(name: str) -> None:
    """In backquotes: flags that some verb or script has, verbs, fields of configurations, macros and variables."""
    flags = {flag for parser in parsers().values() for flag in parser._option_string_actions}
    for span in spans(text(ROOT / name)):
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+(?!\w*\.)", span):
            known = flag in flags | OTHER_FLAGS or f'"{flag}"' in source() or f"{flag} " in source()
            assert known, f"{flag} in {span!r}"
        if (verb := re.match(r"famjax ([a-z][a-z-]+)", span)) and not span.startswith("famjax session"):
            assert verb[1] in cli.VERBS, span
        for owner, field in re.findall(r"\b([A-Z]\w+Config)\.(\w+)", span):
            check_setting(f"{owner}.{field}", span)
        if re.fullmatch(r"[A-Z][A-Z_]{3,}", span) and span not in OTHER_VARIABLES:
            assert re.search(rf"\b{span}\b", source()), span


def test_targets_of_make() -> None:
    """`make X` in any document is a target."""
    targets = set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.MULTILINE))
    for path in PAGES:
        blocks = [line for line in text(path).splitlines() if line.startswith("    make ")]
        for target in re.findall(r"\bmake ([a-z-]+)", "\n".join([*spans(text(path)), *blocks])):
            assert target in targets, (path, target)


def test_readme_is_one_page_and_names_every_verb() -> None:
    """At most 110 lines; a row of the table for each verb."""
    readme = text(ROOT / "README.md")
    assert len(readme.splitlines()) <= 110
    rows = re.findall(r"^\| (`[^|]+`) \|", readme, re.MULTILINE)
    assert {verb for row in rows for verb in re.findall(r"`([^`]+)`", row)} == set(cli.VERBS)
    assert "famjax/attention/block_step.py" in readme and "tests/reference.py" in readme


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs.yml and docs/index.md lead to each page, so a new page is found."""
    site = yaml.safe_load(text(ROOT / "mkdocs.yml"))
    shown = set(re.findall(r"[\w/]+\.md", json.dumps(site["nav"])))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert shown == pages
    index = text(ROOT / "docs/index.md")
    assert all(f"({page})" in index for page in pages if "/" not in page and page != "index.md")


def test_api_pages_name_modules_and_members() -> None:
    """`::: famjax.x.y`: the module or its member is there."""
    for path in (ROOT / "docs/api").glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)", text(path), re.MULTILINE):
            at = ROOT.joinpath(*name.split("."))
            member = None
            if not at.with_suffix(".py").exists() and not (at / "__init__.py").exists():
                at, member = at.parent, at.name
            tree = ast.parse(text(at.with_suffix(".py") if at.with_suffix(".py").exists() else at / "__init__.py"))
            assert member is None or member in {getattr(node, "name", None) for node in tree.body}, name


# --- commands that take seconds -------------------------------------------------------------------

# Of docs/guide.md, each with what makes it small. The first training makes `runs/fam`, which the others use.
SHOWN = (
    ("famjax train --gin_file gin/experiments/tiny_fam.gin --gin.MODEL_DIR=\"'runs/fam'\" --gin.TRAIN_STEPS=500",
     ("--gin.TRAIN_STEPS=1", "--gin.BATCH_SIZE=1")),
    ("famjax train --gin_file gin/experiments/tiny_fam.gin --gin.MODEL_DIR=\"'runs/fam'\" --dry-run",
     ("--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=1")),
    ("famjax train --gin_file gin/models/fam_tiny.gin", ("--gin.TRAIN_STEPS=1", "--gin.BATCH_SIZE=2")),
    ("famjax score", ()),
    ("famjax generate --model runs/fam --prompt \"The pass key is\"", ()),
    ("famjax generate --model runs/fam --prompt \"Once\"", ("--max-tokens=3",)),
    ("famjax generate --model runs/fam --input prompts.jsonl", ("--max-tokens=3",)),
    ("famjax generate --model runs/fam - --max-tokens 0", ()),
    ("famjax generate --model runs/fam --state-in book.session", ("--max-tokens=3",)),
    ("famjax eval --model runs/fam --model runs/bswa --texts", ()),
    ("famjax eval --model runs/fam --model runs/bswa --task niah_single,recall", ("--lengths=350", "--examples=2")),
    ("famjax inspect --model runs/fam --input book.txt", ()),
    ("famjax export-hf runs/llama exported", ()),
)  # fmt: skip


def prepare(at: Path) -> None:
    """The files that the commands name."""
    book = "It is a truth universally acknowledged. " * 60
    for folder in ("books", "heldout", "runs"):
        (at / folder).mkdir()
    for name in ("book.txt", "another.txt", "books/a.txt", "heldout/a.txt", "heldout/b.txt"):
        (at / name).write_text(book + name)
    (at / "docs.jsonl").write_text('{"text": "It is so."}\n{"tokens": [1, 2, 3]}\n')
    (at / "prompts.jsonl").write_text('{"prompt": "It is"}\n')


@pytest.mark.slow
def test_shown_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """What docs/guide.md shows, as it is written but for sizes, in this order; exit code 0."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    shown = [words for words in commands(text(ROOT / "docs/guide.md")) if words[0] == "famjax"]
    for begin, small in SHOWN:
        words = next(words for words in shown if words[: len(shlex.split(begin))] == shlex.split(begin))
        if "-" in words:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "book.txt").read_bytes())))
        assert cli.main([*words[1:], *small]) == 0, (words, capfd.readouterr().err)
        if not (tmp_path / "runs/bswa").exists():
            shutil.copytree(tmp_path / "runs/fam", tmp_path / "runs/bswa")
            shutil.copytree(tmp_path / "runs/fam", tmp_path / "runs/llama")


@pytest.mark.slow
def test_the_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both blocks of code of its section on Python, with a tiny model."""
    prepare(tmp_path)
    config = tiny.config(vocab_size=256)
    checkpoint.save_model(tmp_path / "runs/fam", config, tiny.parameters(config))
    monkeypatch.chdir(tmp_path)
    section = text(ROOT / "docs/guide.md").split("\n## Python\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", section, re.MULTILINE)
    names = {"tokens_a": np.arange(9), "tokens_b": np.arange(3)}
    for block in blocks:
        exec(textwrap.dedent(block), names)
    assert (tmp_path / "book.session").is_file() and names["made"].session is not None


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """`make docs`, whose packages `make test-slow` installs: no broken link, no page outside the navigation."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/guide/index.html").is_file()
