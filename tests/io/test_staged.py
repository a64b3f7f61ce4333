"""Files that take their places together, whenever the process is killed."""

from pathlib import Path

import pytest

from m6rec_jax.io.atomic import finish_staged, is_cut_short, staged_files

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
    assert not is_cut_short(root / "next")


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
            assert is_cut_short(root / "next")
        else:
            stage(root)
    finish_staged(root / "next", root)
    assert contents(root) == {**NEW, "other": "stays"}
    assert not is_cut_short(root / "next")
    finish_staged(root / "next", root)
