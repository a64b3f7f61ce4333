"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.atomic import (
    atomic_file,
    finish_staged,
    new_folder,
    replaced_folder,
    staged_files,
    write_atomically,
)


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


NEW = {"a/one": "1", "a/two": "2", "three": "3"}


def contents(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_text() for path in files}


def stage(root: Path, fail: bool = False) -> None:
    with staged_files(root / "next", root) as staged:
        (staged / "a").mkdir()
        for name, text in NEW.items():
            (staged / name).write_text(text)
        if fail:
            raise ZeroDivisionError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_text("old")
    (tmp_path / "other").write_text("stays")
    return tmp_path


def test_files_take_their_places(root: Path) -> None:
    stage(root)
    assert contents(root) == {**NEW, "other": "stays"}


def test_nothing_changes_where_the_block_fails(root: Path) -> None:
    before = contents(root)
    with pytest.raises(ZeroDivisionError):
        stage(root, fail=True)
    assert contents(root) == before
    assert not (root / "next").exists()


@pytest.mark.parametrize("moved", range(4))
def test_what_a_kill_left_is_moved_later(root: Path, moved: int, monkeypatch) -> None:
    replace, done = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(path)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        if moved < len(NEW):
            with pytest.raises(KeyboardInterrupt):
                stage(root)
            assert (root / "next").exists()
        else:
            stage(root)
    finish_staged(root / "next", root)
    assert contents(root) == {**NEW, "other": "stays"}
    assert not (root / "next").exists()
    finish_staged(root / "next", root)
