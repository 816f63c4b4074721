"""Presents a GGUF file of llama.cpp as the transformers folder that it was converted from.

Metadata become a `config.json` and tokenizer files; tensors get their names in transformers. Then it is imported like a
folder, with the same checks of settings and tensors. Settings that a file leaves implicit are in `ARCHITECTURES`.

    blk.3.attn_q.weight, Q4_K, 2048 x 2048   ->   model.layers.3.self_attn.q_proj.weight, float32, rows permuted

Values are dequantised by the library `gguf`, one tensor at a time.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from famjax.config import ConfigError, Rope
from famjax.pretrained.config_json import FULL, SLIDING, model_config
from famjax.pretrained.families import family_of
from famjax.pretrained.folder import CONFIG_JSON, DTYPES, Folder, Tensor, common_dtype
from famjax.pretrained.gguf_header import Stored, read_header
from famjax.pretrained.gguf_metadata import Metadata
from famjax.pretrained.gguf_tokens import tokenizer_files

SUFFIX = ".gguf"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The implicit settings of an architecture of llama.cpp.

    Attributes:
      family: `model_type` of transformers.
      interleaved: RoPE rotates pairs of neighbouring rows of a head; transformers pairs the head's two halves.
      is_gemma: norms are stored as 1 + w, and the activation is GeGLU.
      post_norms: attention and feed-forward have a norm before and one after.
      window: sliding window if the file gives none; 0: the file must give one; None: the architecture has none.
      period: every period-th layer has no window, unless the file gives a pattern.
      caps: keys of the soft caps of scores and of logits that the architecture has.
      wide: number of layers of the one model size whose scores are divided by sqrt(D / heads) instead of sqrt(H); 0:
        there is none.
    """

    family: str
    interleaved: bool = False
    is_gemma: bool = False
    post_norms: bool = False
    window: int | None = None
    period: int = 0
    caps: tuple[str, ...] = ()
    wide: int = 0


