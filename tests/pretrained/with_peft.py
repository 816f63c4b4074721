"""Adapters as `peft` reads them, against the merge of `famjax export-hf`. peft is not a test dependency:

pip install peft
python -m tests.pretrained.with_peft      prints the table of docs/finetuning.md
"""

import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from famjax.cli.main import main as famjax
from famjax.config import LoraConfig
from famjax.nn.weights import parameter_shapes
from famjax.pretrained.folder import KEPT_CONFIG
from famjax.storage.checkpoint import load_model, save_model
from famjax.storage.model_dir import read_config
from tests.pretrained import ours, theirs

CASES = (
    "llama2-untied", "llama3-grouped-tied", "mistral-grouped", "qwen2-grouped", "qwen3-grouped", "gemma2", "gemma3",
)  # fmt: skip
LORA = LoraConfig(rank=3, alpha=6.0)


def with_lora(imported: Path, target: Path) -> Path:
    """Returns the model with pairs that are not zero."""
    config = dataclasses.replace(read_config(imported), lora=LORA)
    rng = np.random.default_rng(1)
    pairs = parameter_shapes(config)["layers"]["lora"]
    pairs = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), pairs)
    params = load_model(imported, parameter_shapes)[1]
    save_model(target, config, params | {"layers": params["layers"] | {"lora": pairs}})
    shutil.copy(imported / KEPT_CONFIG, target / KEPT_CONFIG)
    return target


def of_peft(folder: Path, adapter: Path, tokens_BT: np.ndarray) -> np.ndarray:
    """Returns the logits of transformers' model with the adapter, by peft."""
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    mask = torch.arange(tokens_BT.shape[1])[None] < torch.tensor(theirs.LENGTHS)[:, None]
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor(tokens_BT).long(), attention_mask=mask.long()).logits)


def main() -> int:
    """Prints the largest relative difference of each family's logits."""
    import importlib.metadata

    print(f"peft {importlib.metadata.version('peft')}")
    for name in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            at = Path(scratch)
            theirs.save(theirs.CASES[name], at / "base")
            ours.imported(at / "base", at / "ours")
            source = with_lora(at / "ours", at / "lora")
            assert famjax(["export-hf", str(source), str(at / "merged")]) == 0
            assert famjax(["export-hf", str(source), str(at / "adapter"), "--adapter-only"]) == 0
            tokens = theirs.tokens(61)
            adapted, merged, bare = (
                of_peft(at / "base", at / "adapter", tokens), theirs.logits(at / "merged", tokens),
                theirs.logits(at / "base", tokens),
            )  # fmt: skip
            error = max(map(np.max, theirs.relative_errors(adapted, merged)))
            effect = max(map(np.max, theirs.relative_errors(bare, merged)))
            print(f"| {name} | {error:.1e} | {effect:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
