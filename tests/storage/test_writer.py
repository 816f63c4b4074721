"""Saving during a training: what is written, what is kept, and the errors if it cannot be written."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from famjax.config import ConfigError
from famjax.nn.weights import parameter_shapes
from famjax.storage import base, checkpoint, lock, steps
from famjax.storage.checkpoint import load_model
from famjax.storage.writer import Keep, Writer
from tests import tiny

CONFIG = tiny.config(vocab_size=20000)  # about a megabyte
SMALL = tiny.config()


def save_all(folder: Path, values: dict[int, dict], keep: Keep) -> None:
    params = tiny.parameters(SMALL)
    with Writer(folder, SMALL, keep) as writer:
        for step, metrics in values.items():
            writer.save(step, params, {"count": np.array(step)}, {"step": step}, metrics)


def test_donated_arrays_are_saved_as_they_were(tmp_path):
    """Steps after a save may reuse the arrays' memory while it is still running; the disk gets the values at the save,
    every element of them."""
    params = {"a": jnp.zeros(3_000_000), "b": {"c": jnp.zeros((1000, 7))}}
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    given, params = params, step(params)
    assert given["a"].is_deleted()
    with Writer(tmp_path, SMALL, Keep(last=9)) as writer:
        for n in range(4):
            writer.save(n, params)
            for _ in range(3):
                params = step(params)
            jax.block_until_ready(params)
    for n in range(4):
        shapes = jax.eval_shape(lambda: params)
        restored = checkpoint._load_weights(tmp_path, n, shapes)
        jax.tree.map(lambda x, n=n: np.testing.assert_array_equal(x, np.full(x.shape, 1 + 3 * n, x.dtype)), restored)


def test_saving_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    """`save` returns while the files are being written; the step is renamed only after its record is written; `check`
    does not wait, `wait` does. Changes by the caller meanwhile have no effect."""
    go_on, record, progress = threading.Event(), steps.record_step, {"losses": [1.0]}
    args, handed = ocp.args.JsonSave, []
    monkeypatch.setattr(ocp.args, "JsonSave", lambda item: (handed.append(item), args(item))[1])
    monkeypatch.setattr(steps, "record_step", lambda folder: (go_on.wait(60), record(folder)))
    with Writer(tmp_path, SMALL, Keep()) as writer:
        writer.save(1, tiny.parameters(SMALL), {"count": np.array(1)}, progress)
        progress["losses"].append(2.0)
        assert handed == [{"losses": [1.0]}]
        writer.check()
        assert writer.saved is None and steps.all_steps(tmp_path) == []
        go_on.set()
        writer.wait()
        assert writer.saved == 1 and steps.all_steps(tmp_path) == [1]
    assert checkpoint.resumable(tmp_path, {"count": np.array(0)}) == (1, {"losses": [1.0]})


def test_every_part_of_every_step_has_its_record(tmp_path):
    """FILES.json names every file next to it, with size and checksum; a change to any of them is found."""
    save_all(tmp_path, {1: {"loss": 1.0}, 2: {"loss": 2.0}}, Keep(last=2))
    for step in (1, 2):
        for part in (steps.WEIGHTS, steps.TRAINING, steps.PROGRESS, steps.METRICS):
            folder = steps.step_dir(tmp_path, step) / part
            files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"FILES.json"}
            assert set(json.loads((folder / "FILES.json").read_text())) == files
            assert steps.damage(tmp_path, step, [part]) == ""
            for name in files:
                content = (folder / name).read_bytes()
                (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
                assert steps.damage(tmp_path, step, [part]) == f"{folder / name} is missing or damaged"
                (folder / name).write_bytes(content)
        assert steps.recorded_metrics(tmp_path, step) == {"loss": step}


LOSSES = {1: 5.0, 2: 3.0, 3: float("nan"), 4: 4.0, 5: 3.0, 6: 9.0, 7: 8.0, 8: 7.0}


@pytest.mark.parametrize(
    ("keep", "left", "best"),
    [
        (Keep(), [8], None),
        (Keep(last=3), [6, 7, 8], None),
        (Keep(period=3), [3, 6, 8], None),
        (Keep(metric="loss"), [5, 8], [5]),
        (Keep(metric="loss", best=3), [2, 4, 5, 8], [5, 2, 4]),
        (Keep(metric="loss", mode="max", best=2), [6, 7, 8], [6, 7]),
        (Keep(last=2, period=4, metric="loss", best=1), [4, 5, 7, 8], [5]),
        (Keep(metric="no such"), [8], []),
    ],
)
def test_which_steps_stay(tmp_path, keep, left, best):
    """After eight saves: the newest, the multiples and the best are kept, and `best.json` names these, the best first
    (of equal ones the later). A non-finite loss is never best."""
    save_all(tmp_path, {step: {"loss": loss} for step, loss in LOSSES.items()}, keep)
    assert steps.all_steps(tmp_path) == left
    if best is None:
        assert not (tmp_path / "best.json").exists()
        return
    found = json.loads((tmp_path / "best.json").read_text())
    assert found == {
        "metric": keep.metric, "mode": keep.mode,
        "checkpoints": [{"step": step, keep.metric: LOSSES[step]} for step in best],
    }  # fmt: skip


def test_the_best_of_an_earlier_start_stays(tmp_path):
    """A resumed training knows the metrics of the existing steps."""
    save_all(tmp_path, {1: {"loss": 1.0}, 2: {"loss": 5.0}}, Keep(metric="loss"))
    save_all(tmp_path, {3: {"loss": 4.0}, 4: {"loss": 6.0}}, Keep(metric="loss"))
    assert steps.all_steps(tmp_path) == [1, 4]
    assert json.loads((tmp_path / "best.json").read_text())["checkpoints"] == [{"step": 1, "loss": 1.0}]


def test_a_step_and_the_best_can_be_named(tmp_path):
    """DIR/checkpoints/N and DIR/checkpoints/best are read like a model directory."""
    with Writer(tmp_path, SMALL, Keep(last=1, metric="loss")) as writer:
        for step, loss in ((1, 1.0), (2, 2.0)):
            writer.save(step, tiny.parameters(SMALL, seed=step), metrics={"loss": loss})
    seeds = {"checkpoints/1": 1, "checkpoints/2": 2, "checkpoints/best": 1, ".": 2}
    for name, seed in seeds.items():
        config, params = load_model(tmp_path / name, parameter_shapes)
        assert config == SMALL
        np.testing.assert_array_equal(params["embedding"], tiny.parameters(SMALL, seed)["embedding"])
    with pytest.raises(ConfigError, match="has no step 3; its steps: 1, 2"):
        load_model(tmp_path / "checkpoints/3", parameter_shapes)
    with pytest.raises(ConfigError, match=r"^\S+ has no step 3; its steps: 1, 2$"):
        base.of(tmp_path / "checkpoints/3")
    (tmp_path / "checkpoints/²").mkdir()  # a digit to `str.isdigit`
    assert steps.all_steps(tmp_path) == [1, 2]
    with pytest.raises(ConfigError, match="² is not a model directory"):
        load_model(tmp_path / "checkpoints/²", parameter_shapes)
    (tmp_path / "best.json").unlink()
    with pytest.raises(ConfigError, match="names no best checkpoint"):
        load_model(tmp_path / "checkpoints/best", parameter_shapes)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ConfigError, "the disk is full: step 2 could not be saved"),
        (OSError(errno.EROFS, "Read-only file system"), ConfigError, "step 2 could not be saved .* it is read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), ConfigError, "permission denied"),
        (ValueError("a bug"), RuntimeError, r"step 2 could not be saved in .* \(ValueError: a bug\)"),
    ],
)
@pytest.mark.parametrize("where", ["check", "save", "close"])
def test_what_goes_wrong_in_the_background_is_never_lost(tmp_path, monkeypatch, capfd, error, kind, message, where):
    """An error in Orbax's thread, raised while the record is written, is raised by the next call of any method, as one
    line that names the intact step; the step before is untouched, the broken one leaves nothing."""

    def broken(folder: Path) -> None:
        raise error

    params = tiny.parameters(SMALL)
    writer = Writer(tmp_path, SMALL, Keep())
    writer.save(1, params)
    writer.wait()
    monkeypatch.setattr(steps, "record_step", broken)
    writer.save(2, params)
    while writer._manager.is_saving_in_progress():
        pass
    with pytest.raises(kind, match=message) as raised:
        {"check": writer.check, "save": lambda: writer.save(3, params), "close": writer.close}[where]()
    assert "; step 1 is intact" in str(raised.value) and "\n" not in str(raised.value)
    writer.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert capfd.readouterr().err == ""
    np.testing.assert_array_equal(load_model(tmp_path, parameter_shapes)[1]["embedding"], params["embedding"])


FILE_LIMIT = """
    from famjax.process import libtpu
    libtpu.hide_without_tpu()
    import jax, resource, signal, sys
    from pathlib import Path
    from famjax.config import ConfigError
    from famjax.storage.writer import Keep, Writer
    from tests import tiny
    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    params = tiny.parameters(tiny.config(vocab_size=20000))
    writer = Writer(folder, tiny.config(vocab_size=20000), Keep())
    writer.save(1, params)
    writer.wait()
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        for step in (2, 3):
            writer.save(step, params)
        writer.close()
    except ConfigError as error:
        print(error)
        sys.exit(2)