_CAP = "final_logit_softcapping"
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", is_gemma=True),
    "gemma2": Architecture(
        "gemma2", is_gemma=True, post_norms=True, window=4096, period=2, caps=("attn_logit_softcapping", _CAP), wide=46
    ),
    "gemma3": Architecture("gemma3_text", is_gemma=True, post_norms=True, window=0, period=6, caps=(_CAP,), wide=62),
}
# Integers: metadata keys without the architecture's name, and keys of config.json.
_SIZES = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}  # fmt: skip
# Llama 3's RoPE scaling. A file stores the resulting factor for each frequency instead of the settings.
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_LENGTH = 8192
# Tensor names without `.weight` or `.bias`: llama.cpp's without `blk.N`, transformers' without `model.layers.N`.
_WHOLE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_OF_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_FF_NORM = {"ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip


def folder_of(path: str | Path) -> Folder:
    """Opens a transformers folder or a GGUF file. A folder without config.json may have one GGUF file, which is opened.
    Raises `ConfigError` as `Folder` and `GgufFile` do."""
    path = Path(path)
    if path.is_file():
        return GgufFile(path)
    found = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() and not (path / CONFIG_JSON).exists() else []
    if len(found) > 1:
        raise ConfigError(f"{path} has {len(found)} GGUF files, such as {found[0].name} and {found[1].name}; name one")
    return GgufFile(found[0]) if found else Folder(path)


class GgufFile(Folder):
    """A GGUF file with the interface of `Folder`. Its header is read at construction; quantised tensors are float32.
    Raises `ConfigError` if the file is broken or incomplete, or has an unknown architecture, setting or type."""

    def __init__(self, path: Path):
        self.path, self.fam = path, {}
        header = read_header(path)
        self._stored = header.tensors
        metadata = Metadata(path, header.metadata)
        name = metadata.text("general.architecture")
        if name is None or name not in ARCHITECTURES:
            raise ConfigError(f"{path}: the architecture {name!r} is not known; known are {', '.join(ARCHITECTURES)}")
        self._architecture = ARCHITECTURES[name]
        metadata.must_be("general.type", "model")
        if (metadata("split.count") or 1) != 1:
            raise ConfigError(f"{path} is one of {metadata('split.count')} parts; join them with gguf-split --merge")
        self._check_types()
        says = metadata.under(f"{name}.")
        self.config = self._config(says)
        says.refuse_unread()
        metadata.under("adapter.").refuse_unread()
        tokenizer = tokenizer_files(metadata.under("tokenizer."), self._architecture.is_gemma)
        if tokenizer.size != self.config["vocab_size"]:  # llama.cpp requires a token for each row of the embedding
            raise ConfigError(
                f"{path}: the tokenizer has {tokenizer.size} tokens, the model {self.config['vocab_size']}"
            )
        self._tokenizer = tokenizer.contents
        self.config |= tokenizer.ids
        self.config["architectures"] = [family_of(self.config).architecture]
        try:
            model_config(self.config)
        except ConfigError as error:
            raise ConfigError(f"{path}, its metadata as a config.json: {error}") from None
        unread = [name for name in self._stored if not self._is_read_already(name)]
        self._names = {self._theirs(name): name for name in unread}
        if len(self._names) < len(unread):
            raise ConfigError(f"{path} has a tensor twice, under the names of llama.cpp and of transformers")
        self.tensors = {
            theirs: Tensor(path, self._dtype(theirs, name), self._stored[name].shape)
            for theirs, name in self._names.items()
        }
        # Without it, transformers loads an export in the dtype of its first tensor.
        self.config["dtype"] = common_dtype(DTYPES[tensor.dtype] for tensor in self.tensors.values())

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor in transformers' format: dequantised, heads' rows permuted, Gemma's norms without the 1."""
        array = self._as_theirs(name, self._names[name])
        return array.astype(ml_dtypes.bfloat16) if self.tensors[name].dtype == "BF16" else array

    def carried(self) -> dict[str, bytes]:
        """Returns the tokenizer's files by name, derived from metadata."""
        return self._tokenizer

    def vocabulary(self) -> dict[str, bytes] | None:
        """Returns the tokenizer's files by name, since `path` is not a folder."""
        return self._tokenizer

    def tokenizer_family(self) -> Mapping[str, Any]:
        """Returns {}: `tokenizer.json` has all steps, and no class of transformers may change them."""
        return {}

    # --- tensors ----------------------------------------------------------------------------------

    def _theirs(self, name: str) -> str:
        """Returns transformers' name of a tensor. Unknown names are kept and reported by `match`."""
        stem, _, end = name.rpartition(".")
        of_layer = _OF_LAYER | (_POST_NORMS if self._architecture.post_norms else _FF_NORM)
        parts = stem.split(".")
        if len(parts) == 3 and parts[0] == "blk" and parts[2] in of_layer:
            return f"model.layers.{parts[1]}.{of_layer[parts[2]]}.{end}"
        return f"{_WHOLE[stem]}.{end}" if stem in _WHOLE else name

    def _as_theirs(self, theirs: str, name: str) -> np.ndarray:
        """Returns a tensor in transformers' format, float32."""
        array = _dequantised(self.path, self._stored[name])
        if self._architecture.interleaved and (".q_proj." in theirs or ".k_proj." in theirs):
            heads = self.config["num_attention_heads" if ".q_proj." in theirs else "num_key_value_heads"]
            pairs = array.reshape(heads, len(array) // heads // 2, 2, *array.shape[1:])
            array = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)
        return array - np.float32(1) if self._is_plus_one(theirs) else array

    def _is_plus_one(self, theirs: str) -> bool:
        return self._architecture.is_gemma and theirs.endswith("norm.weight")

    def _dtype(self, theirs: str, name: str) -> str:
        """Returns the dtype of a tensor: F32, F16 or BF16 as in the file, F32 if it is quantised or Gemma's norm.

        Files of bfloat16 models have float32 vectors, usually with values that are exact in bfloat16. Such vectors
        become bfloat16 again, so that the whole model is bfloat16.
        """
        kind = _type_name(self._stored[name])
        matrices = (stored for stored in self._stored.values() if len(stored.shape) > 1)
        if kind == "F32" and len(self._stored[name].shape) == 1 and all(_type_name(m) == "BF16" for m in matrices):
            vector = self._as_theirs(theirs, name)
            return "BF16" if np.array_equal(vector.astype(ml_dtypes.bfloat16).astype(np.float32), vector) else "F32"
        return kind if kind in ("F32", "F16", "BF16") and not self._is_plus_one(theirs) else "F32"

    def _check_types(self) -> None:
        """Dequantises a block of each type. Raises `ConfigError` for an unsupported type, before the import begins."""
        for name, stored in {stored.kind: (name, stored) for name, stored in self._stored.items()}.values():
            if not _can_be_read(stored):
                raise ConfigError(
                    f"{self.path}: {name} has values of type {_type_name(stored)}, which the library gguf cannot "
                    f"dequantise; take a file with others, such as Q8_0 or F16"
                )

    def _is_read_already(self, name: str) -> bool:
        """Whether a tensor holds RoPE's factors, which become settings in config.json instead of a tensor."""
        return name == _ROPE_FACTORS and self._architecture.interleaved

    # --- settings ---------------------------------------------------------------------------------

    def _config(self, says: Metadata) -> dict[str, Any]:
        """Returns the config.json for the metadata. Raises `ConfigError` for an unsupported or missing setting."""
        says.must_be("tensor_data_layout", "Meta AI original pth")  # name of interleaved rows in older files
        says.must_be("attention.causal", True)
        says.must_be("use_parallel_residual", False)
        says.must_be("expert_count", 0)
        says.must_be("expert_used_count", 0)
        says("rope.scaling.finetuned")  # has no effect

        # sizes
        config: dict[str, Any] = {"model_type": self._architecture.family}
        config |= {theirs: says.whole(key) for key, theirs in _SIZES.items()}
        if says("context_length") is not None:
            config["max_position_embeddings"] = says.whole("context_length")
        heads = config["num_attention_heads"]
        config["num_key_value_heads"] = says.whole("attention.head_count_kv", heads)
        H = says.whole("attention.key_length", config["hidden_size"] // heads or None)
        config["head_dim"] = H
        for key in ("attention.value_length", "rope.dimension_count"):
            says.must_be(key, H)
            says.must_be(f"{key}_swa", H)
        says.must_be("attention.key_length_swa", H)
        if len(self._shape("token_embd.weight")) != 2:
            raise ConfigError(f"{self.path}: token_embd.weight has {len(self._shape('token_embd.weight'))} axes, not 2")
        config["vocab_size"] = self._shape("token_embd.weight")[0]
        says.must_be("vocab_size", config["vocab_size"])
        config["tie_word_embeddings"] = "output.weight" not in self._stored

        # norms, activation, biases
        config["rms_norm_eps"] = says.number("attention.layer_norm_rms_epsilon")
        family, has = self._architecture.family, lambda part: any(n.endswith(f".{part}.bias") for n in self._stored)
        if self._architecture.is_gemma:
            config |= {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
        else:
            config["hidden_act"] = "silu"
        if family in ("llama", "qwen3"):
            config["attention_bias"] = has("attn_q")
        if family == "llama":
            config["mlp_bias"] = has("ffn_gate")
        return config | self._attention(says, config) | self._rope(says, config)

    def _attention(self, says: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the entries of config.json for windows, the scale of scores, and soft caps."""
        architecture, window = self._architecture, "attention.sliding_window"
        if architecture.family == "llama":
            return {"model_type": "mistral", "sliding_window": says.whole(window)} if says(window) else {}
        if architecture.window is None:
            return {} if architecture.is_gemma else {"use_sliding_window": False}
        D, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
        attention: dict[str, Any] = {
            "sliding_window": says.whole(window, architecture.window or None),
            "query_pre_attn_scalar": D // heads if layers == architecture.wide else config["head_dim"],
            "layer_types": [SLIDING if local else FULL for local in self._pattern(says, layers)],
        }
        for key in architecture.caps:
            if says(key) is not None:
                attention[key] = says.number(key)
        return attention

    def _pattern(self, says: Metadata, layers: int) -> list[bool]:
        """Returns for each layer whether it has a window: by the file's pattern, else all but every period-th."""
        key = "attention.sliding_window_pattern"
        if not isinstance(says(key), list):
            period = says.whole(key, self._architecture.period)
            return [(layer + 1) % period > 0 for layer in range(layers)]
        local = [bool(one) for one in says.numbers(key) or ()]
        if len(local) != layers:
            raise says.refused(key, f"is of {len(local)} layers, the model has {layers}")
        return local

    def _rope(self, says: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the entries of config.json for RoPE's base and scaling."""
        gemma3 = self._architecture.family == "gemma3_text"
        base = says.number("rope.freq_base", None if gemma3 else 10000.0)
        rope: dict[str, Any] = {"rope_theta": float(base)}
        if gemma3:
            rope["rope_local_base_freq"] = float(says.number("rope.freq_base_swa", 10000.0))
        else:
            says.must_be("rope.freq_base_swa", base)
        factor = says.number("rope.scaling.factor", says.number("rope.scale_linear", 1.0))
        says.must_be("rope.scale_linear", factor)  # the older name
        kind = says.text("rope.scaling.type") or "linear"  # llama.cpp's default if a file has only a factor
        length = says.whole("rope.scaling.original_context_length", _LLAMA3_LENGTH)
        if kind not in ("none", "linear"):
            raise says.refused("rope.scaling.type", f"is {kind!r}; known are none and linear")
        llama3 = self._llama3(rope["rope_theta"], config["head_dim"], {length, _LLAMA3_LENGTH})
        linear = kind == "linear" and factor not in (0, 1)
        if linear and llama3:
            raise says.refused("rope.scaling.factor", f"is {factor}, and there is a {_ROPE_FACTORS}")
        if linear or llama3:
            rope["rope_scaling"] = llama3 or {"rope_type": "linear", "factor": float(factor)}
        return rope

    def _llama3(self, base: float, H: int, lengths: set[int]) -> dict[str, Any] | None:
        """Returns the settings of Llama 3's scaling, with one of the original context `lengths`, that produce the
        file's factors, or None if it does not scale. Raises `ConfigError` if no settings produce them."""
        if not self._is_read_already(_ROPE_FACTORS) or _ROPE_FACTORS not in self._stored:
            return None
        factors = _dequantised(self.path, self._stored[_ROPE_FACTORS]).reshape(-1)
        if np.all(factors == 1):
            return None
        for length in lengths:
            scaling = _LLAMA3 | {"factor": float(factors.max()), "original_max_position_embeddings": length}
            if len(factors) == H // 2 and np.allclose(factors, llama3_factors(base, H, scaling), rtol=1e-4):
                return scaling
        raise ConfigError(f"{self.path}: {_ROPE_FACTORS} is not the scaling of Llama 3, the only one known here")

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._stored:
            raise ConfigError(f"{self.path} has no tensor {name}; is it the file of a complete language model?")
        return self._stored[name].shape


def llama3_factors(base: float, H: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """Returns the divisors [H / 2] of RoPE's frequencies in Llama 3's scaling; `scaling` as in config.json."""
    from famjax.attention.rope import frequencies

    scaled = Rope(
        base, "llama3", scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"],
        scaling["original_max_position_embeddings"],
    )  # fmt: skip
    factors: np.ndarray = frequencies(H // 2, Rope(base)) / frequencies(H // 2, scaled)
    return factors


# --- the library ----------------------------------------------------------------------------------


def _type_name(stored: Stored) -> str:
    from gguf.constants import GGMLQuantizationType

    return str(GGMLQuantizationType(stored.kind).name)


def _can_be_read(stored: Stored) -> bool:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(stored.kind)
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _dequantised(path: Path, stored: Stored) -> np.ndarray:
    """Reads a tensor as float32. The file is opened for each tensor, so that no pages stay mapped."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    raw = np.fromfile(path, np.uint8, stored.nbytes, offset=stored.offset)
    rows = raw.reshape(*stored.shape[:-1], -1)
    array: np.ndarray = dequantize(rows, GGMLQuantizationType(stored.kind))
    return array.astype(np.float32, copy=False).reshape(stored.shape)
