"""Several plans of one job: by sequence length, or a search for a mesh, microbatches and a remat policy.

A candidate is a list of gin bindings, which can be given to `famjax train` unchanged.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from famjax.config import REMAT_POLICIES, ConfigError, TrainConfig
from famjax.config.tpu import Topology
from famjax.plan import child
from famjax.plan.summary import summarise
from famjax.plan.topology import meshes

# Called with a description of each compilation before it begins.
Tell = Callable[[str], None]
# Candidates of a search that are compiled completely, which takes ten times as long as buffer assignment.
FINISHED = 2


@dataclasses.dataclass(frozen=True)
class Job:
    """The job to plan.

    Attributes:
      program: `train`, `prefill`, `decode` or `eval`.
      topology: the TPU slices.
      configured: maps additional gin bindings to the configuration.
      command: maps additional gin bindings and a folder to the child's command line.
      remat: the gin setting of the model's remat policy.
    """

    program: str
    topology: Topology
    configured: Callable[[Sequence[str]], TrainConfig]
    command: Callable[[Sequence[str], Path], Sequence[str]]
    remat: str = "ModelConfig.remat"

    def plan(self, bindings: Sequence[str], keep: Path | None = None, quick: bool = False) -> dict[str, Any]:
        """Returns a plan with additional gin bindings; other arguments and errors are those of `child.run`."""
        config = self.configured(bindings)
        config.validate()
        raw = child.run(lambda folder: self.command(bindings, folder), keep, quick)
        return {"settings": list(bindings)} | summarise(raw, config, self.program, self.topology)


def lengths(job: Job, config: TrainConfig, wanted: Sequence[int], tell: Tell, quick: bool) -> list[dict[str, Any]]:
    """Returns plans for these sequence lengths, at equal tokens per step, but at least one row per device. Raises
    `ConfigError` if a length is not a multiple of the block size, before anything is compiled."""
    settings = [of_length(config, length) for length in wanted]
    for one in settings:
        job.configured(one).validate()
    found = []
    for i, (length, one) in enumerate(zip(wanted, settings, strict=True)):
        tell(f"{length:,} tokens ({i + 1} of {len(wanted)}),")
        found.append(job.plan(one, quick=quick))
    return found


def of_length(config: TrainConfig, length: int) -> list[str]:
    """Returns the gin bindings for rows of `length` tokens. Raises `ConfigError` unless these are whole blocks."""
    S = config.model.memory.block_size
    if length < 1 or length % S:
        raise ConfigError(f"--lengths {length} is not a positive multiple of block_size {S}")
    data, fsdp, _ = config.mesh_sizes
    least = data * fsdp
    rows = max(1, config.batch_size * config.sequence_length // (length * least))
    microbatches = math.gcd(config.microbatches, rows)
    return [
        f"TASK_FEATURE_LENGTHS={{'targets': {length}}}", f"BATCH_SIZE={rows * least}", f"MICROBATCHES={microbatches}"
    ]  # fmt: skip


def search(job: Job, config: TrainConfig, tries: int, tell: Tell, quick: bool) -> list[dict[str, Any]]:
    """Returns the plans of the tried candidates, those that fit first, the fastest first.

    At most `tries` candidates, in the order of `candidates`, are compiled up to buffer assignment, which shows whether
    they fit, and a lower bound of the time. Unless `quick`, the `FINISHED` best that fit are then compiled completely
    for an estimate. If a mesh fits, it is not tried with more microbatches, which would only gather weights more often.
    """
    found: list[dict[str, Any]] = []
    done: set[tuple[str, str]] = set()
    for mesh, remat, microbatches in candidates(job.topology, config):
        if len(found) == tries:
            break
        if (str(mesh), remat) in done:
            continue
        settings = [f"MESH={mesh}", f"MICROBATCHES={microbatches}", f"{job.remat}='{remat}'"]
        tell(f"{len(found) + 1} of at most {tries}: {', '.join(settings)},")
        found.append(job.plan(settings, quick=True))
        if found[-1]["fits"]:
            done.add((str(mesh), remat))
    found.sort(key=lambda plan: (not plan["fits"], plan["least_step_seconds"] or plan["peak_bytes_per_device"]))
    best = [] if quick else [plan for plan in found[:FINISHED] if plan["fits"]]
    for i, plan in enumerate(best):
        tell(f"{i + 1} of the {len(best)} best completely,")
        found[i] = job.plan(plan["settings"])
    # The complete compilation has the last word on the memory; without room there is no estimate.
    found[: len(best)] = sorted(found[: len(best)], key=lambda plan: plan["estimated_step_seconds"] or math.inf)
    return sorted(found, key=lambda plan: not plan["fits"])


def candidates(topology: Topology, config: TrainConfig) -> list[tuple[dict[str, int], str, int]]:
    """Returns (mesh, remat, microbatches), the most promising first: few microbatches, early in `meshes`, full remat.

    Only the first six meshes are candidates. Microbatches are powers of two that divide the rows per device.
    """
    rows = config.batch_size
    found = []
    for place, mesh in enumerate(meshes(topology, rows)[:6]):
        per_device = rows // (mesh["data"] * mesh["fsdp"])
        powers = [2**i for i in range(per_device.bit_length()) if per_device % 2**i == 0]
        for remat in ("full", *(policy for policy in REMAT_POLICIES[::-1] if policy not in ("full", "dots"))):
            for i, microbatches in enumerate(powers):
                found.append((place + i + 2 * (remat != "full"), mesh, remat, microbatches))
    return [(mesh, remat, microbatches) for _, mesh, remat, microbatches in sorted(found, key=lambda one: one[0])]