"""


def in_process(folder: Path, limit: int) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", textwrap.dedent(FILE_LIMIT), str(folder), str(limit)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)


def test_files_that_may_not_grow(tmp_path):
    """A process with a file size limit of 100 kB (ulimit -f): the error on the arrays' files is reported in one line,
    with no other output; step 1 is intact. The next start removes the rest of the broken step."""
    done = in_process(tmp_path, 100_000)
    assert done.returncode == 2, done.stderr
    assert "a file exceeds the size limit (ulimit -f): step 2" in done.stdout and "step 1 is intact" in done.stdout
    assert done.stderr == ""
    assert steps.all_steps(tmp_path) == [1]
    load_model(tmp_path, parameter_shapes)
    checkpoint.save_model(tmp_path, CONFIG, tiny.parameters(CONFIG))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1.6 MB, if this machine allows mounting one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk; the limit on files above shows the same way out")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(small_disk):
    """A real file system without space for the second step: one line with the free space and the size of a step, and
    step 1 is intact. A read-only disk refuses a training before any work."""
    done = in_process(small_disk / "m", 0)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("the disk is full: step ")
    assert "(a step takes " in done.stdout and "KB are free)" in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert steps.all_steps(small_disk / "m") == [1] and "step 1 is intact" in done.stdout
    load_model(small_disk / "m", parameter_shapes)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ConfigError, match="cannot be written: Read-only file system"), lock.held(small_disk / "m"):
        pass
    load_model(small_disk / "m", parameter_shapes)


def test_directories_that_cannot_be(tmp_path):
    """Below a file, and without write permission: one line, before any work."""
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "file" / "m", "Not a directory"), (Path("/sys/famjax"), "ermi")):
        with pytest.raises(ConfigError, match=f"MODEL_DIR {folder} cannot be written: .*{reason}"), lock.held(folder):
            pass


def test_a_lock_leaves_nothing_behind(tmp_path):
    """A directory created for the lock alone is removed with it; one that has content is kept, without the lock."""
    with lock.held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        with (
            pytest.raises(ConfigError, match=f"another training .process {os.getpid()} on"),
            lock.held(tmp_path / "a/b"),
        ):
            pass
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path / "a"):
        (tmp_path / "a" / "file").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]


def test_a_lock_that_lost_its_name_locks_nobody_out(tmp_path):
    """A process that opened the file before its holder removed it opens a new one: two never hold the lock."""
    with lock.held(tmp_path):
        (tmp_path / ".lock").unlink()
        with lock.held(tmp_path):
            assert (tmp_path / ".lock").exists()


def test_nothing_is_saved_into_a_training(tmp_path):
    """`save_model`, as used by an import, refuses a directory that a training is using."""
    with lock.held(tmp_path), pytest.raises(ConfigError, match="is using MODEL_DIR"):
        checkpoint.save_model(tmp_path, SMALL, tiny.parameters(SMALL))


def test_a_whole_model_has_no_base(tmp_path):
    """A training of a part of the weights was killed in its first save; one of all weights begins in its directory."""
    (tmp_path / "base.json").write_text('{"path": "/gone", "step": 0, "record": "none"}')
    save_all(tmp_path, {1: {}}, Keep())
    assert not (tmp_path / "base.json").exists()
    assert load_model(tmp_path, parameter_shapes)[0] == SMALL
