"""Trainings on eight simulated devices, for `test_sharding.py`, which runs this file in a child process.

    python -m tests.train.sharded_runs FOLDER [slow]

JAX fixes the number of devices at start-up, and each program takes seconds to compile. So all cases run in one process,
one after the other, and write their results to FOLDER/results.pickle; the slow ones, if requested, to
FOLDER/slow.pickle.
"""

import dataclasses
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from famjax.attention.fused import Kernel
from famjax.attention.memory import state_axes
from famjax.cli.gin_config import load_model_config
from famjax.config import DataConfig, LoraConfig, ModelConfig, OptimizerConfig, PassKeyConfig, TrainConfig
from famjax.data.batch import Batch
from famjax.mesh import sharding
from famjax.mesh.devices import make_mesh
from famjax.mesh.on_mesh import OnMesh
from famjax.nn.execution import Execution
from famjax.nn.weights import parameter_shapes
from famjax.plan.hlo import Program
from famjax.storage import checkpoint
from famjax.train import loop, optim
from famjax.train import state as states
from famjax.train.start import sharded_shapes
from famjax.train.step import compilations, jit_step
from famjax.train.watching import guard
from famjax.train.watching.diagnostics import jit_diagnostics
from tests import tiny
from tests.attention.test_fused import both, random_case
from tests.train import beginning

STEPS, ROWS, LENGTH = 10, 16, 12
KV_HEADS = {"multi-head": 4, "grouped": 2, "multi-query": 1}
# (model, mesh data x fsdp x tensor, microbatches). With the slow ones every mesh is combined with FAM and BSWA and with
# both kinds of batches; every kind of heads with tensor = 4, which divides only multi-head; grouped also with 2.
CASES = [
    ("fam grouped", (2, 2, 2), 2),
    ("bswa multi-query", (1, 2, 4), 2),
    ("stream grouped", (2, 2, 2), 2),
    ("gate grouped", (2, 2, 2), 2),
]
SLOW_CASES = [
    ("bswa multi-head", (1, 8, 1), 2),
    ("fam multi-head", (8, 1, 1), 2),
    ("bswa multi-query", (8, 1, 1), 1),
    ("fam multi-query", (1, 8, 1), 1),
    ("bswa multi-query", (2, 2, 2), 1),
    ("fam multi-head", (1, 2, 4), 1),
    ("fam grouped", (1, 2, 4), 1),
    ("stream multi-query", (1, 8, 1), 1),
    ("stream-infini grouped", (2, 2, 2), 2),
    ("deltanet multi-query", (1, 2, 4), 1),
    ("lora grouped", (2, 2, 2), 2),
    ("rmt grouped", (2, 2, 2), 2),
    ("autocompressor multi-query", (1, 2, 4), 1),
    ("stream-armt grouped", (2, 2, 2), 2),
    ("retrieval grouped", (1, 2, 4), 1),
    ("stream-static grouped", (2, 2, 2), 2),
    ("stream-gated grouped", (2, 2, 2), 2),
    ("stream-noisy grouped", (2, 2, 2), 1),
    ("stream-losses grouped", (2, 2, 2), 2),
]
# What one device computes of it changes by more than the tolerance if its weights are rounded once more.
ILL_CONDITIONED = ("deltanet", "stream-armt", "stream-static", "stream-gated", "stream-noisy", "autocompressor")
# Settings of other memories than FAM, and of the paper's alternatives.
_TOKENS = {"memory_segments": 0, "fam_length": 0, "memory_tokens": 2}
MEMORIES: dict[str, dict[str, Any]] = {
    "bswa": {"fam_length": 0},
    "stream-infini": {"kind": "infini", "fam_length": 0},
    "deltanet": {"kind": "deltanet", "fam_length": 0},
    "rmt": {"kind": "rmt", **_TOKENS},
    "autocompressor": {"kind": "autocompressor", "summary_blocks": 2, **_TOKENS},
    "stream-armt": {"kind": "armt", "memory_key_dim": 3, **_TOKENS},
    "retrieval": {"kind": "retrieval", "fam_length": 0, "memory_segments": 0, "retrieval_blocks": 3},
    "stream-static": {"fam_update": "static", "segments_hold": "outputs"},
    "stream-gated": {"fam_update": "gated"},
    # Noise is drawn for each microbatch, so the mesh has one, as the single device has.
    "stream-noisy": {"fam_update": "gated", "fam_update_noise": 0.5, "fam_noise": 0.1},
    "stream-losses": {"fam_diversity_loss": 3.0, "fam_reconstruction_loss": 3.0},
}
RESUMED = {
    "model": tiny.config(vocab_size=128, block_size=32, memory_segments=0, fam_length=2, random_state_passing=0.5),
    "sequence_length": 320, "batch_size": 8, "steps": 4, "log_period": 1, "checkpoint_period": 2,
    "passkey": PassKeyConfig(stages=(1,), text_tokens=8),
    "optimizer": OptimizerConfig(schedule="constant", warmup_steps=0),  # the same for two steps and for four
}  # fmt: skip
RESUMED_MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def model_config(name: str) -> ModelConfig:
    memory, heads = name.split()
    return tiny.config(
        vocab_size=32, d_model=16, d_ff=32, num_heads=4, num_kv_heads=KV_HEADS[heads], qk_norm=True,
        random_state_passing=0.5, fam_gate=memory == "gate",
        lora=LoraConfig(rank=3 if memory in ("lora", "gate") else 0), **MEMORIES.get(memory, {}),
    )  # fmt: skip


