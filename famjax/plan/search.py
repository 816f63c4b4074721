"""Several plans of one job: against the length of a row, or to find a mesh, microbatches and a remat policy.

A candidate is gin settings, so the one that is chosen can be given to `famjax train` as it stands.
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

Tell = Callable[[float], None]
Progress = Callable[[str], Tell]
# Candidates of a search that are compiled to the end: that takes ten times as long as to lay one out.
FINISHED = 2


@dataclasses.dataclass(frozen=True)
class Job:
    """What is planned.

    Attributes:
      program: `train`, `prefill`, `decode` or `eval`.
      topology: where.
      configured: from more gin settings to the run.
      command: from more gin settings and a folder to the child's words.
    """

    program: str
    topology: Topology
    configured: Callable[[Sequence[str]], TrainConfig]
    command: Callable[[Sequence[str], Path], Sequence[str]]

    def plan(
        self, bindings: Sequence[str], tell: Tell, keep: Path | None = None, quick: bool = False
    ) -> dict[str, Any]:
        """One plan, with more gin settings; `child.run` has the other arguments and what it raises."""
        config = self.configured(bindings)
        config.validate()
        raw = child.run(lambda folder: self.command(bindings, folder), tell, keep, quick)
        return {"settings": list(bindings)} | summarise(raw, config, self.program, self.topology)


def lengths(
    job: Job, config: TrainConfig, wanted: Sequence[int], progress: Progress, quick: bool
) -> list[dict[str, Any]]:
    """Plans for rows of these lengths, with as many rows as have a step's tokens, but one a device at least.

    Raises:
      ConfigError: a length is not whole blocks, before anything is compiled.
    """
    settings = [of_length(config, length) for length in wanted]
    for one in settings:
        job.configured(one).validate()
    return [
        job.plan(one, progress(f"{length:,} tokens ({i + 1} of {len(wanted)}),"), quick=quick)
        for i, (length, one) in enumerate(zip(wanted, settings, strict=True))
    ]


def of_length(config: TrainConfig, length: int) -> list[str]:
    """gin settings for rows of so many tokens."""
    S = config.model.memory.block_size
    if length % S:
        raise ConfigError(f"--lengths {length} is not a multiple of block_size {S}")
    data, fsdp, _ = config.mesh_sizes
    least = data * fsdp
    rows = max(1, config.batch_size * config.sequence_length // (length * least))
    microbatches = math.gcd(config.microbatches, rows)
    return [
        f"TASK_FEATURE_LENGTHS={{'targets': {length}}}", f"BATCH_SIZE={rows * least}", f"MICROBATCHES={microbatches}"
    ]  # fmt: skip


def search(job: Job, config: TrainConfig, tries: int, progress: Progress, quick: bool) -> list[dict[str, Any]]:
    """The candidates that were tried, those that fit first, the fastest first.

    They are laid out in the order of `candidates`, at most `tries` of them, which decides what fits and a bound of the
    time. Of those that fit, the `FINISHED` best are compiled to the end for an estimate, unless it shall be `quick`.
    Once a mesh fits with some number of microbatches, more of them would only gather weights more often.
    """
    found: list[dict[str, Any]] = []
    done: set[tuple[str, str]] = set()
    for mesh, remat, microbatches in candidates(job.topology, config):
        if len(found) == tries:
            break
        if (str(mesh), remat) in done:
            continue
        settings = [f"MESH={mesh}", f"MICROBATCHES={microbatches}", f"ModelConfig.remat='{remat}'"]
        what = f"{len(found) + 1} of at most {tries}: {', '.join(settings)},"
        found.append(job.plan(settings, progress(what), quick=True))
        if found[-1]["fits"]:
            done.add((str(mesh), remat))
    found.sort(key=lambda plan: (not plan["fits"], plan["least_step_seconds"] or plan["peak_bytes_per_device"]))
    best = [] if quick else [plan for plan in found[:FINISHED] if plan["fits"]]
    for i, plan in enumerate(best):
        found[i] = job.plan(plan["settings"], progress(f"{i + 1} of the {len(best)} best to the end,"))
    return sorted(found[: len(best)], key=lambda plan: plan["estimated_step_seconds"]) + found[len(best) :]


def candidates(topology: Topology, config: TrainConfig) -> list[tuple[dict[str, int], str, int]]:
    """(mesh, remat, microbatches), the most promising first: few microbatches, the first of `meshes`, full remat.

    Microbatches rise in powers of two, as far as a device has rows.
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
