"""The examples over seeds: what is run, with which files, and what is kept."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import movielens
from benchmarks.locks import locked
from benchmarks.results_file import read_results
from tests.benchmarks.conftest import recorded


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    made: list[tuple[str, ...]] = []
    names = (*movielens._CTR, *movielens._RETRIEVAL, *movielens._UNSEEN, "num_users")
    figures = dict.fromkeys(names, 0.5)
    figures |= {"popularity/auc": 0.4, "user_and_item_mean/log_loss": 0.6}
    monkeypatch.setattr(movielens, "m6rec", recorded(made, lambda call: figures))
    monkeypatch.setattr(movielens, "results_path", lambda name: tmp_path / f"{name}.json")
    return made


def test_every_seed_starts_from_one_foundation(calls, tmp_path: Path) -> None:
    arguments = ["--jobs", "option_adapter", "retrieval", "--seeds", "3", "4"]
    arguments += ["--output", str(tmp_path / "runs")]
    assert movielens.main(arguments) == 0
    training = [call for call in calls if call[0] == "train"]
    assert [call[2] for call in training] == [
        movielens.FOUNDATION,
        *[movielens.JOBS[name].gin_file for name in ("option_adapter", "retrieval")] * 2,
    ]
    foundation = f"--gin.INITIAL_CHECKPOINT_PATH='{(tmp_path / 'runs/foundation').resolve()}'"
    assert all(foundation in call for call in training[1:])
    found = read_results(tmp_path / "movielens_ctr.json").rows
    # What the evaluation says of means stands once, whatever the seed.
    means = [(row["model"], row["metric"], row["value"]) for row in found if row["seed"] is None]
    assert means == [("popularity", "auc", 0.4), ("user mean + item mean", "log_loss", 0.6)]
    rows = [row for row in found if row["seed"] is not None]
    assert {row["seed"] for row in rows} == {3, 4}
    assert {row["metric"] for row in rows} == set(movielens._CTR)
    assert all(row["gin_file"] == movielens.JOBS["option_adapter"].gin_file for row in rows)
    # Again: nothing is trained or tested twice.
    done = len(calls)
    assert movielens.main(arguments) == 0
    assert {call[0] for call in calls[done:]} == {"data", "vocab"}


def test_rerankers_are_tested_with_the_towers_of_their_seed(calls, tmp_path: Path) -> None:
    runs = (tmp_path / "runs").resolve()
    arguments = ["--jobs", "hybrid", "reranking", "--seeds", "3", "--output", str(runs)]
    assert movielens.main(arguments) == 0
    # The towers are trained once for both.
    assert [call[2] for call in calls if call[0] == "train"] == [
        movielens.FOUNDATION,
        movielens.JOBS["retrieval_full"].gin_file,
        movielens.JOBS["reranking"].gin_file,
    ]
    near, scored = (call for call in calls if call[0] == "eval")
    for call in (near, scored):
        assert f"--gin.MODEL_DIR='{runs}/retrieval_full-3'" in call
    reranker = f"--gin.RERANKER='{runs}/reranking-3'"
    assert reranker in scored
    assert reranker not in near
    rows = read_results(tmp_path / "movielens_retrieval.json").rows
    seconds = {row["model"]: row.get("seconds") for row in rows}
    assert seconds[movielens.JOBS["hybrid"].model] is None
    assert seconds[movielens.JOBS["reranking"].model] is not None


def test_seconds_of_an_interrupted_run_are_not_told(calls, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "other").mkdir(parents=True)
    seconds = movielens.train("a.gin", folder)
    assert seconds is not None
    assert movielens.train("a.gin", folder) == seconds
    interrupted = tmp_path / "interrupted"
    (interrupted / "checkpoints").mkdir(parents=True)
    assert [call[0] for call in calls] == ["train"]
    assert movielens.train("a.gin", interrupted) is None


def test_data_are_made_by_one_study_at_a_time(tmp_path: Path, monkeypatch) -> None:
    ran = threading.Event()

    def run(*given: object, **settings: object) -> SimpleNamespace:
        ran.set()
        return SimpleNamespace(returncode=0)

    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(movielens.subprocess, "run", run)
    other = threading.Thread(target=movielens.m6rec, args=("data", "prepare"))
    with locked(tmp_path):
        movielens.m6rec("eval")
        assert ran.is_set()
        ran.clear()
        other.start()
        assert not ran.wait(0.3)
    assert ran.wait(10)
    other.join()