def training(name: str, mesh: tuple[int, int, int], microbatches: int) -> TrainConfig:
    """A large epsilon of Adam would hide differences; its usual one needs gradients far from zero. With a gate, which
    is trained, the base is frozen and is its own teacher."""
    gate = name.startswith("gate")
    config = TrainConfig(
        model_dir="none", model=model_config(name), sequence_length=LENGTH, batch_size=ROWS, steps=STEPS, seed=3,
        optimizer=OptimizerConfig(
            learning_rate=3e-3, schedule="constant", warmup_steps=3, trained="lora" if gate else "all"
        ),
        mesh=dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)), microbatches=microbatches,
        loss_chunk=0 if microbatches == 1 else 5, z_loss=1e-3,
        task="text" if name.startswith("stream") else "passkey",
        data=DataConfig(sources=("not read",), stream_share=1.0) if name.startswith("stream") else DataConfig(),
        fam_opening_steps=0, distillation=0.5 if gate else 0.0,
    )  # fmt: skip
    config.validate()
    return config


def batch(name: str, step: int) -> Batch:
    """Returns rows of random tokens, of different lengths and weights, in which documents start. BSWA's have losses at
    some positions, FAM's at all. Streams are full, and some rows continue the previous step, of which they have kept a
    part."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 32, (ROWS, LENGTH)).astype(np.int32)
    count = rng.integers(1, LENGTH + 1, ROWS).astype(np.int32)
    starts = rng.random((ROWS, LENGTH // 4)) < 0.3
    if name.startswith("stream"):
        count, starts[:, 0] = np.full(ROWS, LENGTH, np.int32), starts[:, 0] | (step == 0)
    columns = 7 if name.startswith("bswa") else LENGTH
    positions = rng.integers(0, LENGTH, (ROWS, columns)).astype(np.int32) if columns < LENGTH else None
    kept = rng.integers(1, LENGTH // 4 + 1, ROWS).astype(np.int32) if name.startswith("stream") else None
    targets = rng.integers(0, 32, (ROWS, columns)).astype(np.int32)
    weights = (rng.random((ROWS, columns)) * rng.integers(0, 2, (ROWS, 1))).astype(np.float32)
    return Batch(tokens, count, starts, positions, targets, weights, kept)


def run(name: str, sizes: tuple[int, int, int], microbatches: int, seed: int | None = None) -> dict[str, Any]:
    """Runs ten steps. Adam's first moment after the first step is a tenth of the (clipped) gradient."""
    config = training(name, sizes, microbatches)
    mesh = make_mesh(sizes)
    tx = optim.optimizer(config.optimizer, STEPS)
    params = tiny.parameters(config.model) if seed is None else tiny.perturbed(tiny.parameters(config.model), seed)
    state = beginning.state(config, tx, mesh, params)
    step = jit_step(config, tx, mesh)
    out: dict[str, Any] = {"loss": [], "z_loss": [], "gradient_norm": [], "correct": []}
    for number in range(STEPS):
        state, metrics = step(state, batch(name, number))
        for key, values in out.items():
            values.append(np.asarray(metrics[key]))
        if number == 0:
            out_gradient = jax.device_get(state.opt_state[1].mu)
    out |= {"gradient": out_gradient, "params": jax.device_get(state.params), "compilations": compilations(step)}
    out |= {"passed_fam": np.asarray(state.passed_fam), "passed_updates": int(state.passed_updates)}
    out |= {"memory": jax.device_get(state.memory)}
    parts = lambda tree: jax.tree.map(lambda leaf: leaf.sharding.shard_shape(leaf.shape), tree)
    return out | {"parts": parts(state.params), "moment_parts": parts(state.opt_state[1].mu), "state": state}


