"""Names of topologies, and meshes that fit them."""

import math

import pytest

from famjax.config import ConfigError
from famjax.plan import topology
from famjax.plan.topology import check_mesh, meshes, planned, propose


@pytest.mark.parametrize("name", ["v5p:4x4x5", "v7:2x2", "v5e:2x2x2", "v5p", "v4:2x2x1"])
def test_unknown_names_tell_the_known_ones(name):
    """One line with the mistake, and all that can be planned with chips, hosts and memory."""
    with pytest.raises(ConfigError) as error:
        planned(name)
    assert "\n" not in str(error.value)
    for known in ("v5e:1x1 to 16x16", "v5p:2x2x1 to 8x8x8", "512 chips", "64 hosts", "31.24 GiB per chip"):
        assert known in str(error.value)


@pytest.mark.parametrize(
    ("name", "slices", "devices"), [("v5e:4x4", 1, 16), ("v5p:4x4x4", 2, 128), ("tpu7x:2x2x1", 1, 8)]
)
def test_a_mesh_has_all_devices(name, slices, devices):
    """A mesh with another device count is refused in a line with the needed count and a valid mesh."""
    there = planned(name, slices)
    with pytest.raises(ConfigError, match=f"is {devices // 4} devices, but .* has {devices} devices") as error:
        check_mesh({"fsdp": devices // 4}, there, 128, 1)
    assert str(propose(there, 128)) in str(error.value)
    check_mesh(propose(there, 128), there, 128, 1)


def test_data_runs_across_slices():
    """A mesh of the right product whose `data` does not divide over the slices is refused, too."""
    with pytest.raises(ConfigError, match="multiple of their number"):
        check_mesh({"data": 1, "fsdp": 8}, planned("v5e:2x2", 2), 128, 1)


@pytest.mark.parametrize("rows", [1, 6, 128])
@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:4x8", "v5p:4x4x4"])
def test_meshes_have_all_devices_and_whole_rows(name, rows):
    """Every mesh multiplies to the devices, and rows divide over data x fsdp; `tensor` is a last resort."""
    there = planned(name)
    found = meshes(there, rows)
    assert found
    for mesh in found:
        assert math.prod(mesh.values()) == there.devices
        assert rows % (mesh["data"] * mesh["fsdp"]) == 0
    assert found[0]["tensor"] == min(mesh["tensor"] for mesh in found)
    assert found[0]["fsdp"] <= topology.LONGEST_FSDP
