"""When a run writes what inference needs beside the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from m6rec_jax.engine.model_folder import ASSETS_FOLDER, SETTINGS_FILE
from m6rec_jax.evaluation import assets
from m6rec_jax.training import task_data
from m6rec_jax.training.options import TrainingData


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Lengths of every writing; nothing is written."""
    found: list[dict[str, int]] = []
    monkeypatch.setattr(assets, "save_task_assets", lambda model_dir, name, x: found.append(x))
    return found


def save(folder: Path, inputs: int, *, resumed: bool) -> None:
    data = TrainingData("task", {"inputs": inputs}, 1)
    task_data.save_inference_assets(data, str(folder), resumed=resumed)


def test_a_launch_without_a_checkpoint_leaves_no_settings_to_the_next(
    tmp_path: Path, written: list[dict[str, int]]
) -> None:
    (tmp_path / ASSETS_FOLDER).mkdir()
    (tmp_path / ASSETS_FOLDER / SETTINGS_FILE).write_text("of the launch before")
    save(tmp_path, 96, resumed=False)
    assert written == [{"inputs": 96}]


def test_what_a_user_changed_stays_when_a_run_resumes(
    tmp_path: Path, written: list[dict[str, int]]
) -> None:
    (tmp_path / ASSETS_FOLDER).mkdir()
    save(tmp_path, 96, resumed=True)
    assert written == [{"inputs": 96}], "a launch was killed before it had written all"
    (tmp_path / ASSETS_FOLDER / SETTINGS_FILE).write_text("{}")
    save(tmp_path, 64, resumed=True)
    assert written == [{"inputs": 96}]