def created(sizes: tuple[int, int, int]) -> Any:
    """Returns the random weights on a mesh, and the shapes of one device's shards during initialisation."""
    config = training("fam grouped", sizes, 1)
    state = states.create(config, optim.optimizer(config.optimizer, STEPS), make_mesh(sizes))
    parts = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, state.params)
    return jax.device_get(state.params), parts


def moved(folder: Path, state: states.TrainState) -> Any:
    """Reads a checkpoint of `fam grouped`, written on 2x2x2, on 1x2x4 and 8x1x1: values and shardings."""
    config = training("fam grouped", (2, 2, 2), 1)
    tx = optim.optimizer(config.optimizer, STEPS)
    rest = {"opt_state": state.opt_state, "passed_fam": state.passed_fam}
    checkpoint.save_model(folder / "moved", config.model, state.params, step=STEPS, training=rest, progress={})
    found = []
    for sizes in ((1, 2, 4), (8, 1, 1)):
        mesh = make_mesh(sizes)
        where = states.abstract(config, tx, mesh)
        _, params = checkpoint.load_model(folder / "moved", lambda model, mesh=mesh: sharded_shapes(model, mesh))
        target = (where.params, {"opt_state": where.opt_state, "passed_fam": where.passed_fam})
        back = checkpoint.restore_training(folder / "moved", *target)[0].training
        placed = jax.tree.map(lambda leaf, goal: leaf.sharding.is_equivalent_to(goal.sharding, leaf.ndim),
                              (params, back), target)  # fmt: skip
        found.append((jax.device_get((params, back)), all(jax.tree.leaves(placed))))
    return jax.device_get((state.params, rest)), found


def memory_on_a_mesh() -> Any:
    """Reads a text in two calls on 2x2x2, with `MemoryState` sharded by the rules between them, and on one device."""
    config = model_config("fam grouped")
    params, tokens = tiny.parameters(config), tiny.tokens(config, 8, 16)
    state = tiny.initial_state(config, params, 8)
    hidden, state = tiny.whole(config, params, tokens[:, :8], state)
    one = tiny.whole(config, params, tokens[:, 8:], state)
    mesh = make_mesh((2, 2, 2))
    places = sharding.shardings(state_axes(config.memory), state, mesh)
    weights = jax.tree.map(lambda leaf: leaf.sharding, sharded_shapes(config, mesh))

    def forward(params: Any, tokens: Any, state: Any) -> Any:
        return tiny.build(config, params, Execution.of(config, OnMesh(mesh)))(tokens, state)

    whole = jax.jit(
        forward, in_shardings=(weights, sharding.by_rows(mesh), places),
        out_shardings=(sharding.by_rows(mesh), places),
    )  # fmt: skip
    start = jax.device_get(tiny.initial_state(config, params, 8))
    hidden_first, state = whole(params, tokens[:, :8], start)
    second = whole(params, tokens[:, 8:], state)
    parts = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data.shape, second[1])
    shapes = jax.tree.map(lambda leaf: leaf.shape, second[1])
    pairs = [(np.asarray(hidden_first), np.asarray(hidden)), jax.device_get((second[0], one[0]))]
    pairs += zip(*(map(np.asarray, jax.tree.leaves(x[1])) for x in (second, one)), strict=True)
    return pairs, shapes, parts


def looked_at(sizes: tuple[int, int, int]) -> Any:
    """Returns the diagnostics of the memory before the first step, with one microbatch of two, and the explanation of a
    step in which layer 1's weights are too large."""
    config, mesh = training("fam grouped", sizes, 2), make_mesh(sizes)
    tx = optim.optimizer(config.optimizer, STEPS)
    params = jax.tree.map(np.array, tiny.parameters(config.model))
    put = lambda: beginning.state(config, tx, mesh, params)
    rows = jax.tree.map(lambda x: jax.device_put(x, sharding.by_rows(mesh)), batch("fam grouped", 1))
    diagnosed = jit_diagnostics(config, mesh)(put(), rows)
    params["layers"]["feed_forward"]["down"][1] = 3e38
    return diagnosed, guard.explain(config, mesh, put(), rows, math.nan, {"gradient": {}, "update": {}})


