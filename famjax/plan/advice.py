"""Suggests settings that reduce the memory of a program."""

from typing import Any

from famjax.config import TrainConfig
from famjax.plan.estimate import COMFORT


def advice(plan: dict[str, Any], config: TrainConfig) -> list[str]:
    """Returns suggestions for a program that does not fit, or barely fits, the most promising first; else []."""
    if plan["fits"] and plan["peak_bytes_per_device"] <= COMFORT * plan["hbm_bytes_per_device"]:
        return []
    held = sum(plan["held_per_device"].values())
    lines = []
    if held > 0.5 * plan["hbm_bytes_per_device"]:
        lines.append("more devices along fsdp or tensor, or a larger topology: arguments take more than half of a "
                     "device's memory")  # fmt: skip
    if plan["program"] != "train":
        return [*lines, "a lower BATCH_SIZE: each row has its own memory and activations"]
    parts = [tensor["part"] for tensor in plan["largest_tensors"]]
    if config.model.remat != "full":
        lines.append("--gin.ModelConfig.remat=\"'full'\" (of a checkpoint's model: model_of_checkpoint.remat): fewer "
                     "residuals are saved for the backward pass")  # fmt: skip
    if more := more_microbatches(config):
        lines.append(f"--gin.MICROBATCHES={more}: activations of fewer rows at once")
    if "loss" in parts[:3] and config.loss_chunk != 0 and config.loss_chunk > 256:
        lines.append(f"--gin.TrainConfig.loss_chunk={config.loss_chunk // 2}: logits of fewer tokens at once")
    if not more and config.mesh_sizes[2] == 1:
        lines.append("--gin.MESH with more devices along tensor: a device holds at least one row of the batch")
    return lines


def more_microbatches(config: TrainConfig) -> int | None:
    """Returns the next larger number of microbatches that divides a device's rows; None if each has one row already."""
    data, fsdp, _ = config.mesh_sizes
    rows = config.batch_size // (data * fsdp)
    larger = [n for n in range(config.microbatches + 1, rows + 1) if rows % n == 0]
    return larger[0] if larger else None
