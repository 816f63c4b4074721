"""GGUF files that cannot be imported: one line, exit code 2, no files left; and metadata without effect."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from famjax.cli.main import main
from famjax.config import ConfigError
from famjax.pretrained.config_json import model_config
from famjax.pretrained.gguf_file import GgufFile
from famjax.pretrained.gguf_header import read_header
from tests.pretrained import gguf_files

H, D, V = 4, 8, 20
SIZES = {
    "block_count": 1, "context_length": 64, "embedding_length": D, "feed_forward_length": 12,
    "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5, "attention.sliding_window": 5,
}  # fmt: skip


def write(
    path: Path, arch: str = "llama", change: dict | None = None, edit: Callable[[dict], object] | None = None
) -> Path:
    """Writes a small file, without transformers; `change` replaces metadata (None: removes), `edit` tensors."""
    matrices = {"attn_q": (D, D), "attn_k": (D, D), "attn_v": (D, D), "attn_output": (D, D)}
    matrices |= {"ffn_gate": (12, D), "ffn_up": (12, D), "ffn_down": (D, 12)}
    vectors = {"attn_norm": D, "ffn_norm": D}
    if arch == "qwen2":
        vectors |= {"attn_q.bias": D, "attn_k.bias": D, "attn_v.bias": D}
    if arch in ("qwen3", "gemma3"):
        vectors |= {"attn_q_norm": H, "attn_k_norm": H}
    if arch in ("gemma2", "gemma3"):
        vectors |= {"post_attention_norm": D, "post_ffw_norm": D}
    rng = np.random.default_rng(0)
    random = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    tensors = {"token_embd.weight": random(V, D), "output_norm.weight": random(D)}
    tensors |= {f"blk.0.{name}.weight": random(*shape) for name, shape in matrices.items()}
    tensors |= {f"blk.0.{name}{'' if '.' in name else '.weight'}": random(n) for name, n in vectors.items()}
    if edit is not None:
        edit(tensors)
    sizes = SIZES if arch in ("gemma2", "gemma3") else {k: v for k, v in SIZES.items() if "window" not in k}
    if arch == "gemma3":
        sizes = sizes | {"rope.freq_base": 1e6}
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in sizes.items()}
    metadata |= {f"tokenizer.{key}": value for key, value in gguf_files.characters(V).items()}
    gguf_files.write_file(path, metadata | (change or {}), tensors, gguf_files.all_of(gguf_files.F32))
    return path


def raw(path: Path, content: bytes) -> None:
    """Writes a file of these bytes."""
    path.write_bytes(content)


def cut(path: Path, keep: Callable[[int], int]) -> None:
    """Truncates a file."""
    content = write(path).read_bytes()
    path.write_bytes(content[: keep(len(content))])


def iq1(path: Path) -> None:
    """Stores a tensor in a type that the library knows and cannot dequantise."""
    writer = gguf.GGUFWriter(path, "llama")
    kind = gguf.GGMLQuantizationType.Q8_1
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer.add_tensor("token_embd.weight", np.zeros((1, size), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert block == 32


def unknown_type(path: Path) -> None:
    """Stores a tensor in a type that the library does not know: the last number before the tensor's offset."""
    content = write(path).read_bytes()
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    path.write_bytes(content[:at] + struct.pack("<I", 999) + content[at + 4 :])


def moved(path: Path) -> None:
    """Lets a tensor begin where the first one does."""
    content = write(path).read_bytes()
    at = content.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4 + 16 + 4
    path.write_bytes(content[:at] + struct.pack("<Q", 0) + content[at + 8 :])


def two_files(path: Path) -> None:
    """Writes a folder with two files."""
    path.mkdir()
    write(path / "a.gguf")
    write(path / "b.gguf")


