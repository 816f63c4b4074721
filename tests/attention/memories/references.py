"""Other memories than FAM in float64 NumPy, token by token: what `tests/reference.py` is to FAM.

Each function reads one document through one layer, as `reference.read_document` does: absolute positions, keys gathered
one by one, no state but Python lists.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from famjax.config import ModelConfig
from tests.reference import Layer, as_float64, entry_scale, in_window, norm, read_document, take

Read = Callable[..., tuple[list[np.ndarray], list[np.ndarray]]]


def window(layer: Layer, x: list[np.ndarray], t: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and values that token t sees in its window."""
    return [layer.key_value(x[seen], seen) for seen in in_window(layer, t)]


def sinks(layer: Layer, x: list[np.ndarray], *_: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """StreamingLLM: the first n tokens stay, right before the window, once block 0 has left it."""
    memory, out = layer.config.memory, []
    n, S, M = memory.sinks, memory.block_size, memory.memory_segments
    for t, token in enumerate(x):
        pairs = window(layer, x, t)
        oldest = (t // S - M) * S  # the first token of the window
        if oldest > 0:
            pairs = [layer.key_value(x[j], oldest - n + j) for j in range(n)] + pairs
        out.append(layer.feed_forward(layer.attend(layer.query(token, t), pairs) + token, token))
    return out, []


def infini(layer: Layer, x: list[np.ndarray], *_: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Infini-attention, equations 3 to 10: retrieve from the segments before, then update."""
    config, memory, out = layer.config, layer.config.memory, []
    S, H, group = memory.block_size, config.head_dim, config.num_heads // config.num_kv_heads
    phi = lambda a: np.where(a > 0, a + 1, np.exp(np.minimum(a, 0)))
    open_by = 1 / (1 + np.exp(-layer.weights["memory"]["gate"]))
    matrix, z = np.zeros((config.num_kv_heads, H, H)), np.zeros((config.num_kv_heads, H))
    for begin in range(0, len(x), S):
        block = range(begin, min(begin + S, len(x)))
        for t in block:
            heads = layer.heads(layer.query(x[t], t), window(layer, x, t))
            # A query or key at position 0 is not rotated.
            query = phi(layer.query(x[t], 0))
            for n, a_dot in enumerate(heads):
                k = n // group
                a_mem = query[n] @ matrix[k] / (query[n] @ z[k]) if begin else np.zeros(H)
                heads[n] = open_by[n] * a_mem + (1 - open_by[n]) * a_dot
            out.append(layer.feed_forward(layer.project(heads) + x[t], x[t]))
        if len(block) == S:
            old, old_z = matrix.copy(), z.copy()
            for t in block:
                key, value = layer.key_value(x[t], 0)
                for k in range(config.num_kv_heads):
                    f = phi(key[k])
                    there = f @ old[k] / (f @ old_z[k]) if begin and memory.infini_delta else np.zeros(H)
                    matrix[k] += np.outer(f, value[k] - there)
                    z[k] += f
    return out, []


def deltanet(layer: Layer, x: list[np.ndarray], *_: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The gated delta rule, equation 10 of Gated DeltaNet, token by token: S is [values, keys] as in the paper."""
    config, w, out = layer.config, layer.weights["memory"], []
    H, group = config.head_dim, config.num_heads // config.num_kv_heads
    unit = lambda a: a / np.sqrt((a * a).sum() + 1e-6)
    states = [np.zeros((H, H)) for _ in range(config.num_kv_heads)]
    for t, token in enumerate(x):
        heads = layer.heads(layer.query(token, t), window(layer, x, t))
        query, (key, value) = layer.query(token, 0), layer.key_value(token, 0)
        normed = norm(config, token, layer.weights["attention_norm"]["scale"])
        for n in range(config.num_kv_heads):
            step = np.log1p(np.exp(normed @ w["alpha"][:, n] + w["bias"][n]))
            alpha, beta = np.exp(-np.exp(w["rate"][n]) * step), 1 / (1 + np.exp(-normed @ w["beta"][:, n]))
            k = unit(key[n])
            erase = np.eye(H) - beta * np.outer(k, k)
            states[n] = alpha * states[n] @ erase + beta * np.outer(value[n], k)
        for n in range(config.num_heads):
            o = states[n // group] @ unit(query[n])
            heads[n] = heads[n] + w["gate"][n] * o / np.sqrt((o * o).mean() + 1e-5)
        out.append(layer.feed_forward(layer.project(heads) + token, token))
    return out, []


def retrieval(layer: Layer, x: list[np.ndarray], *_: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each head of each token sees its window, and the best of the last N blocks that have left it: those whose mean
    key, without position, has the largest product with its query. They all stand right before the window."""
    config, memory, out = layer.config, layer.config.memory, []
    S, M, group = memory.block_size, memory.memory_segments, config.num_heads // config.num_kv_heads
    for t, token in enumerate(x):
        tau = t // S
        kept = range(max(0, tau - memory.retrieval_blocks), max(0, tau - M))
        means = {n: np.mean([layer.key_value(x[n * S + i], 0)[0] for i in range(S)], axis=0) for n in kept}
        heads = []
        for h in range(config.num_heads):
            score = lambda n, h=h, token=token, means=means: layer.query(token, 0)[h] @ means[n][h // group]
            chosen = sorted(kept, key=score)[-memory.retrieval_top_k :]
            first = (tau - M - 1) * S
            pairs = [layer.key_value(x[n * S + i], first + i) for n in chosen for i in range(S)]
            heads.append(layer.heads(layer.query(token, t), pairs + window(layer, x, t))[h])
        out.append(layer.feed_forward(layer.project(heads) + token, token))
    return out, []


def rmt(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """RMT and AutoCompressors: each segment is a text of its own, [memory, segment, memory], read by a plain causal
    Transformer. AutoCompressors read what the segments before have left, and write with the learned tokens."""
    S, n, out = config.memory.block_size, config.memory.memory_tokens, []
    params = as_float64(params)
    learned, C = params["memory"]["tokens"], config.memory.summary_blocks
    accumulates = config.memory.kind == "autocompressor"
    memory = [] if accumulates else list(learned)
    # A block of any length that has no segments before it.
    alone = dataclasses.replace(config.memory, kind="fam", block_size=S + (C + 2) * n, memory_segments=0)
    plain = dataclasses.replace(config, memory=alone)
    for begin in range(0, len(tokens), S):
        segment = [params["embedding"][token] * entry_scale(config) for token in tokens[begin : begin + S]]
        write = learned if accumulates else memory
        x = [*memory, *segment, *write] if len(segment) == S else [*memory, *segment]
        for index in range(config.num_layers):
            x, _ = read_document(Layer(plain, take(params["layers"], index), index), list(x), [], False, 0)
        hidden = [norm(config, token, params["final_norm"]["scale"]) for token in x]
        out += hidden[len(memory) : len(memory) + len(segment)]
        new = hidden[len(memory) + S :]
        memory = [*memory, *new][-C * n :] if accumulates else new
    return np.array(out)


def armt(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """ARMT: each segment and its memory tokens are a text of their own, read by a causal Transformer
    whose layers recall from a matrix and rewrite it with what they have made of the memory tokens."""
    S, n, out = config.memory.block_size, config.memory.memory_tokens, []
    params, width = as_float64(params), 6 * config.memory.memory_key_dim
    alone = dataclasses.replace(config.memory, kind="fam", block_size=S + n, memory_segments=0)
    plain = dataclasses.replace(config, memory=alone)
    layers = [Layer(plain, take(params["layers"], index), index) for index in range(config.num_layers)]
    matrices = [np.zeros((config.d_model, width)) for _ in layers]
    normalisers = [np.zeros(width) for _ in layers]

    def phi(a: np.ndarray) -> np.ndarray:
        r = np.maximum(np.concatenate([a, -a]), 0)
        return np.concatenate([[r[i] * r[i - j] for i in range(len(r))] for j in (1, 2, 3)])

    for begin in range(0, len(tokens), S):
        segment = [params["embedding"][token] * entry_scale(config) for token in tokens[begin : begin + S]]
        x = [*segment, *params["memory"]["tokens"]] if len(segment) == S else segment
        for index, layer in enumerate(layers):
            w, A, z = layer.weights["memory"], matrices[index], normalisers[index]
            features = [phi(token @ w["query"]) for token in x]
            x = [token + A @ f / (z @ f + 1e-5) for token, f in zip(x, features, strict=True)]
            x, _ = read_document(layer, x, [], False, 0)
            for m in x[S:]:
                k, v, beta = phi(m @ w["key"]), m @ w["value"], 1 / (1 + np.exp(-m @ w["beta"]))
                gamma = np.clip(1 - (z @ k + 1e-5) / (k @ k + 1e-5), 0, 1)
                matrices[index] = matrices[index] + beta * np.outer(v - A @ k / (z @ k + 1e-5), k)
                normalisers[index] = normalisers[index] + gamma * k
        out += [norm(config, token, params["final_norm"]["scale"]) for token in x[: len(segment)]]
    return np.array(out)


READ: dict[str, Read] = {"sinks": sinks, "infini": infini, "deltanet": deltanet, "retrieval": retrieval}
