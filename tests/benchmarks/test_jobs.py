"""The study of jobs: what is run, from which foundation, and what stands in its rows."""

from pathlib import Path

import gin
import numpy as np
import pytest

from benchmarks import foundation, job_baselines, jobs, runs
from benchmarks.job_list import JOBS, WITHOUT_TOWERS, ZERO_SHOT
from benchmarks.metric_names import describe_metric
from benchmarks.result_tables import Tables
from benchmarks.results_file import read_results
from m6rec_jax import configuration
from m6rec_jax.pipeline.registration import evaluated_tasks
from tests.benchmarks.conftest import bindings_of, recorded

pytestmark = pytest.mark.usefixtures("no_gin")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands made; every figure of an evaluation of seed s is 0.5 + s / 100."""
    made: list[tuple[str, ...]] = []

    def figures_of(call: tuple[str, ...]) -> dict[str, float]:
        bound = bindings_of(call)
        folder = Path(bound["MODEL_DIR"]).name
        value = 0.5 + int(folder[-1]) / 100 if folder[-1].isdigit() else 0.25
        # With weights it is of the hybrid.
        value += 0.2 * any(
            other[0] == "calibrate" and bindings_of(other)["MODEL_DIR"] == bound["MODEL_DIR"]
            for other in made
        )
        untuned = Path(bound["evaluate.output"]).stem
        job = JOBS[untuned if untuned in JOBS else folder.rpartition("-")[0]]
        return dict.fromkeys(job.metrics, value) | {"popularity/auc": 0.4, "chance/auc": 0.3}

    def baselines_of(run: Path, bindings: tuple[str, ...]) -> dict[str, dict[str, float]]:
        made.append(("baselines", str(run)))
        names = ("auc", "log_loss", "bleu_4")
        return {"weak": dict.fromkeys(names, 0.1), "strong": dict.fromkeys(names, 0.9)}

    m6rec = recorded(made, figures_of)
    for module in (jobs, runs, foundation):
        monkeypatch.setattr(module, "m6rec", m6rec)
    monkeypatch.setattr(job_baselines, "baselines_of", baselines_of)
    monkeypatch.setattr(jobs, "results_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(jobs, "backbone_of", lambda path: path.name)
    monkeypatch.setattr(jobs, "prepare_data", lambda inspired: inspired is not None)
    return made


def run(tmp_path: Path, *arguments: str) -> int:
    fixed = ["--foundation", str(tmp_path / "base"), "--output", str(tmp_path / "runs")]
    return jobs.main([*fixed, *arguments])


def rows_in(tmp_path: Path) -> list[dict]:
    return read_results(tmp_path / "jobs.json")


@pytest.mark.parametrize("name", JOBS)
def test_file_and_task_of_every_job_fit_together(name: str) -> None:
    job = JOBS[name]
    given = ["MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='y'"]
    configuration.parse_config(
        job.recipe.gin_files(), [*given, *job.recipe.bindings, *job.bindings]
    )
    (task,) = evaluated_tasks(configuration.macro("MIXTURE_OR_TASK_NAME"))
    assert task.name == job.task
    assert task.job.ranks_catalogue == job.is_retrieval
    assert gin.query_parameter("vocabulary_file.shared") == foundation.NAME
    if job.is_trained:
        assert configuration.macro("TRAINABLE") == "prompts"


def test_no_two_jobs_have_rows_of_one_key() -> None:
    keys = [(job.model, job.dataset, job.task) for job in JOBS.values()]
    assert len(keys) == len(set(keys))


def test_rows_stand_beside_baselines_and_are_made_once(calls, tmp_path: Path) -> None:
    arguments = ("--jobs", "explanation", "--seeds", "0", "1")
    assert run(tmp_path, *arguments) == 0
    trained = [bindings_of(call) for call in calls if call[0] == "train"]
    assert [bound["train.seed"] for bound in trained] == ["0", "1"]
    assert {bound["INITIAL_CHECKPOINT_PATH"] for bound in trained} == {str(tmp_path / "base")}
    assert sum(call[0] == "baselines" for call in calls) == 1
    rows = [row for row in rows_in(tmp_path) if row["metric"] == "bleu_4"]
    assert [row["ours"] for row in rows] == [0.5, 0.51]
    assert rows[0]["baselines"] == {"weak": 0.1, "strong": 0.9, ZERO_SHOT: 0.25}
    done = len(calls)
    assert run(tmp_path, *arguments) == 0
    assert len(calls) == done


def test_nothing_is_trained_for_zero_shot(calls, tmp_path: Path) -> None:
    assert run(tmp_path, "--jobs", "movielens_zero_shot", "--seeds", "0", "1") == 0
    assert [call[0] for call in calls] == ["calibrate", "eval"]
    (row,) = (row for row in rows_in(tmp_path) if row["metric"] == "auc")
    assert row["seed"] is None
    assert row["baselines"] == {"popularity": 0.4, "chance": 0.3}


def test_what_cannot_be_run_is_left_out_and_told(calls, tmp_path: Path, capsys) -> None:
    names = ("conversation", "movielens_zero_shot_books")
    books = ("--books", str(tmp_path / "books"))
    assert run(tmp_path, "--jobs", *names, *books) == 0
    assert not calls
    told = capsys.readouterr().out
    assert all(f"left out: {name}" in told for name in names)


def test_a_job_may_be_asked_of_another_foundation(calls, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    names = ("movielens_zero_shot", "movielens_zero_shot_books")
    assert run(tmp_path, "--jobs", *names, "--books", str(tmp_path / "books")) == 0
    rows = {row["model"]: row for row in rows_in(tmp_path) if row["metric"] == "auc"}
    assert {row["foundation"] for row in rows.values()} == {"base", "books"}
    assert len(rows) == 2


def test_retrieval_is_tested_as_the_hybrid_that_was_calibrated(calls, tmp_path: Path) -> None:
    assert run(tmp_path, "--jobs", "book_crossing_retrieval", "--seeds", "0") == 0
    rows = {row["model"]: row for row in rows_in(tmp_path) if row["metric"] == "hit_rate@10"}
    alone, of_hybrid = (
        next(row for model, row in rows.items() if model.endswith(end))
        for end in ("; the two towers alone", "; hybrid")
    )
    assert (alone["ours"], of_hybrid["ours"]) == (0.5, 0.7)
    assert WITHOUT_TOWERS in of_hybrid["baselines"]
    assert WITHOUT_TOWERS not in alone["baselines"]
    last = [call for call in calls if call[0] == "eval"][-1]
    assert bindings_of(last)["Reranking.towers"] == "False"


def test_one_table_is_of_one_foundation(calls, tmp_path: Path) -> None:
    assert run(tmp_path, "--jobs", "explanation", "--seeds", "0") == 0
    other = ("--foundation", str(tmp_path / "other"))
    assert run(tmp_path, "--jobs", "explanation", "--seeds", "1", *other) == 2


def test_a_line_compares_means_over_seeds() -> None:
    rows = []
    for seed, ours in ((0, 0.6), (1, 0.8)):
        row = {"model": "M", "gin_file": None, "config": "c", "dataset": "d1", "split": "t"}
        row |= {"seed": seed, "metric": "auc", "value": ours, "ours": ours, "job": "likes"}
        rows.append(row | {"baselines": {"weak": 0.1, "strong": 0.5 + seed / 10}})
    text = Tables("x", rows).comparison("likes", ["auc"])
    spread = float(np.std([0.6, 0.8], ddof=1))
    line = next(line for line in text.splitlines() if line.startswith("| d1"))
    assert f"0.7000 ± {spread:.4f}" in line
    assert "strong 0.5500 ± 0.0707" in line
    assert "+27.3%" in line
    assert "weak 0.1000" in line


def test_main_figures_can_be_better_or_worse() -> None:
    assert all(describe_metric(job.metrics[0])[2] != "none" for job in JOBS.values())