def large() -> Any:
    """Returns, for the 24B model on fsdp 8, by optimizer: {path: (bytes, shards)} of weights and optimizer state."""
    model = load_model_config(["gin/models/fam_24b.gin"])
    mesh, found = make_mesh((1, 8, 1)), {}
    for name in ("adamw", "adafactor"):
        config = TrainConfig(model_dir="none", model=model, optimizer=OptimizerConfig(name=name))
        state = states.abstract(config, optim.optimizer(config.optimizer, 10), mesh)
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state, state.passed_fam)):
            size = math.prod(leaf.shape)
            ways = size / max(math.prod(leaf.sharding.shard_shape(leaf.shape)), 1)
            found[name + jax.tree_util.keystr(path)] = (size * leaf.dtype.itemsize, ways)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(model)))
    return found, total


def fused_attention() -> Any:
    """Returns outputs and gradients of the fused kernel (interpreted) on 2x2x2, and of `attend` on one device: with two
    key/value heads, sharded over `tensor`, and with one, whose group of query heads is sharded."""
    mesh = make_mesh((2, 2, 2))
    kernel = Kernel("interpret", OnMesh(mesh).per_device)
    found = []
    for kv_heads, group in ((2, 1), (1, 2)):
        case = random_case(kv_heads, B=4, K=kv_heads, G=group, memory_segments=1)
        by_kernel, by_attend = both(case, kernel)
        arrays = jax.device_put(case[0], sharding.replicated(mesh))
        found.append(jax.device_get((by_kernel(arrays), by_attend(case[0]))))
    return found


def communication() -> list[tuple[str, str, float]]:
    """Returns, for a step of `fam multi-head` on fsdp 8, with all heads, its logits in chunks: (kind, shape, runs) of
    every collective."""
    config = dataclasses.replace(training("fam multi-head", (1, 8, 1), 1), loss_chunk=5)
    mesh = make_mesh((1, 8, 1))
    tx = optim.optimizer(config.optimizer, STEPS)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch("fam multi-head", 0))
    compiled = jit_step(config, tx, mesh).lower(states.abstract(config, tx, mesh), rows).compile()
    found = Program(compiled.as_text().splitlines()).instructions()
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    return [(one.opcode, one.shape, runs) for one, runs, _ in found if one.opcode.removesuffix("-start") in kinds]


def trainings(cases: list[tuple[str, tuple[int, int, int], int]], folder: Path) -> dict[Any, Any]:
    """Returns the result of `run` for each case, and for each model on one device."""
    results: dict[Any, Any] = {}
    for name in sorted({model for model, _, _ in cases}):
        results[name] = run(name, (1, 1, 1), 1)
        del results[name]["state"]
        if name.startswith(ILL_CONDITIONED):
            results[name, "perturbed"] = [run(name, (1, 1, 1), 1, seed) for seed in range(3)]
            for other in results[name, "perturbed"]:
                del other["state"]
    for case in cases:
        results[case] = run(*case)
        state = results[case].pop("state")
        if case == ("fam grouped", (2, 2, 2), 2):
            results["moved"] = moved(folder, state)
    return results


def main(folder: Path) -> None:
    results: dict[Any, Any] = {"devices": len(jax.devices())}
    results["large"] = large()
    results["created"] = [created(sizes) for sizes in ((1, 1, 1), (2, 2, 2))]
    results["memory"] = memory_on_a_mesh()
    results["fused"] = fused_attention()
    results["communication"] = communication()
    results["looked at"] = [looked_at(sizes) for sizes in ((1, 1, 1), (2, 2, 2))]
    results |= trainings(CASES, folder)
    loop.train(TrainConfig(model_dir=str(folder / "resumed"), **RESUMED | {"steps": 2}, mesh=RESUMED_MESH), "# run\n")
    write(folder / "results.pickle", results)


def write(path: Path, results: dict[Any, Any]) -> None:
    with open(path, "wb") as file:
        pickle.dump(results, file)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if sys.argv[2:] == ["slow"]:
        write(place / "slow.pickle", trainings(SLOW_CASES, place))
    else:
        main(place)
