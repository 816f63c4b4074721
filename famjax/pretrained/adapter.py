"""Writes LoRA in peft's format: `adapter_model.safetensors` and `adapter_config.json`.

    ours                      [axes]              theirs                                                        [axes]
    layers/lora/query/a       [L, D, r]           base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight  [r, D]
    layers/lora/query/b       [L, r, K*G, H]      ...q_proj.lora_B.weight                                     [K*G*H, r]

peft adds lora_alpha / r times B A to its weight [out, in]; this is the transpose of our scale * A B.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from famjax.config import ModelConfig
from famjax.config.optimizer import LORA
from famjax.pretrained.config_json import SECTION
from famjax.pretrained.families import Family
from famjax.pretrained.folder import ADAPTER_CONFIG, write_arrays, write_json

ADAPTER, MEMORY = "adapter_model.safetensors", f"{SECTION}.json"
PREFIX = "base_model.model."
# Prefixes of our paths of the weights that LoRA adapts, in the family's table.
_BASES = ("layers/attention/", "layers/feed_forward/")


def tensors(
    family: Family, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str, int], np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the adapter's tensors by peft's names.

    Of `shapes`, those of our weights by path, only LoRA's are used; `read` maps a path and a layer to that layer's
    array.
    """
    found = {}
    for path in sorted(shapes):
        if not path.startswith(LORA):
            continue
        name, part = path.removeprefix(LORA).split("/")
        adapted = next(group + name for group in _BASES if group + name in family.names)
        module = family.names[adapted][0].removesuffix(".weight")  # model.layers.{}.self_attn.q_proj for query
        for layer in filter(config.lora.in_layer, range(config.num_layers)):
            ours = read(path, layer)
            flat = ours.reshape(-1, ours.shape[-1]) if part == "a" else ours.reshape(ours.shape[0], -1)
            found[f"{PREFIX}{module.format(layer)}.lora_{part.upper()}.weight"] = np.ascontiguousarray(flat.T)
    return found


def adapter_config(config: ModelConfig, names: Mapping[str, Any], base_model: str | None) -> dict[str, Any]:
    """Returns the content of `adapter_config.json`; `names` has the names of the adapter's tensors."""
    lora = config.lora
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha or lora.rank,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in names}),
        "layers_to_transform": [*range(lora.first_layer, config.num_layers)] if lora.first_layer else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "modules_to_save": None,
    }


def write(folder: Path, config: ModelConfig, arrays: Mapping[str, np.ndarray], base_model: str | None) -> None:
    """Writes the adapter's files, and the memory settings, which peft's format does not have, to `famjax.json`."""
    write_arrays(folder / ADAPTER, arrays)
    write_json(folder / ADAPTER_CONFIG, adapter_config(config, arrays, base_model))
    write_json(folder / MEMORY, {"memory": dataclasses.asdict(config.memory)})
