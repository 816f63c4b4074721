"""What becomes of a compiling child, whatever it does."""

import json
import os
import sys
import time

import pytest

from famjax.config import ConfigError
from famjax.plan import child


def run(program: str, **options):
    """A child that runs this Python program, which knows its `folder`."""
    command = lambda folder: [sys.executable, "-c", f"import os, sys; folder = {str(folder)!r}\n{program}"]
    return child.run(command, **options)


def test_its_result_is_returned_and_its_noise_is_not_shown(capfd):
    """What it prints goes to a log; its environment lets libtpu compile and names the CPU as jax's platform."""
    found = run("import json; print('noise'); print('noise', file=sys.stderr)\n"
                "json.dump(dict(os.environ), open(folder + '/result.json', 'w'))")  # fmt: skip
    assert found["JAX_PLATFORMS"] == "cpu" and found["TPU_LIBRARY_PATH"].endswith("libtpu.so")
    assert "--xla_dump_to=" in found["XLA_FLAGS"] and "JAX_COMPILATION_CACHE_DIR" not in found
    assert capfd.readouterr() == ("", "")


def test_its_mistakes_are_the_users():
    """Exit code 2 with a line: that line, without the verb."""
    with pytest.raises(ConfigError, match="^BATCH_SIZE 6: does not divide$"):
        run("print('noise'); print('famjax plan: BATCH_SIZE 6: does not divide', file=sys.stderr); sys.exit(2)")


def test_its_failure_is_told():
    """Any other exit code: its last line. A signal: which one, and that memory is the likely reason."""
    with pytest.raises(RuntimeError, match="the TPU compiler failed: INTERNAL: that"):
        run("print('this'); print('INTERNAL: that'); sys.exit(1)")
    with pytest.raises(RuntimeError, match="signal 9; .*memory"):
        run("os.kill(os.getpid(), 9)")


def test_quick_ends_it_when_the_program_is_laid_out(tmp_path):
    """The child would sleep for minutes; memory is that of the buffer assignment, and a kept folder has the texts."""
    given = {"lower_seconds": 0.5, "unknown_trips": 1, "branch_share": 1, "mesh": {}, "tokens": 7}
    program = f"""
import time
write = lambda name, text: open(folder + "/" + name, "w").write(text)
write("given.json", {json.dumps(json.dumps(given))})
write("m.after_optimizations-buffer-assignment.txt", "allocation 0: size 70, page 0, preallocated-temp:\\n")
write("m.after_optimizations_after_buffer_assignment.txt", "")
time.sleep(600)
"""
    began = time.monotonic()
    found = run(program, quick=True, keep=tmp_path / "kept")
    assert time.monotonic() - began < 60
    assert found["tokens"] == 7 and found["memory"]["temp"] == 70 and "cycles" not in found
    assert (tmp_path / "kept/m.after_optimizations-buffer-assignment.txt").exists()


def test_an_interrupted_wait_leaves_no_child(tmp_path, monkeypatch):
    """Whatever ends the wait ends the child, too."""

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(child.interrupts, "check", interrupt)
    path = tmp_path / "pid"
    program = f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        child.run(lambda folder: [sys.executable, "-c", program])
    if path.exists():  # it had begun
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
