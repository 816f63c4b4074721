"""The distribution: one version everywhere, and an sdist and a wheel that work in a clean environment."""

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import famjax

ROOT = Path(__file__).parents[1]
# Parts of a checkout that are not source; `runs` at its top has trainings' output, `gin/runs` is source.
LEFT_OUT = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")


def test_one_version() -> None:
    """setup.py reads it from the package; the citation and the changelog have the same one."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation["version"] == changes[0] == famjax.__version__
    assert citation["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def run(*words: object, at: Path) -> str:
    """Runs a command in an environment without the checkout, and returns its standard output. Fails if the command
    fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in words], cwd=at, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the wheel, built from the sdist, which is built from a copy of this tree; without a network."""
    folder = tmp_path_factory.mktemp("package")
    patterns = shutil.ignore_patterns(*LEFT_OUT)
    ignored = lambda at, names: patterns(at, names) | ({"runs"} if Path(at) == ROOT else set())
    shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    build = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    name = run(sys.executable, "-c", build, "build_sdist", folder, at=folder / "tree").splitlines()[-1]
    with tarfile.open(folder / name) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    return folder / run(sys.executable, "-c", build, "build_wheel", folder, at=source).splitlines()[-1]


def test_the_wheel_has_all_that_the_package_needs(wheel: Path) -> None:
    """It contains every module, py.typed, the license, every gin file and the launch templates."""
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {name.split("share/famjax/")[1] for name in names if "share/famjax/" in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "famjax").rglob("*.py")}
    gin_files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gin").rglob("*.gin")}
    assert modules <= names and "famjax/py.typed" in names
    assert "famjax/shipped/passkey.safetensors" in names
    assert gin_files | {"requirements.txt", "launch/tpu_vm/worker.sh", "launch/gke/jobset.yaml"} <= shipped
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "docs/")) for name in names)


def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed with this environment's dependencies: help, version, and a gin file work from any directory."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", at=tmp_path)
    python = tmp_path / "venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, at=tmp_path)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    famjax_bin = tmp_path / "venv/bin/famjax"
    (tmp_path / "elsewhere").mkdir()
    at = tmp_path / "elsewhere"
    assert Path(run(python, "-c", "import famjax; print(famjax.__file__)", at=at).strip()).is_relative_to(packages)
    assert run(famjax_bin, "--version", at=at) == f"famjax {famjax.__version__}\n"
    assert "usage: famjax quickstart" in run(famjax_bin, "quickstart", "--help", at=at)
    find = "from famjax.launch.shipped import find; print(find('gin/experiments/tiny_fam.gin').read_text())"
    assert "MIXTURE_OR_TASK_NAME = 'passkey'" in run(python, "-c", find, at=at)
    (at / "a.txt").write_text("It is a truth universally acknowledged. " * 40)
    files = [f"--gin_file=gin/{name}.gin" for name in ("models/fam_tiny", "runs/pretrain", "data/streams")]
    assert "universally" in run(famjax_bin, "data", *files, "--gin.SOURCES=('a.txt',)", at=at)
