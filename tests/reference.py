"""TransformerFAM in float64 NumPy, token by token: a slow, independent implementation.

It was written from the paper's equations, not from `famjax`: one row, absolute positions, keys gathered one by one, no
masks, no scans, no state. The parameters are the tree that `famjax.nn.weights.parameters` returns.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from famjax.config import ModelConfig


@dataclasses.dataclass
class Outcome:
    """Outputs and final memory of a text.

    Attributes:
      hidden_TD: the output of each token, after the final norm.
      fam_LPFD: the FAMs after the last whole block, newest first: at most P, including the initial one.
    """

    hidden_TD: np.ndarray
    fam_LPFD: np.ndarray


def run(
    config: ModelConfig, params: dict, tokens_T: np.ndarray, passed_LPFD: np.ndarray | None = None, start: int = 0,
    read: Callable[..., Any] | None = None,
) -> Outcome:  # fmt: skip
    """Runs one document whose first token has the absolute position `start`.

    `passed_LPFD` is a FAM from an earlier text; it replaces the learned prompt and is the residual of the first update.
    `read` replaces `read_document`, for other memories.
    """
    params = as_float64(params)
    x = [params["embedding"][token] * entry_scale(config) for token in tokens_T]
    if passed_LPFD is not None:
        initial = np.asarray(passed_LPFD, np.float64)
    else:
        initial = np.stack(learned_fam(config, params, start))[:, None]
    fams = []
    for index in range(config.num_layers):
        gate = params["fam"]["gate"][index] if config.memory.fam_gate and config.memory.fam_length else None
        layer = Layer(config, take(params["layers"], index), index, gate)
        x, fam = (read or read_document)(layer, x, list(initial[index]), passed_LPFD is not None, start)
        fams.append(fam)
    hidden = [norm(config, token, params["final_norm"]["scale"]) for token in x]
    return Outcome(np.reshape(hidden, (len(tokens_T), config.d_model)), np.array(fams))


def logits(config: ModelConfig, params: dict, hidden_TD: np.ndarray) -> np.ndarray:
    """Returns logits [T, V]."""
    params = as_float64(params)
    return capped(
        hidden_TD @ (params["embedding"].T if config.tie_embeddings else params["unembedding"]), config.logit_cap
    )


def read_document(
    layer: "Layer", x: list[np.ndarray], fams: list[np.ndarray], carries_context: bool, start: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Runs one layer over a whole document (paper section 2).

    Args:
      layer: its weights.
      x: the input activations of all tokens.
      fams: the FAMs so far, at most P, newest first, each F activations.
      carries_context: whether the newest FAM comes from an update, so that it is the residual of the next one.
      start: absolute position of the first token.
    """
    memory = layer.config.memory
    S, F = memory.block_size, memory.fam_length if layer.has_fam() else 0
    prompt, static = fams[:1], memory.fam_update == "static"
    out = []
    for begin in range(0, len(x), S):
        end = min(begin + S, len(x))
        # [KF_{tau-1}], or the FAMs of the last P blocks.
        fam_pairs = []
        for age, fam in enumerate(fams):
            for f in range(F):
                position = fam_position(layer.config, start + begin - age * S, f)
                fam_pairs.append(layer.key_value(fam[f], position))
        # a_t = attend(q_t, [K_{tau-M} .. K_{tau-1}, KF_{tau-1}, K_{tau,:t}]) + i_t
        for t in range(begin, end):
            pairs = []
            for seen in in_window(layer, t):
                of_output = seen < begin and memory.segments_hold == "outputs"
                pairs.append(layer.key_value(out[seen] if of_output else x[seen], start + seen))
            attended = layer.attend_through_gate(layer.query(x[t], start + t), pairs, fam_pairs)
            out.append(layer.feed_forward(attended + x[t], x[t]))
        # F_tau = FF(norm(AF)) + AF,  AF = attend(QF, [KF_{tau-1}, K_tau]) + F_{tau-1}
        if F and end - begin == S:
            pairs = fam_pairs + [layer.key_value(x[t], start + t) for t in range(begin, end)]
            new = []
            for f in range(F):
                before = prompt[0][f] if static else fams[0][f]
                query = layer.query(before, fam_position(layer.config, start + end, f))
                zero = memory.zero_first_residual and (static or not carries_context)
                residual = np.zeros(layer.config.d_model) if zero else before
                made = layer.feed_forward(layer.attend(query, pairs) + residual, residual)
                if memory.fam_update == "gated":
                    made = layer.gated_write(residual, made - residual)
                rms = np.sqrt(np.mean(made**2))
                too_large = memory.fam_max_rms and rms > memory.fam_max_rms
                new.append(made * memory.fam_max_rms / rms if too_large else made)
            fams = [np.array(new), *fams][: memory.previous_fams]
            carries_context = True
    return out, fams