def renamed(old: str, new: str) -> Callable[[dict], object]:
    """Renames a tensor."""
    return lambda tensors: tensors.update({new: tensors.pop(old)})


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "not GGUF": (
        lambda path: raw(path, b"PK\x03\x04" + bytes(100)),
        "is not a GGUF file; name one, or a folder of a model",
    ),
    "empty": (lambda path: raw(path, b""), "is not a GGUF file"),
    "magic alone": (lambda path: raw(path, b"GGUF"), "big-endian"),
    "version 1": (
        lambda path: raw(path, b"GGUF" + struct.pack("<IQQ", 1, 0, 0)),
        "is GGUF version 1; known are 2 and 3",
    ),
    "big-endian": (lambda path: raw(path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0)), "for big-endian machines"),
    "header alone": (
        lambda path: raw(path, b"GGUF" + struct.pack("<IQQ", 3, 1, 2)),
        "is a broken or truncated GGUF file",
    ),
    "a long array": (
        lambda path: raw(path, b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**60)),
        "is a broken or truncated GGUF file",
    ),
    "cut in the data": (
        lambda path: cut(path, lambda size: size - 1),
        "is a broken or truncated GGUF file",
    ),
    "cut in the header": (lambda path: cut(path, lambda size: 700), "is a broken or truncated GGUF file"),
    "no architecture": (
        lambda path: raw(path, b"GGUF" + struct.pack("<IQQ", 3, 0, 0)),
        "the architecture None is not known",
    ),
    "unknown architecture": (
        lambda path: write(path, "mamba"),
        "the architecture 'mamba' is not known; known are llama, qwen2",
    ),
    "a projector": (
        lambda path: write(path, change={"general.type": "mmproj"}),
        "general.type is 'mmproj'; only 'model'",
    ),
    "a part": (lambda path: write(path, change={"split.count": 3}), "is one of 3 parts; join them"),
    "quantised otherwise": (
        iq1,
        "token_embd.weight has values of type Q8_1, which the library gguf cannot dequantise",
    ),
    "unknown type": (unknown_type, "token_embd.weight has values of type 999"),
    "another offset": (
        moved,
        "blk.0.ffn_down.weight begins at 0 of the data, not where the tensor before it ends",
    ),
    "unknown tokenizer": (
        lambda path: write(path, change={"tokenizer.ggml.model": "rwkv"}),
        "ggml.model is 'rwkv'; known are",
    ),
    "no tokenizer": (
        lambda path: write(path, change={"tokenizer.ggml.tokens": None}),
        "tokenizer.ggml.tokens has no tokens",
    ),
    "too few tokens": (
        lambda path: write(path, edit=lambda t: t.update({"token_embd.weight": np.zeros((V + 1, D), np.float32)})),
        "the tokenizer has 20 tokens, the model 21",
    ),
    "no embedding": (
        lambda path: write(path, edit=lambda t: t.pop("token_embd.weight")),
        "has no tensor token_embd.weight",
    ),
    "a missing tensor": (
        lambda path: write(path, edit=lambda t: t.pop("blk.0.ffn_up.weight")),
        "missing: model.layers.0.mlp.up_proj.weight",
    ),
    "experts": (
        lambda path: write(path, edit=renamed("blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight")),
        "not part of the model: blk.0.ffn_up_exps.weight",
    ),
    "one tensor under two names": (
        lambda path: write(path, edit=lambda t: t.update({"model.norm.weight": t["output_norm.weight"]})),
        "has a tensor twice, under the names of llama.cpp and of transformers",
    ),
    "another shape": (
        lambda path: write(path, edit=lambda t: t.update({"blk.0.attn_q.weight": np.zeros((6, D), np.float32)})),
        "of another shape: model.layers.0.self_attn.q_proj.weight is [6, 8], not [8, 8]",
    ),
    "RoPE's factors": (
        lambda path: write(path, edit=lambda t: t.update({"rope_freqs.weight": np.array([1, 3], np.float32)})),
        "rope_freqs.weight is not the scaling of Llama 3",
    ),
    "RoPE's factors elsewhere": (
        lambda path: write(path, "qwen2", edit=lambda t: t.update({"rope_freqs.weight": np.ones(2, np.float32)})),
        "not part of the model: rope_freqs.weight",
    ),
    "two files": (two_files, "has 2 GGUF files, such as a.gguf and b.gguf; name one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line names the file; the target does not exist, nor any file next to it."""
    make, message = BAD[name]
    make(tmp_path / "tiny.gguf")
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["import-hf", str(tmp_path / "tiny.gguf"), str(tmp_path / "ours")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


METADATA = [
    ("llama", "rope.scaling.type", "yarn", "llama.rope.scaling.type is 'yarn'; known are none and linear"),
    ("llama", "rope.scaling.attn_factor", 1.5, "llama.rope.scaling.attn_factor is not known here"),
    ("llama", "rope.dimension_count", 2, "llama.rope.dimension_count is 2; only 4 is known here"),
    ("llama", "attention.value_length", 8, "llama.attention.value_length is 8; only 4 is known here"),
    ("llama", "attention.causal", False, "llama.attention.causal is False; only True is known here"),
    ("llama", "expert_count", 8, "llama.expert_count is 8; only 0 is known here"),
    ("llama", "logit_scale", 2.0, "llama.logit_scale is not known here and may change results"),
    ("llama", "attention.scale", 2.0, "llama.attention.scale is not known here"),
    ("llama", "final_logit_softcapping", 30.0, "llama.final_logit_softcapping is not known here"),
    ("llama", "attention.layer_norm_epsilon", 1e-5, "llama.attention.layer_norm_epsilon is not known here"),
    (
        "llama",
        "attention.layer_norm_rms_epsilon",
        None,
        "layer_norm_rms_epsilon is missing; is it the file of a complete",
    ),
    ("llama", "tensor_data_layout", "other", "llama.tensor_data_layout is 'other'"),
    ("llama", "vocab_size", V + 1, "llama.vocab_size is 21; only 20 is known here"),
    ("llama", "block_count", 0, "llama.block_count is 0; it must be a whole number above 0"),
    ("llama", "block_count", "one", "llama.block_count is 'one'; it must be a number"),
    ("llama", "attention.head_count", [2, 4], "llama.attention.head_count differs between layers"),
    ("llama", "attention.head_count_kv", 4, "num_heads 2 is not a multiple of num_kv_heads 4"),
    ("llama", "rope.freq_base", "1e4", "llama.rope.freq_base is '1e4'; it must be a number"),
    ("llama", "rope.freq_base", float("nan"), "llama.rope.freq_base is nan; it must be a number"),
    ("qwen2", "attention.sliding_window", 4096, "qwen2.attention.sliding_window is not known here"),
    ("qwen3", "attn_logit_softcapping", 50.0, "qwen3.attn_logit_softcapping is not known here"),
    ("gemma", "attention.sliding_window", 5, "gemma.attention.sliding_window is not known here"),
    ("gemma2", "rope.freq_base_swa", 5.0, "gemma2.rope.freq_base_swa is 5.0; only 10000.0 is known here"),
    ("gemma3", "attention.sliding_window", None, "gemma3.attention.sliding_window is missing"),
    ("gemma3", "rope.freq_base", None, "gemma3.rope.freq_base is missing"),
    ("gemma3", "attn_logit_softcapping", 50.0, "gemma3.attn_logit_softcapping is not known here"),
    (
        "gemma3",
        "attention.sliding_window_pattern",
        [True, False],
        "sliding_window_pattern is of 2 layers, the model has 1",
    ),
]


@pytest.mark.parametrize(("arch", "key", "value", "message"), METADATA)
def test_metadata_that_may_change_the_numbers(arch: str, key: str, value: object, message: str, tmp_path: Path) -> None:
    """Refused by name, never ignored."""
    path = write(tmp_path / "tiny.gguf", arch, {f"{arch}.{key}": value})
    with pytest.raises(ConfigError) as error:
        GgufFile(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_factor_under_two_names(tmp_path: Path) -> None:
    """The older name of RoPE's factor may repeat it, and not contradict it."""
    change = {"llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 4.0}
    assert model_config(GgufFile(write(tmp_path / "tiny.gguf", change=change)).config).rope_factor == 4.0
    with pytest.raises(ConfigError, match=r"llama.rope.scale_linear is 2.0; only 4.0 is known here"):
        GgufFile(write(tmp_path / "tiny.gguf", change=change | {"llama.rope.scale_linear": 2.0}))


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
def test_an_unknown_key_of_any_architecture(arch: str, tmp_path: Path) -> None:
    """Without the key the file is read; with it, it is refused, including keys of the tokenizer."""
    model_config(GgufFile(write(tmp_path / "tiny.gguf", arch)).config)
    for key in (f"{arch}.some.key", "tokenizer.ggml.some_key", "tokenizer.some", "adapter.type"):
        with pytest.raises(ConfigError, match=f"the metadata {key} is not known here"):
            GgufFile(write(tmp_path / "tiny.gguf", arch, {key: 1}))


@pytest.mark.parametrize(
    "change",
    [
        {"llama.rope.scaling.finetuned": True}, {"llama.rope.scaling.original_context_length": 4096},
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {"llama.rope.scaling.factor": 1.0},
        {"llama.context_length": 7}, {"llama.expert_count": 0, "llama.expert_used_count": 0},
        {"llama.attention.head_count": [2]}, {"llama.attention.key_length": 4, "llama.attention.value_length": 4},
        {"llama.tensor_data_layout": "Meta AI original pth"}, {"general.name": "x", "general.base_model.count": 1},
        {"quantize.imatrix.file": "x", "split.count": 1, "split.no": 0, "of.somebody.else": 1},
    ],
)  # fmt: skip
def test_metadata_without_effect(change: dict, tmp_path: Path) -> None:
    """Keys without effect, or with default values, give the same model."""
    plain = GgufFile(write(tmp_path / "plain.gguf"))
    changed = GgufFile(write(tmp_path / "changed.gguf", change=change))
    assert model_config(changed.config) == model_config(plain.config)
    for name in plain.tensors:
        np.testing.assert_array_equal(changed.read(name), plain.read(name))


@pytest.mark.parametrize(
    ("arch", "change", "fields"),
    [
        ("llama", {"rope.scaling.factor": 4.0}, {"rope_scaling": "linear", "rope_factor": 4.0}),
        ("llama", {"rope.scale_linear": 2.0}, {"rope_scaling": "linear", "rope_factor": 2.0}),
        ("llama", {"attention.sliding_window": 6}, {"layer_pattern": ("local",), "local_window": 6}),
        ("llama", {"attention.sliding_window": 0}, {"layer_pattern": ("global",)}),
        ("qwen2", {}, {"rope_base": 10000.0, "qkv_bias": True}),
        (
            "gemma2",
            {"attention.sliding_window": None},
            {"local_window": 4096, "attention_cap": 50.0, "logit_cap": 30.0},
        ),
        ("gemma3", {"attention.sliding_window_pattern": [False]}, {"layer_pattern": ("global",), "rope_base": 1e6}),
        ("gemma3", {}, {"layer_pattern": ("local",), "local_rope_base": 1e4, "attention_cap": 0.0, "logit_cap": 0.0}),
    ],
)
def test_what_llama_cpp_takes_for_granted(arch: str, change: dict, fields: dict, tmp_path: Path) -> None:
    """Defaults of architectures and older names of settings."""
    file = GgufFile(write(tmp_path / "tiny.gguf", arch, {f"{arch}.{key}": value for key, value in change.items()}))
    config = model_config(file.config)
    assert {name: getattr(config, name) for name in fields} == fields


def test_the_largest_gemmas_divide_scores_otherwise(tmp_path: Path) -> None:
    """Gemma 2 and 3 of 27B, recognised by their number of layers, divide by sqrt(D / heads); others by sqrt(H)."""
    for arch, layers in (("gemma2", 46), ("gemma3", 62)):
        change = {f"{arch}.attention.key_length": 8, f"{arch}.block_count": layers}
        assert GgufFile(write(tmp_path / "wide.gguf", arch, change)).config["query_pre_attn_scalar"] == D // 2
        change[f"{arch}.block_count"] = layers - 1
        assert GgufFile(write(tmp_path / "other.gguf", arch, change)).config["query_pre_attn_scalar"] == 8


def test_cut_anywhere(tmp_path: Path) -> None:
    """A truncated file is refused, wherever it ends."""
    content = write(tmp_path / "tiny.gguf").read_bytes()
    for size in sorted({*range(0, 200), *range(0, len(content), 37), len(content) - 1}):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(ConfigError):
            read_header(tmp_path / "cut.gguf")


def test_damaged_bytes(tmp_path: Path) -> None:
    """With changed bytes in the header, a file is refused in one line or read; nothing else happens."""
    content = write(tmp_path / "tiny.gguf").read_bytes()
    header = content.index(b"blk.0.ffn_norm.weight") + 60
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(1500):
        damaged = bytearray(content)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            file = GgufFile(tmp_path / "damaged.gguf")
            for name in file.tensors:
                file.tensors[name].nbytes  # noqa: B018
            read += 1
        except ConfigError as error:
            assert "\n" not in str(error)
    assert 0 < read < 1500
