"""A tiny training's settings, for targets that check and copy them."""

import pytest


@pytest.fixture
def gin(tmp_path):
    """Flags that name a gin file of the tests' own; the mesh is for 16 devices."""
    path = tmp_path / "of test.gin"
    path.write_text(
        "include 'gin/experiments/tiny_fam.gin'\nBATCH_SIZE = 16\nMESH = {'data': 2, 'fsdp': 8}\n"
        "MODEL_DIR = '/gcs/b/run'\n"
    )
    return ["--gin_file", str(path)]
