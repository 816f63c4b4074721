"""The child process of a plan: compiles one program for TPU, and reads its HLO and memory analysis.

libtpu is loaded only here, in a process whose environment is set before jax is imported (`child.py`).
"""

import json
import os
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from famjax.attention import memories
from famjax.config import MESH_AXES, TrainConfig
from famjax.config.tpu import Topology
from famjax.mesh.devices import make_mesh
from famjax.nn.weights import parameter_shapes
from famjax.plan import dump
from famjax.plan.child import GIVEN_JSON, RESULT_JSON, libtpu_version
from famjax.plan.programs import PROGRAMS
from famjax.storage.arrays import leaves
from famjax.train.start import targets_of_row
from famjax.train.watching.flops import flops_per_token, peak_of_chip
from famjax.train.watching.norms import group_of


def compile_into(folder: Path, config: TrainConfig, program: str, topology: Topology) -> None:
    """Compiles, and writes `RESULT_JSON` to the folder that also has the compiler's dump (`child.environment`)."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    result = compiled(folder, config, program, topology)
    (folder / RESULT_JSON).write_text(json.dumps(result), encoding="utf-8")


def _end_with(parent: int) -> None:
    """Exits this process, which would otherwise run for minutes, when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def compiled(folder: Path, config: TrainConfig, program: str, topology: Topology) -> dict[str, Any]:
    """Returns raw numbers of one run of the program, as JSON; `summary.py` derives the plan.

    Bytes, cycles, kernels and collectives are those of one device; `tokens`, `parameters`, `flops_per_step` and
    `products` are those of the whole program on all devices.

    A program that does not fit has `needed_bytes` instead of `memory`, and no cycles: its compilation stops before
    code generation.
    """
    options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    devices: Sequence[Any] = topologies.get_topology_desc(str(topology), platform="tpu", **options).devices
    began = time.monotonic()
    lowered = PROGRAMS[program](config, make_mesh(config.mesh_sizes, devices))
    result: dict[str, Any] = {
        "tokens": lowered.tokens, "held": lowered.held, "lower_seconds": time.monotonic() - began,
        "peak_flops_per_chip": peak_of_chip(devices[0].device_kind),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")} | {"libtpu": libtpu_version()},
        "unknown_trips": lowered.unknown_trips, "branch_share": lowered.branch_share,
        "mesh": dict(zip(MESH_AXES, config.mesh_sizes, strict=True)),
    } | _counts(config, program, lowered.tokens)  # fmt: skip
    (folder / GIVEN_JSON).write_text(json.dumps(result), encoding="utf-8")
    began = time.monotonic()
    try:
        result |= _memory(lowered.lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        needed = dump.needed_bytes(str(error))
        if needed is None:
            raise
        result["needed_bytes"] = needed
    result["compile_seconds"] = time.monotonic() - began
    return result | dump.read(folder, result)


def _counts(config: TrainConfig, program: str, tokens: int) -> dict[str, Any]:
    """Returns the numbers of weights by group and of trained weights, and the model FLOPs of one run.

    Model FLOPs of training are those of `flops_per_token`. Those of inference are 2 per weight and token, plus, for a
    memory other than FAM, those that its weights do not account for (`Memory.flops`).
    """
    weights = leaves(parameter_shapes(config.model))
    groups: dict[str, int] = {}
    for path, leaf in weights.items():
        groups[group_of(path)] = groups.get(group_of(path), 0) + leaf.size
    trained = sum(leaf.size for path, leaf in weights.items() if not config.tuning.settings_of(path)["frozen"])
    if program == "train":
        work = flops_per_token(config, targets_of_row(config)) * tokens
        return {"parameters": groups, "trained_parameters": trained, "flops_per_step": work}
    model, other = config.model, memories.of(config.model.memory)
    layers = sum(groups.get(name, 0) for name in ("attention", "feed_forward"))
    if other is not memories.NOTHING:
        layers += sum(leaf.size for path, leaf in weights.items() if path.startswith("layers/memory/"))
    vocabulary = model.vocab_size * model.d_model if program != "prefill" else 0
    of_token = 2.0 * (layers + vocabulary) + model.num_layers * other.flops(model)
    return {"parameters": groups, "trained_parameters": 0, "flops_per_step": of_token * tokens}


def _memory(program: Any) -> dict[str, Any]:
    found, cost = program.memory_analysis(), program.cost_analysis()
    fields = ("argument", "output", "alias", "temp", "generated_code")
    memory = {name: int(getattr(found, f"{name}_size_in_bytes")) for name in fields}
    return {"memory": memory, "flops_loops_once": float((cost or {}).get("flops", 0))}