def in_window(layer: "Layer", t: int) -> list[int]:
    """Returns the tokens that token t of a document sees: its block and M before, within the exact windows."""
    memory = layer.config.memory
    first = max(0, t // memory.block_size - memory.memory_segments) * memory.block_size
    windows = [memory.token_window] + [layer.config.local_window] * (layer.kind() == "local")
    return [seen for seen in range(first, t + 1) if all(not window or t - seen < window for window in windows)]


def learned_fam(config: ModelConfig, params: dict, start: int) -> list[np.ndarray]:
    """Returns each layer's initial memory [F, D]: the prompt propagated through the layers, or the prefix."""
    F = config.memory.fam_length
    if not F:
        return [np.zeros((0, config.d_model))] * config.num_layers
    if config.memory.fam_init == "prefix":
        return list(params["fam"]["prefix"])
    x = params["fam"]["prompt"] * entry_scale(config)
    fams = []
    for index in range(config.num_layers):
        fams.append(x)
        layer = Layer(config, take(params["layers"], index), index)
        where = [fam_position(config, start, f) for f in range(F)]
        pairs = [layer.key_value(x[f], where[f]) for f in range(F)]
        heads = [layer.attend(layer.query(x[f], where[f]), pairs) for f in range(F)]
        x = np.array([layer.feed_forward(heads[f] + x[f], x[f]) for f in range(F)])
    return fams


def fam_position(config: ModelConfig, edge: int, f: int) -> float:
    """Returns the absolute position of activation f of the memory from the block that ends just before `edge`."""
    F = config.memory.fam_length
    if config.memory.fam_position == "last":
        return edge - F + f
    if config.memory.fam_position == "float":
        return edge - 1 + (f + 1) / (F + 1)
    return 0.0


@dataclasses.dataclass
class Layer:
    """The weights of one layer and its operations on one token."""

    config: ModelConfig
    weights: dict
    index: int = 0
    gate: np.ndarray | None = None

    def kind(self) -> str:
        """`global` or `local`."""
        return self.config.layer_pattern[self.index % len(self.config.layer_pattern)]

    def has_fam(self) -> bool:
        """Whether the layer has a feedback memory."""
        which = self.config.memory.fam_layers
        return which in ("all", self.kind()) or which[self.index % len(which)] == "+"

    def query(self, token: np.ndarray, position: float) -> np.ndarray:
        """[heads, H]"""
        normed = norm(self.config, token, self.weights["attention_norm"]["scale"])
        return self._turned(normed, "query", position)

    def key_value(self, token: np.ndarray, position: float) -> tuple[np.ndarray, np.ndarray]:
        """Two [kv_heads, H]."""
        normed = norm(self.config, token, self.weights["attention_norm"]["scale"])
        value = np.einsum("d,dnh->nh", normed, self.weights["attention"]["value"])
        value = value + self.weights["attention"].get("value_bias", 0.0)
        return self._turned(normed, "key", position), value

    def attend(self, query: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Softmax attention of one token to (key, value) pairs, through the output projection: [D]."""
        return self.project(self.heads(query, pairs))

    def gated_write(self, old: np.ndarray, update: np.ndarray) -> np.ndarray:
        """(1 - g) F + g U."""
        g = self.write_gate(old, update)
        return (1 - g) * old + g * update

    def write_gate(self, old: np.ndarray, update: np.ndarray) -> float:
        """g = clip(1.02 sigmoid(w_F n(F) + w_U n(U) + b) - 0.01, 0, 1); n divides by the root mean square."""
        learned = self.weights["memory"]
        unit = lambda x: x / np.sqrt(np.mean(x**2) + 1e-6)
        score = learned["write_old"] @ unit(old) + learned["write_new"] @ unit(update) + learned["write_bias"][0]
        return float(np.clip(1.02 / (1 + np.exp(-score)) - 0.01, 0, 1))

    def attend_through_gate(self, query: np.ndarray, pairs: list[Any], fam_pairs: list[Any]) -> np.ndarray:
        """`attend` to tokens and FAM; with a gate, a mix by head of that and attention without FAM."""
        heads = self.heads(query, fam_pairs + pairs)
        if self.gate is not None:
            without = self.heads(query, pairs)
            heads = [g * a + (1 - g) * b for g, a, b in zip(self.gate, heads, without, strict=True)]
        return self.project(heads)

    def heads(self, query: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Returns softmax attention of one token by head."""
        group = self.config.num_heads // self.config.num_kv_heads
        heads = []
        for n in range(self.config.num_heads):
            scale = self.config.attention_scale or 1 / np.sqrt(self.config.head_dim)
            scores = np.array([query[n] @ key[n // group] for key, _ in pairs]) * scale
            scores = capped(scores, self.config.attention_cap)
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            heads.append(sum(share * value[n // group] for share, (_, value) in zip(shares, pairs, strict=True)))
        return heads

    def project(self, heads: list[np.ndarray]) -> np.ndarray:
        """Applies the output projection: [D]."""
        out = np.einsum("nh,nhd->d", np.array(heads), self.weights["attention"]["output"])
        out = out + self.weights["attention"].get("output_bias", 0.0)
        return norm(self.config, out, self.weights["post_attention_norm"]["scale"]) if self.config.post_norms else out

    def feed_forward(self, a: np.ndarray, before: np.ndarray) -> np.ndarray:
        """FF(norm(a)) + a; with parallel layers FF(norm(before)) + a, where `before` is a without attention."""
        weights = self.weights["feed_forward"]
        if self.config.parallel_layers:
            normed = norm(self.config, before, self.weights["attention_norm"]["scale"])
        else:
            normed = norm(self.config, a, self.weights["ff_norm"]["scale"])
        act = ACTIVATIONS[self.config.activation]
        up = normed @ weights["up"] + weights.get("up_bias", 0.0)
        gate = normed @ weights["gate"] + weights.get("gate_bias", 0.0) if self.config.gated_ff else None
        hidden = act(up) if gate is None else act(gate) * up
        out = hidden @ weights["down"] + weights.get("down_bias", 0.0)
        return a + (norm(self.config, out, self.weights["post_ff_norm"]["scale"]) if self.config.post_norms else out)

    def _turned(self, normed: np.ndarray, name: str, position: float) -> np.ndarray:
        projected = np.einsum("d,dnh->nh", normed, self.weights["attention"][name])
        projected = projected + self.weights["attention"].get(f"{name}_bias", 0.0)
        if self.config.qk_norm:
            scale = self.weights["attention"][name + "_norm"]["scale"]
            as_rms = dataclasses.replace(self.config, norm="rmsnorm")  # of queries and keys it always is
            projected = np.array([norm(as_rms, head, scale) for head in projected])
        if self.kind() == "local" and self.config.local_rope_base:
            return rope(projected, position, self.config.local_rope_base)
        return rope(projected, position, self.config.rope_base, self.config)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
}


def norm(config: ModelConfig, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """RMSNorm, or LayerNorm without bias."""
    if config.norm == "layernorm":
        x = x - x.mean()
    return x / np.sqrt((x * x).mean() + config.norm_eps) * (scale + 1 if config.norm_plus_one else scale)


def capped(x: np.ndarray, cap: float) -> np.ndarray:
    """Returns cap * tanh(x / cap), or x without a cap."""
    return cap * np.tanh(x / cap) if cap else x


def entry_scale(config: ModelConfig) -> float:
    """Returns the factor of the input embeddings."""
    return np.sqrt(config.d_model) if config.scale_embeddings else 1.0


def rope(heads: np.ndarray, position: float, base: float, scaling: ModelConfig | None = None) -> np.ndarray:
    """Rotates the pairs (i, i + H/2) of each head [.., H] by position * base**(-2i/H), or by less with scaled RoPE."""
    half = heads.shape[-1] // 2
    out = heads.copy()
    for i in range(half):
        frequency = base ** (-2 * i / heads.shape[-1])
        angle = position * (slowed(frequency, scaling) if scaling else frequency)
        a, b = heads[..., i], heads[..., i + half]
        out[..., i] = a * np.cos(angle) - b * np.sin(angle)
        out[..., i + half] = a * np.sin(angle) + b * np.cos(angle)
    return out


def slowed(frequency: float, config: ModelConfig) -> float:
    """Scaled RoPE: divides every frequency by a factor, or (Llama 3.1) only those with long wavelengths."""
    if config.rope_scaling == "linear":
        return frequency / config.rope_factor
    if config.rope_scaling == "llama3":
        wavelength = 2 * math.pi / frequency
        longest = config.rope_original_length / config.rope_low_frequency_factor
        shortest = config.rope_original_length / config.rope_high_frequency_factor
        if wavelength > longest:
            return frequency / config.rope_factor
        if wavelength > shortest:
            smooth = config.rope_original_length / wavelength - config.rope_low_frequency_factor
            smooth /= config.rope_high_frequency_factor - config.rope_low_frequency_factor
            return (1 - smooth) * frequency / config.rope_factor + smooth * frequency
    return frequency


def as_float64(tree: Any) -> Any:
    """Converts a nested dict of arrays to float64."""
    if isinstance(tree, dict):
        return {name: as_float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def take(tree: Any, index: int) -> Any:
    """Returns entry `index` of the leading axis of every array of a nested dict."""
    return {name: take(value, index) for name, value in tree.items()} if isinstance(tree, dict) else tree[index]
