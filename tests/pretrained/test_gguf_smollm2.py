"""A published model, SmolLM2-135M-Instruct in Q4_1, against the loader of transformers.

    python launch/fetch_smollm2.py DIR        93 MB
    FAMJAX_SMOLLM2=DIR/SmolLM2-135M-Instruct.Q4_1.gguf python -m pytest -m slow tests/pretrained/test_gguf_smollm2.py

Without the variable these tests are skipped.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from famjax.cli.main import main
from famjax.data.chat_template import chat_template
from famjax.data.vocabulary import vocabulary_of
from famjax.infer.codec import Codec
from famjax.infer.load import load

FILE = Path(os.environ.get("FAMJAX_SMOLLM2", ""))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE.is_file(), reason="FAMJAX_SMOLLM2 does not name the file; see launch/fetch_smollm2.py"),
]
TEXT = """Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, and
nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.
It is a way I have of driving off the spleen and regulating the circulation. Whenever I find myself growing grim about
the mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself involuntarily pausing before
coffin warehouses, and bringing up the rear of every funeral I meet; and especially whenever my hypos get such an upper
hand of me, that it requires a strong moral principle to prevent me from deliberately stepping into the street, and
methodically knocking people's hats off—then, I account it high time to get to sea as soon as I can."""
HARD = [
    "Grüße aus Köln, naïve café déjà vu", "def f(x):\n\tif x != 0:\n        return {'a': [x, -x]}  # ok\n\n\n",
    "👩\u200d👩\u200d👧 emoji 🎉🎉 and 世界, мир", "  two spaces before, three   within, one after ",
    "\n\n  \n\t\n", "I'll we've DON'T it's", "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>", "<|im_start|",
    "<repo_name>x<filename>y", "http://a.b/c?d=e&f#g %x", "a\u00a0b\u200bc\ufeffd", "",
]  # fmt: skip
# With digits, which transformers' loader does not split: ids as in SmolLM2's own tokenizer.
KNOWN = {
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The import, with a window that covers the text."""
    target = tmp_path_factory.mktemp("smollm2") / "model"
    flags = ["--block-size", "256", "--memory-segments", "0", "--fam-length", "8"]
    assert main(["import-hf", str(FILE), str(target), *flags]) == 0
    return target


def test_logits(model_dir: Path) -> None:
    """Without FAM, float32: within 1e-4 relative at each of some 200 positions."""
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, gguf_file=FILE.name, dtype="float32").eval()
    tokens_BT = Codec(model_dir, 49152).encode(TEXT)[None]
    assert 150 < tokens_BT.shape[1] <= 256
    with torch.no_grad():
        desired = theirs(torch.tensor(tokens_BT, dtype=torch.long)).logits.numpy()
    graphdef, params = nnx.split(load(model_dir, fam_length=0))

    def run(params, tokens_BT):
        model = nnx.merge(graphdef, params)
        return model.logits(model(tokens_BT)[0])

    found = np.asarray(jax.jit(run)(params, tokens_BT))
    errors_T = np.abs(found - desired).max(axis=-1)[0] / np.abs(desired).max(axis=-1)[0]
    print(f"{tokens_BT.shape[1]} tokens, largest relative difference {errors_T.max():.1e}")
    assert errors_T.max() <= 1e-4


def test_ids(model_dir: Path) -> None:
    """Ids of difficult texts are those of transformers; with digits, the known ones. Decoding returns the texts."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
    ours = vocabulary_of(model_dir)
    for text in (TEXT, *HARD):
        assert ours.encode(text).tolist() == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == text
    for text, ids in KNOWN.items():
        assert ours.encode(text).tolist() == ids, text
    assert Codec(model_dir, 49152).encode("a").tolist() == ours.encode("a").tolist()
    assert Codec(model_dir, 49152).ends == [2, 0]  # <|im_end|>, <|endoftext|>


def test_chat_template(model_dir: Path) -> None:
    """The template in the metadata."""
    template = chat_template(model_dir)
    assert template is not None
    text = template.render([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
