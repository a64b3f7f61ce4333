"""The examples over seeds: what is run, with which files, and what is kept."""

from pathlib import Path

import pytest

from benchmarks import movielens, runs
from benchmarks.results_file import read_results
from m6rec_jax.errors import DataError
from tests.benchmarks.conftest import recorded


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands made; retrieval is better once its weights are learnt."""
    made: list[tuple[str, ...]] = []
    names = (*movielens._CTR, *movielens._RETRIEVAL, *movielens._UNSEEN)

    def figures_of(call: tuple[str, ...]) -> dict[str, float]:
        return dict.fromkeys(names, 0.7 if any(other[0] == "calibrate" for other in made) else 0.5)

    m6rec = recorded(made, figures_of)
    monkeypatch.setattr(runs, "m6rec", m6rec)
    monkeypatch.setattr(movielens, "m6rec", m6rec)
    monkeypatch.setattr(movielens, "results_path", lambda name: tmp_path / f"{name}.json")
    return made


def test_every_seed_starts_from_one_foundation(calls, tmp_path: Path) -> None:
    arguments = ["--jobs", "option_adapter", "full", "--seeds", "3", "4"]
    arguments += ["--output", str(tmp_path / "runs")]
    assert movielens.main(arguments) == 0
    training = [call for call in calls if call[0] == "train"]
    recipes = [movielens.JOBS[name].recipe for name in ("option_adapter", "full")]
    for call, recipe in zip(training, [movielens.FOUNDATION, *recipes * 2], strict=True):
        assert set(recipe.arguments()) <= set(call)
    foundation = f"--gin.INITIAL_CHECKPOINT_PATH='{(tmp_path / 'runs/foundation').resolve()}'"
    assert all(foundation in call for call in training[1:])
    rows = read_results(tmp_path / "movielens_ctr.json")
    assert {row["seed"] for row in rows} == {3, 4}
    assert {row["metric"] for row in rows} == set(movielens._CTR)
    # Again: nothing is trained or tested twice.
    done = len(calls)
    assert movielens.main(arguments) == 0
    assert {call[0] for call in calls[done:]} == {"data", "vocab"}


def test_towers_are_tested_alone_and_then_as_the_hybrid(calls, tmp_path: Path) -> None:
    arguments = ["--jobs", "retrieval_full", "--seeds", "3", "--output", str(tmp_path / "runs")]
    assert movielens.main(arguments) == 0
    steps = [call[0] for call in calls if call[0] in ("eval", "calibrate")]
    assert steps == ["eval", "calibrate", "eval"]
    rows = read_results(tmp_path / "movielens_retrieval.json")
    model = movielens.JOBS["retrieval_full"].model
    values = {row["model"]: row["value"] for row in rows if row["metric"] == "mrr"}
    assert values == {model: 0.5, f"{model}, hybrid": 0.7}


def test_a_run_keeps_its_seconds_and_its_settings(calls, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = movielens.FOUNDATION
    seconds = runs.train(recipe, folder)
    assert seconds is not None
    assert runs.train(recipe, folder) == seconds
    interrupted = tmp_path / "interrupted"
    (interrupted / "checkpoints").mkdir(parents=True)
    assert [call[0] for call in calls] == ["train"]
    assert runs.train(recipe, interrupted) is None
    with pytest.raises(DataError, match="was begun with"):
        runs.train(recipe, folder, ["--gin.TRAIN_STEPS=3"])
