"""The compiled programs that are measured: a training step, and a streamed prefill."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from famjax.config import ModelConfig, OptimizerConfig
from famjax.nn import weights as model_lib
from famjax.train.loss import cross_entropy
from famjax.train.optim import optimizer

# Length of the learning rate schedule, far beyond any run here.
SCHEDULED_STEPS = 1_000_000


class Program(NamedTuple):
    """A compiled program, ready to run.

    Attributes:
      run: runs the program once and waits for the result.
      weights: number of parameters of the model.
      compile_seconds: time of tracing and compilation, without a cache.
      first_seconds: time of the first run.
      memory_mib: arguments, results and temporaries in the compiler's memory analysis, MiB.
    """

    run: Callable[[], None]
    weights: int
    compile_seconds: float
    first_seconds: float
    memory_mib: float


def _compiled(step: Callable[..., Any], arguments: tuple[Any, ...], donated: tuple[int, ...]) -> tuple[Any, float]:
    began = time.perf_counter()
    program = jax.jit(step, donate_argnums=donated).lower(*arguments).compile()
    return program, time.perf_counter() - began


def _first_run(run: Callable[[], None], params: Any, program: Any, compile_seconds: float) -> Program:
    """Runs a program with the weights `params` for the first time, and returns it with its costs."""
    weights = sum(x.size for x in jax.tree.leaves(params))
    sizes = program.memory_analysis()
    size = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    return Program(run, weights, compile_seconds, seconds, (size - sizes.alias_size_in_bytes) / 2**20)


def training_step(config: ModelConfig, rows: int, length: int) -> Program:
    """Compiles a training step on random tokens: forward, loss on every token, backward and AdamW."""
    model = model_lib.create(config)
    graphdef, params = nnx.graphdef(model), model_lib.parameters(model)
    tx = optimizer(OptimizerConfig(), SCHEDULED_STEPS)
    tokens_BT = jax.random.randint(jax.random.key(1), (rows, length), 0, config.vocab_size)

    def loss_fn(params: Any, tokens_BT: Any) -> Any:
        model = nnx.merge(graphdef, params)
        hidden_BTD, _ = model(tokens_BT)
        return cross_entropy(model.logits(hidden_BTD[:, :-1]), tokens_BT[:, 1:]).mean()

    def step(params: Any, opt_state: Any, tokens_BT: Any) -> tuple[Any, Any, Any]:
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens_BT)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    state = (params, tx.init(params))
    program, compile_seconds = _compiled(step, (*state, tokens_BT), donated=(0, 1))

    def run() -> None:
        nonlocal state
        *state, loss = program(*state, tokens_BT)
        loss.block_until_ready()

    return _first_run(run, params, program, compile_seconds)


def streamed_prefill(config: ModelConfig, rows: int, blocks_per_call: int) -> tuple[Callable[[int], None], Program]:
    """Compiles streamed prefill of `rows` random texts, block by block, without logits. Returns a function that reads a
    new text of N blocks, a multiple of `blocks_per_call`; and the program."""
    model = model_lib.unstacked(model_lib.create(config))
    graphdef, params = nnx.graphdef(model), model_lib.parameters(model)
    shape = (blocks_per_call, rows, config.memory.block_size)
    tokens_NBS = jax.random.randint(jax.random.key(1), shape, 0, config.vocab_size)

    def call(params: Any, state: Any, tokens_NBS: Any) -> tuple[Any, Any]:
        model = nnx.merge(graphdef, params)

        def block(state: Any, tokens_BS: Any) -> tuple[Any, Any]:
            hidden_BSD, state = model.read(tokens_BS, state)
            return state, hidden_BSD[:, -1]

        state, last_NBD = jax.lax.scan(block, state, tokens_NBS)
        return state, last_NBD[-1]

    fresh = model.streaming_state(rows)
    program, compile_seconds = _compiled(call, (params, fresh, tokens_NBS), donated=(1,))

    def read(blocks: int) -> None:
        state: Any = jax.tree.map(jnp.copy, fresh)
        last: Any = None
        for _ in range(blocks // blocks_per_call):
            state, last = program(params, state, tokens_NBS)
            last.block_until_ready()

    return read, _first_run(lambda: read(blocks_per_call), params, program, compile_seconds)
