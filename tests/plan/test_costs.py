"""What is read from the compiler's text: runs of computations, cycles, collectives, kernels, products."""

from pathlib import Path
from typing import Any

import pytest

from famjax.plan import costs, dump, tensors
from famjax.plan.hlo import Program, byte_sizes
from famjax.plan.parts import part_of

# As the compiler writes it: two layers, each with a scan over three blocks, a gather that is spread over two fusions,
# a kernel, and a loop that ends by its data.
COMPILED = Path(__file__).with_name("compiled.hlo.txt")
# As it is given to the compiler: names in a loop's body are relative to the loop.
GIVEN = Path(__file__).with_name("given.hlo.txt")


def program(path: Path = COMPILED, **options: Any) -> Program:
    return Program(path.read_text().splitlines(), **options)


def test_runs_are_products_of_nested_trip_counts():
    """runs(body) = runs(caller) * trips, through a fused comparison, and a bound that the loop carries along."""
    runs = program().runs
    assert runs["main"] == 1
    assert runs["layers_body"] == 2
    assert runs["blocks_body"] == 2 * 3
    assert runs["fused_start"] == 2


def test_a_loop_that_ends_by_its_data_runs_as_often_as_one_says():
    """Its turns are not in the text; a branch in it runs in its share of them."""
    runs = program(unknown_trips=64, branch_share=1 / 16).runs
    assert runs["until_body"] == 64
    assert runs["full"] == runs["keep"] == 4
    assert program().runs["full"] == 1


def test_cycles_of_parts():
    """Every estimate times the runs of its computation; FAM's feed-forward is FAM's."""
    assert costs.cycles_by_part(program(unknown_trips=64, branch_share=1 / 16)) == {
        "FAM recurrence": 6 * 100 + 4 * 80,
        "feed-forward": 2 * 1000,
        "other": 7,
    }


def test_collectives_are_counted_once_each_time_they_run():
    """By hand: a gather of 64 x 64 bfloat16 in two pieces, a permutation, an all-reduce in two, a reduce-scatter."""
    found = {one.kind: one for one in costs.collectives(program())}
    assert len(costs.collectives(program())) == len(found) == 4
    gather, permute = found["all-gather"], found["collective-permute"]
    assert (gather.runs, gather.payload, gather.devices) == (2, 64 * 64 * 2, 4)
    assert gather.sent == gather.bytes * 3 / 4
    assert (permute.runs, permute.payload, permute.part) == (6, 8 * 64 * 4, "FAM recurrence")
    assert permute.sent == permute.bytes
    reduce, scatter = found["all-reduce"], found["reduce-scatter"]
    assert (reduce.runs, reduce.payload, reduce.devices, reduce.part) == (1, 8 * 64 * 4, 4, "optimizer")
    assert reduce.sent == 2 * reduce.bytes * 3 / 4
    assert (scatter.payload, scatter.devices, scatter.part) == (4 * 2 * 64 * 4, 4, "loss")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", 2),
        ("replica_groups={{0,1,2,3,4,5}}", 6),
        ("replica_groups=[4,16]<=[64]", 16),
        ("replica_groups=[16,4]<=[4,16]T(1,0), dimensions={0}", 4),
        ("replica_groups=mesh['data'=4,'fsdp'=16] {'fsdp'}, dimensions={1}", 16),
        ("replica_groups=mesh['data'=4,'fsdp'=16] {'data','fsdp'}", 64),
        ("replica_groups=mesh['a'=16] {'a':(1)4}", 4),
        ("source_target_pairs={{0,1},{1,2},{2,0}}", 2),
    ],
)
def test_group_sizes(text, size):
    """Groups of devices in each of the ways that the compiler writes them."""
    assert costs.group_size(f"(%x), channel_id=3, {text}, metadata={{}}") == size


def test_kernels_have_the_costs_that_they_state():
    """A hand-written kernel has no cycles; its runs and its author's numbers are kept."""
    (kernel,) = costs.kernels(program())
    assert kernel == costs.Kernel("fused_attention", 2, 5000, 300, "block attention")


def test_products_of_the_given_program():
    """2 * result * summed axis for each product, loops included: 5 of [8,64] x [64,64], 2 of [4,32] x [32,16].

    And [2,64] x [64,64] on each of the 2 x 3 devices that a shard_map has along its axes, whatever `tensor` is.
    """
    assert costs.products(program(GIVEN, mesh={"data": 2, "fsdp": 3, "tensor": 5})) == {
        "feed-forward": 2 * 3 * 2 * 2 * 64 * 64,
        "FAM recurrence": 5 * 2 * 8 * 64 * 64,
        "block attention": 2 * (2 * 4 * 16) * 32,
    }


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(step)/jvp()/while/body/projections/dot_general", "projections"),
        ("jit(step)/transpose(jvp(loss))/while/body/logits/dot_general", "loss"),
        (
            "jit(step)/transpose(jvp())/while/body/checkpoint/fam_recurrence/while/body/projections/mul",
            "FAM recurrence",
        ),
        ("jit(step)/jvp()/while/body/block_attention/reshape", "block attention"),
        ("jit(step)/jvp()/while/body/my_projections_2/reshape", "other"),
        ("", "other"),
    ],
)
def test_parts(path, part):
    """The innermost scope names the part, but FAM's recurrence owns all that is in it."""
    assert part_of(path) == part


def test_bytes_of_shapes():
    """Logical sizes; tuples are flattened, comments and layouts are not read."""
    assert byte_sizes("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[], pred[5], s4[3])") == [12, 4, 5, 2]


ASSIGNMENT = """allocation 0: size 2048, page 0, parameter 0, shape |f32[8,64]| at ShapeIndex {}, maybe-live-out:
 value: <1 a @0> (size=2048,offset=0): f32[8,64]{1,0:T(8,128)}
allocation 1: size 9000, page 0, preallocated-temp:
 value: <2 ff @0> (size=2048,offset=0): f32[8,64]{1,0}
 value: <3 fam @0> (size=2048,offset=0): f32[8,64]{1,0}
 value: <4 ff @0> (size=2048,offset=4096): f32[8,64]{1,0}
 value: <5 loop.4{1} @0> (size=4096,offset=2048): bf16[64,32]{1,0}
allocation 2: size 90000, color 1, page 0, preallocated-temp:
 value: <6 start @1> (size=90000,offset=0): f32[150,150]{1,0:S(1)}
allocation 3: size 30, page 0, output shape is |f32[]|, maybe-live-out:
allocation 4: size 70000, page 0, thread-local:
""".splitlines()


def test_assigned_bytes():
    """What is in HBM and lives as long as the program, by hand: other memories and a fusion's own values are not."""
    sizes = {"argument": 2048, "output": 30, "alias": 0, "temp": 9000, "generated_code": 0}
    assert dump.assigned_bytes(ASSIGNMENT) == sizes


def test_needed_bytes():
    """The compiler's message of too little memory, and any other."""
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory (18.5G) exceeds available HBM (15.75G)."
    assert dump.needed_bytes(message) == int(18.5 * 2**30)
    assert dump.needed_bytes("INTERNAL: something else (3.0G)") is None


def test_largest_tensors():
    """Places of HBM by size, each by the first that uses it; equal ones are counted; other memories are not."""
    found = tensors.largest(ASSIGNMENT, program())
    assert [(one["bytes"], one["shape"], one["part"], one["count"]) for one in found] == [
        (4096, "bf16[64,32]", "FAM recurrence", 1),
        (2048, "f32[8,64]", "feed-forward", 2),
        (2048, "f32[8,64]", "embedding", 1),
    ]
    assert found[2]["path"] == "state.params['embedding']"
