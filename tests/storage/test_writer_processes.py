"""Two processes of one job save into one directory, and read it again; so does a single one."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np

from famjax.nn.weights import parameter_shapes
from famjax.storage import steps
from famjax.storage.checkpoint import load_model
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
    import sys, jax, numpy as np
    folder, address, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.distributed.initialize(address, 2, number)
    from famjax.storage import checkpoint, lock, steps
    from famjax.mesh import sharding
    from famjax.mesh.devices import make_mesh
    from famjax.storage.writer import Keep, Writer
    from famjax.jobs.distributed import in_any_process
    from famjax.train.start import sharded_shapes
    from tests import tiny

    config, mesh = tiny.config(), make_mesh((1, 2, 1))
    where = sharded_shapes(config, mesh)
    put = lambda x, place: jax.make_array_from_callback(x.shape, place.sharding, lambda index: np.asarray(x)[index])
    recorded = []
    original = steps.record_step
    steps.record_step = lambda path: (recorded.append(path), original(path))
    with Writer(folder, config, Keep(last=2, metric="loss")) as writer:
        for step in (1, 2, 3):
            params = jax.tree.map(put, tiny.parameters(config, step), where)
            writer.save(step, params, {"m": params["embedding"]}, {"step": step}, {"loss": float(step)})
            jax.block_until_ready(params)
    assert len(recorded) == (3 if number == 0 else 0)
    if number == 0:
        victim = next(path for path in steps.step_dir(writer.root, 3).rglob("d/*") if path.is_file())
        victim.write_bytes(b"")
    # The first process alone looks for damage and decides; the second goes along.
    restored, told = checkpoint.restore_training(folder, where, {"m": where["embedding"]})
    assert restored.step == 2 and restored.progress == {"step": 2}
    assert ("step 3" in told) == (number == 0)
    expected = jax.tree.map(put, tiny.parameters(config, 2), where)
    for one, other in zip(jax.tree.leaves(restored.params), jax.tree.leaves(expected), strict=True):
        assert one.sharding == other.sharding
        for a, b in zip(one.addressable_shards, other.addressable_shards, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    # A wish of either process is the wish of both.
    assert in_any_process(number == 1, False) == [True, False]
    assert restored.params["embedding"].addressable_shards[0].data.shape[1] == config.d_model // 2
"""


def test_two_processes_save_and_restore(tmp_path):
    """Each writes its half of every weight; the first one alone writes the records. With the newest step damaged both
    resume from the one before, each with its half; and a single process reads all of it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "m"), address]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    jobs = [subprocess.Popen([*program, str(n)], cwd=ROOT, env=environment, **pipes) for n in (0, 1)]
    try:
        told = [job.communicate(timeout=120)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(told)
    assert steps.all_steps(tmp_path / "m") == [1, 2, 3]
    assert steps.damage(tmp_path / "m", 2, [steps.WEIGHTS, steps.TRAINING, steps.PROGRESS, steps.METRICS]) == ""
    _, params = load_model(tmp_path / "m" / "checkpoints" / "best", parameter_shapes)
    np.testing.assert_array_equal(params["embedding"], tiny.parameters(tiny.config(), 1)["embedding"])
