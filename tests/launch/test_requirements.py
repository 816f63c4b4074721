"""`requirements-tpu.txt`: what TPU VMs and containers install beside requirements.txt."""

import importlib.metadata

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
