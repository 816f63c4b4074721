"""A GGUF file of llama.cpp, seen as the folder of transformers that it was made from.

Its metadata become a `config.json` and tokenizer files, its tensors get the names that transformers has, and all that
follows, every check of a setting among it, is the import of a folder. The library `gguf` reads the file and dequantises
one tensor at a time.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from famjax.config import ConfigError
from famjax.pretrained.families import family_of
from famjax.pretrained.folder import CONFIG_JSON, Folder, Tensor
from famjax.pretrained.gguf_tokenizer import TOKENIZER, tokenizer_files

SUFFIX = ".gguf"


class Architecture(NamedTuple):
    """What llama.cpp does with an architecture, and does not write down.

    Attributes:
      model_type: of transformers.
      interleaved: the rows of a head's queries and keys lie for RoPE of neighbouring pairs; transformers turns the two
        halves of a head.
      plus_one: scales of norms are stored with the 1 that Gemma's norms add.
      post_norms: attention and feed-forward are normalised in front and behind.
      unscaled_at: the number of layers of the one model whose scores are divided by the root of D / heads, not of H.
      fixed: settings that its code knows and the file need not have.
    """

    model_type: str
    interleaved: bool = False
    plus_one: bool = False
    post_norms: bool = False
    unscaled_at: int = 0
    fixed: Mapping[str, Any] = {}


_GEMMA = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2", fixed={"use_sliding_window": False}),
    "qwen3": Architecture("qwen3", fixed={"use_sliding_window": False}),
    "gemma": Architecture("gemma", plus_one=True, fixed=_GEMMA),
    "gemma2": Architecture("gemma2", plus_one=True, post_norms=True, unscaled_at=46, fixed=_GEMMA),
    "gemma3": Architecture(
        "gemma3_text", plus_one=True, post_norms=True, unscaled_at=62,
        fixed=_GEMMA | {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
}  # fmt: skip
# Metadata, behind the architecture's name: keys of config.json.
KEYS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim", "rope.freq_base": "rope_theta", "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}  # fmt: skip
_NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_CHECKED = (
    "attention.value_length", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length",
)  # fmt: skip
# Metadata that say nothing of the numbers: who made the file, and how it was quantised.
_NO_EFFECT = ("GGUF.", "general.", "quantize.", "split.")
# Tensors: their names in front of `.weight` or `.bias`; transformers' name in front of it, behind the layer.
_WHOLE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_OF_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_FF_NORM = {"ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {
    "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
# One factor for each pair of a head, by which llama.cpp divides RoPE's frequencies; Llama 3's scaling as numbers.
_ROPE_FACTORS = "rope_freqs.weight"


def folder_of(path: str | Path) -> Folder:
    """The folder of transformers at a path; or a GGUF file there, or in that folder, seen as one.

    Raises:
      ConfigError: see `Folder`; a GGUF file that is broken or has what is not known here.
    """
    path = Path(path)
    if path.is_file():
        return GgufFolder(path)
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() and not (path / CONFIG_JSON).exists() else []
    if len(files) > 1:
        raise ConfigError(
            f"{path} has {len(files)} GGUF files ({files[0].name}, {files[1].name} ...); name one of them"
        )
    return GgufFolder(files[0]) if files else Folder(path)


class GgufFolder(Folder):
    """A GGUF file whose header was read; attributes as `Folder`. Quantised tensors are told, and read, as float32."""

    def __init__(self, path: Path):
        self.path, self.fam = path, {}
        self._reader = _opened(path)
        self._metadata = dict(self._reader.fields)
        name = str(self._value("general.architecture"))
        if name not in ARCHITECTURES:
            raise ConfigError(f"{path}: the architecture {name!r} is not known; known are {', '.join(ARCHITECTURES)}")
        self._name, self._architecture = name, ARCHITECTURES[name]
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._check_types()
        self.config = self._config()
        self._places = {self._theirs(name): name for name in self._tensors if name != _ROPE_FACTORS}
        self.tensors = {
            theirs: Tensor(
                path, _dtype(self._tensors[name]), tuple(int(n) for n in reversed(self._tensors[name].shape))
            )
            for theirs, name in self._places.items()
        }
        tokenizer = {name[len(TOKENIZER) :]: self._value(name) for name in self._metadata if name.startswith(TOKENIZER)}
        self._files = tokenizer_files(tokenizer, self.config, str(path))

    def read(self, name: str) -> np.ndarray:
        """A tensor as transformers has it: dequantised, heads in its order, norms' scales without Gemma's 1."""
        tensor = self._tensors[self._places[name]]
        array: np.ndarray = _dequantised(tensor).reshape(self.tensors[name].shape)
        if self._architecture.interleaved and (".q_proj." in name or ".k_proj." in name):
            heads = self.config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            pairs = array.reshape(heads, len(array) // heads // 2, 2, *array.shape[1:])
            array = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)
        if self._architecture.plus_one and "norm" in name:
            array = array - np.asarray(1, array.dtype)
        return array

    def carried(self) -> dict[str, bytes]:
        """The tokenizer's files, made of the metadata."""
        return self._files

    def vocabulary(self) -> dict[str, bytes]:
        """What makes a vocabulary (`data.vocabulary.vocabulary_from`)."""
        from famjax.data.tokenizer_folder import family_file

        return self._files | dict(family_file(self.config))

    # --- parts ------------------------------------------------------------------------------------

    def _value(self, name: str) -> Any:
        if name not in self._metadata:
            raise ConfigError(f"{self.path} has no {name} in its metadata; is it the GGUF file of a language model?")
        try:
            return self._metadata[name].contents()
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"{self.path}: the metadata {name} cannot be read ({error}); is the file whole?"
            ) from None

    def _check_types(self) -> None:
        """A tensor of each type is dequantised in part, so that no import begins that cannot end."""
        seen: set[Any] = set()
        for name, tensor in self._tensors.items():
            if tensor.tensor_type in seen:
                continue
            seen.add(tensor.tensor_type)
            try:
                _dequantised(tensor, rows=1)
            except NotImplementedError:
                raise ConfigError(
                    f"{self.path}: {name} is quantised as {tensor.tensor_type.name}, which cannot be read here; take a "
                    f"file with another quantisation, such as Q8_0 or F16"
                ) from None

    def _config(self) -> dict[str, Any]:
        """The config.json that these metadata stand for. Raises `ConfigError` on a key that is not known."""
        says = {
            name[len(self._name) + 1 :]: self._value(name)
            for name in self._metadata
            if name.startswith(f"{self._name}.")
        }
        known = {f"{self._name}.{key}" for key in (*KEYS, *_CHECKED)}
        unknown = [
            name for name in self._metadata if name not in known and not name.startswith((*_NO_EFFECT, TOKENIZER))
        ]
        if unknown:
            raise ConfigError(f"{self.path}: the metadata {', '.join(unknown)} are not known here and may change the "
                              f"numbers; take a file without them")  # fmt: skip
        for key in _NEEDED:
            if key not in says:
                raise ConfigError(f"{self.path} has no {self._name}.{key} in its metadata; is the file whole?")
        for key, value in says.items():
            if isinstance(value, list) and len(set(value)) == 1:
                says[key] = value[0]
            elif isinstance(value, list):
                raise ConfigError(f"{self.path}: {self._name}.{key} differs between layers, which no model here has")
        kind = self._architecture.model_type
        config: dict[str, Any] = {
            "model_type": kind, "architectures": [family_of({"model_type": kind}).architecture],
            **self._architecture.fixed,
        }  # fmt: skip
        config |= {KEYS[key]: value for key, value in says.items() if key in KEYS}
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        config.setdefault("vocab_size", int(self._shape("token_embd.weight")[1]))
        config["tie_word_embeddings"] = "output.weight" not in self._tensors
        for key in ("attention.value_length", "rope.dimension_count"):
            if says.get(key, config["head_dim"]) != config["head_dim"]:
                raise ConfigError(
                    f"{self.path}: {self._name}.{key} is {says[key]}, but heads have {config['head_dim']}"
                )
        if self._architecture.model_type in ("gemma2", "gemma3_text"):
            wide = config["num_hidden_layers"] == self._architecture.unscaled_at
            per_head = config["hidden_size"] / config["num_attention_heads"] if wide else config["head_dim"]
            config["query_pre_attn_scalar"] = int(per_head) if per_head == int(per_head) else per_head
        if self._architecture.model_type == "qwen3" and any(".bias" in name for name in self._tensors):
            config["attention_bias"] = True
        if (scaling := self._scaling(says, config)) is not None:
            config["rope_scaling"] = scaling
        return config | self._tokens()

    def _tokens(self) -> dict[str, Any]:
        """Tokens by their ids, as config.json has them; of several that end a text, the list of all."""
        ids = {
            name: int(self._value(f"{TOKENIZER}ggml.{name}_token_id"))
            for name in ("bos", "eos", "eot", "eom", "padding")
            if f"{TOKENIZER}ggml.{name}_token_id" in self._metadata
        }
        ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids))
        tokens: dict[str, Any] = {"eos_token_id": (ends[0] if len(ends) == 1 else ends or None)}
        tokens |= {f"{ours}_token_id": ids[name] for name, ours in (("bos", "bos"), ("padding", "pad")) if name in ids}
        return tokens

    def _scaling(self, says: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any] | None:
        """RoPE's scaling: what is said; or Llama 3's, which the file has as a factor for each frequency."""
        kind = says.get("rope.scaling.type", "none")
        if kind not in ("none", "linear"):
            raise ConfigError(f"{self.path}: {self._name}.rope.scaling.type is {kind!r}; known are none and linear")
        if _ROPE_FACTORS not in self._tensors:
            return None if kind == "none" else {"rope_type": "linear", "factor": float(says["rope.scaling.factor"])}
        factors = _dequantised(self._tensors[_ROPE_FACTORS]).reshape(-1)
        llama3 = {
            "rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
        if kind != "none" or not np.allclose(factors, _llama3_factors(config, llama3), rtol=1e-3):
            raise ConfigError(f"{self.path}: {_ROPE_FACTORS} is not the scaling of Llama 3, the only one known here")
        return llama3

    def _shape(self, name: str) -> Any:
        if name not in self._tensors:
            raise ConfigError(f"{self.path} has no tensor {name}; is it the GGUF file of a language model?")
        return self._tensors[name].shape

    def _theirs(self, name: str) -> str:
        """Transformers' name of a tensor. One that is not known keeps its own, and the import refuses it."""
        stem, _, kind = name.rpartition(".")
        of_layer = _OF_LAYER | (_POST_NORMS if self._architecture.post_norms else _FF_NORM)
        parts = stem.split(".")
        if len(parts) == 3 and parts[0] == "blk" and parts[2] in of_layer:
            return f"model.layers.{parts[1]}.{of_layer[parts[2]]}.{kind}"
        return f"{_WHOLE[stem]}.{kind}" if stem in _WHOLE else name


def _opened(path: Path) -> Any:
    import gguf

    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(f"{path} is no GGUF file; name one, or a folder of a model")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # it indexes and reshapes what the file promises; each fails in its own way
        raise ConfigError(
            f"{path} is a broken GGUF file, or one that is cut short ({error}); download it again"
        ) from None


def _dtype(tensor: Any) -> str:
    name = tensor.tensor_type.name
    return name if name in ("F32", "F16", "BF16") else "F32"


def _dequantised(tensor: Any, rows: int | None = None) -> np.ndarray:
    """The numbers of a tensor, or of its first rows, in the type that `_dtype` tells."""
    import gguf
    import ml_dtypes

    data = tensor.data if rows is None or tensor.data.ndim < 2 else tensor.data[:rows]
    array: np.ndarray = gguf.quants.dequantize(data, tensor.tensor_type)
    return array.astype(ml_dtypes.bfloat16) if _dtype(tensor) == "BF16" else array


def _llama3_factors(config: Mapping[str, Any], llama3: Mapping[str, Any]) -> np.ndarray:
    """By what Llama 3 divides each frequency: 1 for fast ones, `factor` for slow ones, something between for others."""
    half = config["head_dim"] // 2
    turns = llama3["original_max_position_embeddings"] / (
        2 * math.pi * config.get("rope_theta", 10000.0) ** (np.arange(half) / half)
    )
    low, high = llama3["low_freq_factor"], llama3["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors: np.ndarray = 1 / ((1 - smooth) / llama3["factor"] + smooth)
    return factors
