"""GGUF files: written here with the library's writer by llama.cpp's rules, imported, and held against transformers.

The slow test reads the real file that FAMJAX_SMOLLM2 names (`python launch/fetch_smollm2.py DIR` brings it).
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from famjax.cli.main import main
from famjax.data.vocabulary import load_vocabulary
from famjax.infer.load import load
from famjax.pretrained.gguf_folder import ARCHITECTURES
from tests.pretrained import ours, theirs

gguf = pytest.importorskip("gguf")

TOLERANCE = 1e-4
LETTERS = [chr(n) for n in range(ord("!"), ord("~") + 1)]
# A byte-level vocabulary: three special tokens, printable characters, a space, a line's end, and two merges.
TOKENS = ["<unk>", "<s>", "</s>", *LETTERS, "Ġ", "Ċ", "th", "Ġth"]
MERGES = ["t h", "Ġ th"]
_SIZES = theirs._sizes
CASES = {
    "llama": theirs.Case("Llama", _SIZES(24, 40, 4, 4)),
    "llama-grouped-tied": theirs.Case("Llama", _SIZES(64, 96, 4, 2) | {"tie_word_embeddings": True}),
    "llama-3": theirs.Case(
        "Llama", _SIZES(24, 36, 6, 2, 32) | {"tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }},
    ),
    "qwen2": theirs.Case("Qwen2", _SIZES(24, 40, 4, 2)),
    "qwen3": theirs.Case("Qwen3", _SIZES(24, 40, 4, 2, 12)),
    "gemma": theirs.Case("Gemma", _SIZES(24, 40, 4, 1, 10)),
    "gemma2": theirs.Case(
        "Gemma2", _SIZES(24, 40, 4, 2, 8) | {"sliding_window": 5, "num_hidden_layers": 3, "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": theirs.Case(
        "Gemma3Text", _SIZES(24, 40, 4, 2, 8) | {"sliding_window": 6, "num_hidden_layers": 7,
        "query_pre_attn_scalar": 8, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }},
    ),
}  # fmt: skip


def case(name: str) -> theirs.Case:
    found = CASES[name]
    return found._replace(settings=found.settings | {"vocab_size": len(TOKENS)})


def metadata(model: Any, architecture: str) -> dict[str, Any]:
    """What llama.cpp's converter writes of these settings."""
    config = model.config
    found = {
        "block_count": config.num_hidden_layers, "context_length": 64, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": config.head_dim if hasattr(config, "head_dim") else 0,
    }  # fmt: skip
    found = {key: value for key, value in found.items() if value}
    rope = config.rope_parameters
    if architecture == "gemma3":
        found |= {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    else:
        found["rope.freq_base"] = rope["rope_theta"]
    if architecture in ("gemma2", "gemma3"):
        found["attention.sliding_window"] = config.sliding_window
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            found[key] = getattr(config, key)
    return found


def tensors(model: Any, architecture: str) -> dict[str, np.ndarray]:
    """By llama.cpp's names: rotary rows interleaved in Llama, 1 added to Gemma's norms."""
    config, found = model.config, {}
    names = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    if architecture in ("gemma2", "gemma3"):
        names |= {
            "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        }  # fmt: skip
    for name, weight in model.state_dict().items():
        array = weight.float().numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
            array = np.swapaxes(halves, 1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        parts = name.removeprefix("model.").split(".")
        if parts[0] == "layers":
            name = f"blk.{parts[1]}.{names['.'.join(parts[2:-1])]}.{parts[-1]}"
        else:
            name = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[0]] + ".weight"
        found[name] = np.ascontiguousarray(array)
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        half = config.head_dim // 2
        plain = config.rope_parameters["rope_theta"] ** -(np.arange(half) / half)
        scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
        found["rope_freqs.weight"] = (plain / scaled).astype(np.float32)
    return found


TOKENIZER = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3), "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip


def write(
    path: Path, architecture: str, says: dict[str, Any], arrays: dict[str, np.ndarray], kind: str = "F32"
) -> Path:
    """A file; matrices are quantised as `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in says.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, array in arrays.items():
        if kind == "F32" or array.ndim == 1:
            writer.add_tensor(name, array.astype(np.float32))
        else:
            quantised = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def file_of(name: str, folder: Path, **more: Any) -> tuple[Path, Any]:
    """A file of a case, and the model it was made of."""
    architecture, model = name.split("-")[0], theirs.build(case(name))
    says = {f"{architecture}.{key}": value for key, value in metadata(model, architecture).items()} | TOKENIZER
    says = {key: value for key, value in (says | more).items() if value is not None}
    return write(folder / "model.gguf", architecture, says, tensors(model, architecture)), model


def their_logits(model: Any, text: np.ndarray, folder: Path) -> np.ndarray:
    model.save_pretrained(folder)
    return theirs.logits(folder, text)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    """float32 logits within 1e-4 relative at every position."""
    source, model = file_of(name, tmp_path)
    text = theirs.tokens(len(TOKENS))
    desired = their_logits(model, text, tmp_path / "theirs")
    for found in ours.logits(ours.imported(source, tmp_path / "ours"), text):
        for row in theirs.relative_errors(found, desired):
            assert row.max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_tensors_are_the_numbers_that_the_library_gives(kind: str, tmp_path: Path) -> None:
    """The model whose matrices are what is left of them after quantisation."""
    import torch

    model = theirs.build(case("llama-grouped-tied"))
    arrays = tensors(model, "llama")
    says = {f"llama.{key}": value for key, value in metadata(model, "llama").items()} | TOKENIZER
    source = write(tmp_path / "model.gguf", "llama", says, arrays, kind)
    quantised = gguf.GGMLQuantizationType[kind]
    left = lambda array: gguf.quants.dequantize(gguf.quants.quantize(array, quantised), quantised)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.as_tensor(left(weight.numpy())))
    text = theirs.tokens(len(TOKENS))
    desired = their_logits(model, text, tmp_path / "theirs")
    found = ours.logits(ours.imported(source, tmp_path / "ours"), text)[0]
    assert max(row.max() for row in theirs.relative_errors(found, desired)) <= TOLERANCE


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    """With two there is a choice, which is asked for."""
    source, _ = file_of("llama", tmp_path)
    assert main(["import-hf", str(tmp_path), str(tmp_path / "out"), "--block-size", "8", "--fam-length", "2"]) == 0
    (tmp_path / "other.gguf").write_bytes(source.read_bytes())
    assert main(["import-hf", str(tmp_path), str(tmp_path / "out2")]) == 2
    assert not (tmp_path / "out2").exists()


def test_byte_level_tokens(tmp_path: Path) -> None:
    """Digits stand alone, special tokens are found in a text, `th` is merged, also behind a space."""
    source, _ = file_of("llama", tmp_path, **{"tokenizer.ggml.add_bos_token": True})
    vocabulary = load_vocabulary(str(ours.imported(source, tmp_path / "ours")))
    at = TOKENS.index
    wanted = [at("th"), at("Ġth"), at("1"), at("2"), at("Ċ"), at("</s>")]
    assert [int(n) for n in vocabulary.encode("th th12\n</s>")] == wanted
    assert vocabulary.decode(np.array(wanted[:-1])) == "th th12\n"
    assert vocabulary.begins == (at("<s>"),)


def test_sentencepiece_tokens(tmp_path: Path) -> None:
    """A trained SentencePiece BPE, whose pieces, scores and kinds are what GGUF holds: the same ids."""
    import sentencepiece

    (tmp_path / "text").write_text("the 12 cats\nsat on the mat, the other 3 did not\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spm"), vocab_size=290, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    theirs_ = sentencepiece.SentencePieceProcessor(str(tmp_path / "spm.model"))
    ids = range(theirs_.vocab_size())
    kinds = [
        2 if theirs_.is_unknown(n) else 3 if theirs_.is_control(n) else 6 if theirs_.is_byte(n) else 1 for n in ids
    ]
    model = theirs.build(CASES["llama"]._replace(settings=CASES["llama"].settings | {"vocab_size": len(ids)}))
    says = {f"llama.{key}": value for key, value in metadata(model, "llama").items()} | {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [theirs_.id_to_piece(n) for n in ids],
        "tokenizer.ggml.scores": [theirs_.get_score(n) for n in ids], "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    source = write(tmp_path / "model.gguf", "llama", says, tensors(model, "llama"))
    vocabulary = load_vocabulary(str(ours.imported(source, tmp_path / "ours")))
    for text in ("the cats sat on the mat", "12 other 3", "Über 🙂 the", "the  two\n spaces", "x"):
        assert [int(n) for n in vocabulary.encode(text)] == theirs_.encode(text), text
    assert vocabulary.begins == (1,)


def test_every_architecture_has_a_case() -> None:
    """`mistral` is written as `llama`."""
    assert {name.split("-")[0] for name in CASES} | {"mistral"} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"llama.attention.causal": False}, "llama.attention.causal"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.rope.dimension_count": 2}, "rope.dimension_count is 2"),
        ({"llama.block_count": None}, "llama.block_count"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "'unheard-of'"),
        ({"tokenizer.ggml.merges": None}, "merges"),
        ({"tokenizer.ggml.tokens": TOKENS[:-1]}, "has 100 tokens"),
        ({"tokenizer.ggml.precompiled_charsmap": [1, 2]}, "precompiled_charsmap"),
    ],
)
def test_what_is_not_understood_is_named(more: dict, message: str, tmp_path: Path, capsys: Any) -> None:
    """One line, exit code 2, and nothing is left behind."""
    source, _ = file_of("llama", tmp_path, **more)
    refused(source, tmp_path, capsys, message)


def refused(source: Path, tmp_path: Path, capsys: Any, message: str) -> None:
    capsys.readouterr()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["import-hf", str(source), str(tmp_path / "out")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("famjax import-hf")]
    assert len(said) == 1 and message in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_broken_files_are_refused(tmp_path: Path, capsys: Any) -> None:
    """Cut short anywhere, of another format, of an unknown architecture, quantised as the library cannot read."""
    source, model = file_of("llama", tmp_path)
    content = source.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        source.write_bytes(content[: int(share * len(content))])
        refused(source, tmp_path, capsys, "GGUF")
    source.write_bytes(b"PK\x03\x04" + content)
    refused(source, tmp_path, capsys, "is no GGUF file")
    source.unlink()
    refused(write(source, "mamba", {"mamba.block_count": 1}, {}), tmp_path, capsys, "'mamba' is not known")
    source.unlink()
    says = {f"llama.{key}": value for key, value in metadata(model, "llama").items()} | TOKENIZER
    writer = gguf.GGUFWriter(source, "llama")
    for key, value in says.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    raw = np.zeros((4, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_K][1]), np.uint8)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(source, tmp_path, capsys, "Q8_K")


HARD = (
    "The year 1984 was 40 years ago.", "  two  spaces", "x = [i**2 for i in range(10)]\n\tprint(x)", "naïve 🙂 日本語",
    "<|im_start|>user\nHi<|im_end|>\n", "don't we'll I'M", "\n\n\n   end ", "3.14159e-10",
)  # fmt: skip


@pytest.mark.slow
def test_the_real_file_against_transformers(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct, Q4_1: token ids of hard strings, and logits at every position of a text."""
    import torch
    import transformers

    place = os.environ.get("FAMJAX_SMOLLM2")
    assert place, "set FAMJAX_SMOLLM2 to the file that launch/fetch_smollm2.py brings"
    path = Path(place)
    model_dir = tmp_path / "ours"
    flags = ["--block-size", "256", "--memory-segments", "0", "--fam-length", "0"]
    assert main(["import-hf", str(path), str(model_dir), *flags]) == 0
    vocabulary = load_vocabulary(str(model_dir))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in HARD:
        assert [int(n) for n in vocabulary.encode(text)] == tokenizer(text).input_ids, text
    text = Path(__file__).read_text()[:900]
    tokens = np.array(vocabulary.encode(text), np.int32)[None, :250]
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        desired = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    mine = load(model_dir)
    found = np.asarray(mine.logits(mine(tokens)[0]))
    errors = np.abs(found - desired).max(axis=-1) / np.abs(desired).max(axis=-1)
    assert errors.max() <= TOLERANCE
    assert json.loads((model_dir / "model.json").read_text())["dtype"] == "float32"
