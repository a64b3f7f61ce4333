"""A folder that appears whole: its files are on the disk before it has its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from m6rec_jax.checkpoints import new_folder as module
from m6rec_jax.checkpoints.new_folder import new_folder
from m6rec_jax.errors import CheckpointError


def test_a_power_cut_finds_all_files_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    target = tmp_path / "task"
    monkeypatch.setattr(
        module, "to_disk", lambda path: flushed.append((path.name, target.exists()))
    )
    with new_folder(target) as folder:
        (folder / "prompts").mkdir()
        (folder / "prompts" / "weights").write_text("0.5")
        (folder / "manifest.json").write_text("{}")
    before = {name for name, is_there in flushed if not is_there}
    assert before == {"prompts", "weights", "manifest.json", "task.unfinished"}
    assert [name for name, is_there in flushed if is_there] == [tmp_path.name]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "task") as folder:
            (folder / "manifest.json").write_text("{}")
            raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"task could not be written: disk full"):
        write()
    assert not list(tmp_path.iterdir())
