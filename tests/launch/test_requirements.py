"""Packages that TPU VMs and containers install besides requirements.txt, and install commands in messages."""

import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement

from famjax.launch.shipped import find


def pins(name: str) -> dict[str, str]:
    """Versions by package."""
    lines = find(name).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_it_has_the_libtpu_that_jax_is_made_for():
    """As jax's own extra for TPUs asks; and all else that the extra wants, at the versions of the other files."""
    tpu, rest = pins("requirements-tpu.txt"), pins("requirements.txt") | pins("requirements-test.txt")
    wanted = [Requirement(text) for text in importlib.metadata.requires("jax")]
    wanted = [one for one in wanted if one.marker is not None and one.marker.evaluate({"extra": "tpu"})]
    assert {"libtpu", "requests"} <= {one.name for one in wanted}
    for one in wanted:
        assert one.specifier.contains((rest | tpu)[one.name]), one
    assert all(rest[name] == version for name, version in tpu.items() if name != "libtpu")


def test_advice_names_extras_of_the_checkout():
    """No index has our famjax: what to install is an extra of the checkout, one that setup.py has."""
    root = Path(__file__).resolve().parents[2]
    extras = set(re.findall(r'^ +"([a-z-]+)": ', (root / "setup.py").read_text(encoding="utf-8"), re.MULTILINE))
    files = [
        *(root / "famjax").rglob("*.py"),
        *(root / "docs").glob("*.md"),
        *(root / "launch").rglob("*.py"),
        root / "README.md",
    ]
    named = set()
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install .?famjax", text), path
        named |= set(re.findall(r"pip install -e '\.\[([a-z-]+)\]'", text))
    assert {"arrow", "data", "eval", "lm-eval", "peers"} <= named <= extras
