"""Values that processes of a job must share in addition to their settings."""

import famjax
from famjax.jobs import versions


def test_versions_name_what_decides_the_numbers():
    """Versions of packages, compiler flags, the code; short, so that a difference can be shown."""
    found = versions.versions({"XLA_FLAGS": "--xla_x=1"})
    assert found["version of famjax"] == famjax.__version__
    assert {"version of Python", "version of jax", "version of jaxlib", "version of libtpu"} <= found.keys()
    assert found["variable XLA_FLAGS"] == "--xla_x=1" and found["variable LIBTPU_INIT_ARGS"] == ""
    assert all(isinstance(value, str) and len(value) < 60 for value in found.values())


def test_a_changed_or_renamed_file_is_other_code(tmp_path, monkeypatch):
    """The digest depends on the files' names and contents only."""
    package = tmp_path / "famjax"
    package.mkdir()
    monkeypatch.setattr(famjax, "__file__", str(package / "__init__.py"))
    digests = []
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "x = 2"), ("notes.txt", "x"), ("c.py", "x = 2")):
        for path in package.iterdir() if name != "notes.txt" else ():
            path.unlink()
        (package / name).write_text(text)
        versions.code.cache_clear()
        digests.append(versions.code())
    versions.code.cache_clear()
    assert len(set(digests)) == 4 and digests[3] == digests[2]
