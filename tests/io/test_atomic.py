"""Files and folders that appear whole or not at all."""

from pathlib import Path

import pytest

from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.atomic import atomic_file, new_folder, replaced_folder, write_atomically


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "task") as folder:
            (folder / "manifest.json").write_text("{}")
            raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"task could not be written: disk full"):
        write()
    assert not list(tmp_path.iterdir())


def test_of_two_that_make_one_folder_each_has_its_own_files(tmp_path: Path) -> None:
    def second() -> None:
        with new_folder(tmp_path / "task") as folder:
            (folder / "weights").write_text("1.5")
            with new_folder(tmp_path / "task") as first:
                (first / "weights").write_text("0.5")

    with pytest.raises(CheckpointError, match="exists already"):
        second()
    assert (tmp_path / "task" / "weights").read_text() == "0.5"
    assert [entry.name for entry in tmp_path.iterdir()] == ["task"]


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_atomically(path, "old")

    def fail() -> None:
        with atomic_file(path) as scratch:
            scratch.write_text("half a rep")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    write_atomically(path, "new é")
    assert path.read_text("utf-8") == "new é"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "statistics"
    for name in ("one", "two"):
        with replaced_folder(target) as folder:
            (folder / name).touch()
        assert [path.name for path in target.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [target]
