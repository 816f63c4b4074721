"""The table of TPU slices, compared with Google Cloud's documentation."""

import math

import pytest

from famjax.config import ConfigError
from famjax.config.tpu import CHIPS, of_accelerator_type, parse, shapes


@pytest.mark.parametrize(
    ("topology", "chips", "devices", "hosts", "accelerator_type", "gke_topology"),
    [
        ("v4:2x2x1", 4, 4, 1, "v4-8", "2x2x1"),
        ("v4:4x4x8", 128, 128, 32, "v4-256", "4x4x8"),
        ("v5e:1x1", 1, 1, 1, "v5litepod-1", "1x1"),
        ("v5e:2x4", 8, 8, 1, "v5litepod-8", "2x4"),
        ("v5e:16x16", 256, 256, 64, "v5litepod-256", "16x16"),
        ("v5p:2x2x2", 8, 8, 2, "v5p-16", "2x2x2"),
        ("v5p:4x4x4", 64, 64, 16, "v5p-128", "4x4x4"),
        ("v5p:16x16x24", 6144, 6144, 1536, "v5p-12288", "16x16x24"),
        ("v6e:8x4", 32, 32, 8, "v6e-32", "4x8"),
        ("tpu7x:2x2x1", 4, 8, 1, "tpu7x-8", "2x2x1"),
        ("tpu7x:4x4x4", 64, 128, 16, "tpu7x-128", "4x4x4"),
    ],
)
def test_slices_as_documented(topology, chips, devices, hosts, accelerator_type, gke_topology):
    """Chips, JAX devices and hosts of a slice, and its two names in Google Cloud."""
    slice_ = parse(topology)
    assert (slice_.chips, slice_.devices, slice_.hosts) == (chips, devices, hosts)
    assert (slice_.accelerator_type, slice_.gke_topology) == (accelerator_type, gke_topology)
    assert str(slice_) == topology
    found = of_accelerator_type(accelerator_type)
    assert (found.chips, found.hosts) == (chips, hosts)


def test_several_slices_have_as_many_hosts_and_devices():
    """A job of n slices has n times the hosts and devices of one; names stay those of a slice."""
    one, four = parse("v5e:4x4"), parse("v5e:4x4", slices=4)
    assert (four.chips, four.devices, four.hosts) == (64, 64, 16)
    assert four.hosts_per_slice == one.hosts and four.accelerator_type == one.accelerator_type


@pytest.mark.parametrize("chip", CHIPS.values(), ids=str)
def test_the_shape_taken_for_a_type_is_the_most_compact(chip):
    """An accelerator type stands for the shape whose sides have the smallest sum, of all with this number of chips."""
    for shape in shapes(chip):
        if math.prod(shape) <= 512:
            named = of_accelerator_type(parse(f"{chip.name}:{'x'.join(map(str, shape))}").accelerator_type)
            rivals = [other for other in shapes(chip) if math.prod(other) == math.prod(shape)]
            assert sum(named.shape) == min(map(sum, rivals))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v5p:3x4x4", "there is no v5p slice of 3x4x4 chips; nearest are 2x4x4 and 4x4x4"),
        ("v5p:4x4", "the topology 'v5p:4x4' does not have the 3 axes of v5p; for example v5p:4x4x4"),
        ("v5e:0x4", "the topology 'v5e:0x4' does not have the 2 axes of v5e; for example v5e:4x4"),
        ("v5p", "the topology 'v5p' is not written VERSION:SHAPE; for example v5p:4x4x4 or v5e:4x4"),
        ("v5x:4x4", "TPU version 'v5x' is not one of v4, v5e, v5p, v6e, tpu7x; did you mean 'v5p'?"),
        ("v5e:4x4;rm", "the topology 'v5e:4x4;rm' is not written VERSION:SHAPE; for example v5p:4x4x4 or v5e:4x4"),
    ],
)
def test_mistakes_in_a_topology_are_told(text, said):
    """One line says what is wrong and which values are valid."""
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value) == said


def test_mistakes_in_an_accelerator_type_are_told():
    """The error lists the nearest sizes, or the known names."""
    with pytest.raises(ConfigError, match="there is no accelerator type v5p-100; nearest are v5p-128 and v5p-64"):
        of_accelerator_type("v5p-100")
    with pytest.raises(ConfigError, match="the accelerator type 'a100-8' is not one of v4-N, v5litepod-N"):
        of_accelerator_type("a100-8")
    with pytest.raises(ConfigError, match="slices is 0; it must be at least 1"):
        parse("v5e:4x4", slices=0)
