"""Atomic creation of directories, and work on them that resumes after a kill."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from famjax.config import ConfigError
from famjax.storage.unfinished import JOURNAL, atomic_directory, resumable_directory


def test_a_directory_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    """An error inside leaves nothing; files of a killed process are removed."""
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "old").write_text("left behind")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "new") as partial:
        (partial / "file").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic_directory(tmp_path / "new") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "file"]
    with pytest.raises(ConfigError, match="exists already"), atomic_directory(tmp_path / "new"):
        pass
    with pytest.raises(ConfigError, match="does not exist; create it first"), atomic_directory(tmp_path / "a" / "b"):
        pass


def stop_after(target: Path, what: str, *names: str) -> None:
    """Creates a directory, file by file, and is stopped."""
    with pytest.raises(RuntimeError), resumable_directory(target, what) as (partial, journal):
        for name in names:
            (partial / name).write_text(name)
            journal.add(["file", name])
        raise RuntimeError("killed")


def test_work_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Entries of the same work are recognised; the finished directory has its name, and no journal."""
    stop_after(tmp_path / "new", "three files", "a", "b")
    assert not (tmp_path / "new").exists()
    with resumable_directory(tmp_path / "new", "three files") as (partial, journal):
        assert journal.goes_on
        assert [["file", name] in journal for name in "abc"] == [True, True, False]
        (partial / "c").write_text("c")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c", "new"]


def test_other_work_begins_anew(tmp_path: Path) -> None:
    """Files of other work are removed, and its entries ignored."""
    stop_after(tmp_path / "new", "one thing", "a")
    with resumable_directory(tmp_path / "new", "another thing") as (partial, journal):
        assert not journal.goes_on
        assert ["file", "a"] not in journal
        assert [path.name for path in partial.iterdir()] == [JOURNAL]
    assert list((tmp_path / "new").iterdir()) == []


def test_a_line_without_its_end_does_not_count(tmp_path: Path) -> None:
    """An entry cut off by a kill is ignored; later entries are on lines of their own."""
    stop_after(tmp_path / "new", "w", "a", "b")
    journal_file = tmp_path / ".new.partial" / JOURNAL
    journal_file.write_bytes(journal_file.read_bytes()[:-3])
    stop_after(tmp_path / "new", "w", "c")
    with resumable_directory(tmp_path / "new", "w") as (_, journal):
        assert [["file", name] in journal for name in "abc"] == [True, False, True]


def test_a_mistake_leaves_nothing(tmp_path: Path) -> None:
    """After an error that would occur again, nothing is kept."""
    with pytest.raises(ConfigError), resumable_directory(tmp_path / "new", "w") as (partial, journal):
        (partial / "a").write_text("a")
        journal.add("a")
        raise ConfigError("no")
    assert not list(tmp_path.iterdir())


def test_an_interruption_says_that_it_goes_on(tmp_path: Path) -> None:
    """Ctrl-C keeps the files and says where they are."""
    with (
        pytest.raises(KeyboardInterrupt, match="same command to resume"),
        resumable_directory(tmp_path / "new", "w"),
    ):
        raise KeyboardInterrupt
    assert (tmp_path / ".new.partial").is_dir()


def test_two_processes_at_once(tmp_path: Path) -> None:
    """The second one is refused, and the first is not affected."""
    with resumable_directory(tmp_path / "new", "w") as (partial, journal):
        (partial / "a").write_text("a")
        journal.add("a")
        for what in ("w", "other"):
            with (
                pytest.raises(ConfigError, match="another process is writing"),
                resumable_directory(tmp_path / "new", what),
            ):
                pass
    assert (tmp_path / "new" / "a").read_text() == "a"


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too little space nothing new is left; files of a stopped process count as written, and are kept."""
    usage = lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    usage(1000)
    with (
        pytest.raises(ConfigError, match="are needed; free some space"),
        resumable_directory(tmp_path / "new", "w", 1001),
    ):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), resumable_directory(tmp_path / "new", "w", 1000) as (partial, journal):
        (partial / "a").write_bytes(b"x" * 100_000)
        journal.add("a")
        raise RuntimeError
    with (
        pytest.raises(ConfigError, match="are needed; free some space"),
        resumable_directory(tmp_path / "new", "w", 2_000_000),
    ):
        pass
    with resumable_directory(tmp_path / "new", "w", 100_000) as (_, journal):
        assert journal.goes_on


MAKERS = (atomic_directory, lambda target: resumable_directory(target, "w"))


@pytest.mark.parametrize("maker", MAKERS, ids=["atomic", "resumable"])
@pytest.mark.parametrize("there", [True, False], ids=["empty", "missing"])
def test_a_link_stays_one(tmp_path: Path, maker: Any, there: bool) -> None:
    """The directory that a link names is created, next to where it is, whether it is empty or missing."""
    (tmp_path / "disk").mkdir()
    if there:
        (tmp_path / "disk" / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "link"):
        raise RuntimeError
    assert (tmp_path / "disk" / "real").exists() == there
    with maker(tmp_path / "link") as made:
        partial = made if isinstance(made, Path) else made[0]
        assert partial.parent == tmp_path / "disk"
        (partial / "a").write_text("a")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "link" / "a").read_text() == "a"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "disk", "link", "real"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match="exists already"), maker(tmp_path / "loop"):
        pass


@pytest.fixture
def mount_point(tmp_path: Path) -> Iterator[Path]:
    """An empty directory that another is mounted on."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting needs privileges")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("maker", MAKERS, ids=["atomic", "resumable"])
def test_a_mount_point_is_refused_before_any_work(mount_point: Path, maker: Any) -> None:
    """Nothing can be renamed over it; a new directory in it is created."""
    with pytest.raises(ConfigError, match=r"cannot be replaced \(Device or resource busy\)"), maker(mount_point):
        pytest.fail("the work began")
    assert [path.name for path in mount_point.parent.rglob("*")] == ["mounted"]
    with maker(mount_point / "new"):
        pass
    assert (mount_point / "new").is_dir()
