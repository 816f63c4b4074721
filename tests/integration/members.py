"""One process of a job that asks the others all there is to ask, for `test_processes.py`.

    python -m tests.integration.members      # which one it is, the environment says

Leaves with 0 if all answers were right; an assertion that fails ends the other processes too.
"""

import sys

from famjax.config import ConfigError
from famjax.runtime import distributed


def ask() -> None:
    import jax
    import numpy as np

    from famjax.runtime import sharding
    from famjax.runtime.mesh import make_mesh

    me, n = jax.process_index(), jax.process_count()
    assert n > 1
    assert distributed.is_primary() == (me == 0)

    # Values of different sizes, one of them large.
    values = distributed.gather_json({"process": me, "text": "é" * 1000 * me, "none": None})
    assert values == [{"process": i, "text": "é" * 1000 * i, "none": None} for i in range(n)]

    lanes = {f"{lane}/position": lane * 10 for lane in range(me, 2 * n, n)}
    merged = distributed.merge_progress(lanes | {"epoch": 3})
    assert merged == {f"{lane}/position": lane * 10 for lane in range(2 * n)} | {"epoch": 3}
    assert distributed.merge_progress(merged) == merged, "every process may have all lanes"
    for wrong in ({"epoch": me}, {"0/position": me}, {"epoch": 1} if me == 0 else {}):
        try:
            distributed.merge_progress(wrong)
        except RuntimeError as error:
            assert f"process {1} has" in str(error)
        else:
            raise AssertionError(f"{wrong} was merged")

    distributed.require_same("the step", 4, "share it")
    try:
        distributed.require_same("the step", None if me else 4, "share it")
    except ConfigError as error:
        assert str(error) == "the step is 4 for process 0, but None for process 1; share it"
    else:
        raise AssertionError("different values passed")

    assert distributed.agree(False) is False
    assert distributed.agree(me == n - 1) is True
    assert distributed.agree(True) is True

    mesh = make_mesh((n, 1, 1))
    rows = np.arange(n * 3).reshape(n, 3)
    array = jax.make_array_from_process_local_data(sharding.by_rows(mesh), rows[me : me + 1], rows.shape)
    assert not array.is_fully_addressable
    np.testing.assert_array_equal(distributed.whole(array), rows)
    np.testing.assert_array_equal(distributed.whole(rows), rows)

    distributed.barrier("end")
    try:
        if me == 0:
            distributed.barrier("alone", 1.0)
            raise AssertionError("nobody else was there")
    except jax.errors.JaxRuntimeError as error:
        assert "alone" in str(error)
    distributed.barrier("after all")
    print(f"process {me} prints")


if __name__ == "__main__":
    with distributed.joined(distributed.find_job(), {}, lambda: "", prog="members"):
        ask()
    sys.exit(0)
