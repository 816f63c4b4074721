"""The table from axis names to mesh axes, and meshes, as far as one device suffices."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from famjax.cli.gin_config import load_model_config
from famjax.config import MESH_AXES, ConfigError, LoraConfig
from famjax.mesh import devices as meshes
from famjax.mesh import sharding
from famjax.nn.execution import GATHERED
from famjax.nn.weights import parameter_axes, parameter_shapes
from tests import tiny


def abstract(*sizes):
    return AbstractMesh(sizes, MESH_AXES)


@pytest.mark.parametrize(
    ("axes", "shape", "sizes", "spec"),
    [
        (("vocab", "embed"), (32, 16), (1, 8, 1), P(None, "fsdp")),
        (("vocab", "embed"), (32, 16), (2, 2, 2), P("tensor", "fsdp")),
        (("layers", "embed", "heads", "head_dim"), (2, 16, 4, 8), (1, 2, 4), P(None, "fsdp", "tensor")),
        (("layers", "embed", "kv_heads", "head_dim"), (2, 16, 1, 8), (1, 2, 4), P(None, "fsdp")),  # multi-query
        (("layers", "embed", "kv_heads", "head_dim"), (2, 16, 2, 8), (1, 2, 4), P(None, "fsdp")),  # 2 over 4
        (("vocab", "embed"), (33, 15), (2, 2, 2), P()),
        (("batch", None), (16, 16), (4, 2, 1), P(("data", "fsdp"))),
        (("batch", None), (12, 16), (4, 2, 1), P("data")),  # 12 divide over 4, not over 8
        (("batch", None), (3, 16), (4, 2, 1), P()),
        (("batch", None), (16, 16), (1, 1, 8), P()),
        (("batch", "embed"), (16, 16), (1, 8, 1), P("fsdp")),  # fsdp shards an array once
        ((), (), (2, 2, 2), P()),
    ],
)
def test_how_an_array_is_cut(axes, shape, sizes, spec):
    """By the rule for each axis name; for an axis that does not divide, mesh axes are dropped, innermost first."""
    assert sharding.partition_spec(axes, shape, abstract(*sizes)) == spec


def test_a_name_without_a_rule_is_an_error():
    """A new weight's axes must be added to the table; they are not silently replicated."""
    with pytest.raises(ConfigError, match="no sharding rule for the axis 'experts'; known are batch, vocab"):
        sharding.partition_spec(("experts",), (8,), abstract(1, 8, 1))


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False, "qk_norm": True, "fam_init": "prefix", "lora": LoraConfig(2)}]
)
def test_every_weight_names_its_axes(changes):
    """One name for each axis of each weight, and a rule for each name."""
    config = tiny.config(**changes)
    axes, shapes = parameter_axes(config), parameter_shapes(config)
    places = sharding.shardings(axes, shapes, abstract(1, 2, 2))
    assert jax.tree.structure(places) == jax.tree.structure(shapes)


@pytest.mark.parametrize("sizes", [(4, 16, 1), (1, 8, 4)])
def test_no_pair_of_lora_is_whole_on_any_device(sizes):
    """The 24B model's A and B, including those of its one key/value head: sharded at least as many ways as fsdp has
    devices, and along axes that a layer gathers, which leaves only the base's sharding over `tensor`."""
    config = load_model_config(["gin/models/fam_24b.gin"])
    config = dataclasses.replace(config, lora=LoraConfig(rank=64))
    axes, shapes = (tree(config)["layers"]["lora"] for tree in (parameter_axes, parameter_shapes))
    mesh = abstract(*sizes)
    places = sharding.shardings(axes, shapes, mesh)
    for name, pair in places.items():
        for part, place in pair.items():
            shape = shapes[name][part].shape
            assert math.prod(shape) >= sizes[1] * math.prod(place.shard_shape(shape))
            gathered = tuple(GATHERED.get(axis, axis) for axis in axes[name][part])
            left = sharding.partition_spec(gathered, shape, mesh)
            assert "fsdp" not in str(left)


def test_optimizer_state_lies_as_its_weight():
    """By path and shape: moments like the weight; means over one axis like the remaining axes; counts replicated."""
    mesh = abstract(1, 2, 4)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    params = {"a": {"w": shape(2, 16, 8)}, "w": shape(16, 8)}
    places = {"a": {"w": NamedSharding(mesh, P(None, "fsdp", "tensor"))}, "w": NamedSharding(mesh, P("tensor"))}
    state = (
        {"mu": params},
        {"rows": {"a": {"w": shape(2, 16)}}, "columns": {"a": {"w": shape(2, 8)}, "w": shape(1)}},
        shape(),
    )
    found = jax.tree.map(lambda leaf: leaf.spec, sharding.like_parameters(state, params, places, mesh))
    assert found[0]["mu"] == {"a": {"w": P(None, "fsdp", "tensor")}, "w": P("tensor")}
    assert found[1]["rows"]["a"]["w"] == P(None, "fsdp")
    assert found[1]["columns"] == {"a": {"w": P(None, "tensor")}, "w": P()}
    assert found[2] == P()


@dataclasses.dataclass(frozen=True)
class Device:
    """A TPU as `make_mesh` sees it. Slices have four chips, in a network of 2 x 2 or in a line."""

    id: int
    process_index: int
    slice_index: int
    in_a_line: bool = False
    platform: str = "tpu"
    device_kind: str = "TPU v5e"
    core_on_chip: int = 0

    @property
    def coords(self):
        place = self.id % 4
        return (place, 0, 0) if self.in_a_line else (place // 2, place % 2, 0)


def test_a_mesh_of_one_device():
    """The default: all axes of size 1, without special cases."""
    mesh = meshes.make_mesh()
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_a_mesh_that_asks_for_too_much():
    """One line with the numbers."""
    there = len(jax.devices())
    with pytest.raises(ConfigError) as error:
        meshes.make_mesh((2, 16, 4))
    expected = f"MESH (data 2, fsdp 16, tensor 4) asks for 128 devices, but this job has {there}; use at most {there}"
    assert str(error.value) == expected


def test_a_mesh_that_leaves_a_process_out():
    """On several hosts every one must take part: a host without work would wait forever."""
    devices = [Device(i, process_index=i // 4, slice_index=0) for i in range(8)]
    with pytest.raises(ConfigError, match="uses 4 of 8 devices, but every process of a job must take part"):
        meshes.make_mesh((4, 1, 1), devices)


@pytest.mark.parametrize("in_a_line", [False, True])
def test_data_runs_across_slices(in_a_line):
    """With two slices, each is one half of `data`, whatever their network; an odd `data` is refused."""
    devices = [Device(i, i // 4, i // 4, in_a_line) for i in range(8)]
    with pytest.raises(ConfigError, match="does not fit 2 slices: `data` spans the slices; use a multiple of 2"):
        meshes.make_mesh((1, 8, 1), devices)
    found = meshes._arrange((2, 2, 2), devices, "")
    assert [{device.slice_index for device in half.flat} for half in found] == [{0}, {1}]
    assert {device.id for device in found.flat} == set(range(8))
