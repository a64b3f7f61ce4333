"""The study of few samples: what is prepared, made, kept and not made again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import gin
import numpy as np
import pytest

from benchmarks import few_samples
from benchmarks.few_samples import MEANS, REGRESSION, TUNED, TUNING, Sample
from benchmarks.results_file import read_results
from benchmarks.runs import Run
from m6rec_jax import configuration
from m6rec_jax.data.splitting.splits import Split
from m6rec_jax.jobs.scoring import ScoringPredictions, scoring_metrics
from m6rec_jax.model import ModelConfig
from m6rec_jax.model.layout import prompt_leaves

pytestmark = pytest.mark.usefixtures("no_gin")


def run_of(seed: int) -> Run:
    """A run whose probabilities depend on its seed."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    probabilities = np.clip(labels + rng.normal(0, 2, 60), 0.01, 0.99)
    predictions = ScoringPredictions(
        np.arange(60) // 6, np.arange(60), labels, labels, probabilities
    )
    return Run(scoring_metrics(predictions), 0.01, 3.0, 20, predictions)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """The (what, split, seed) that were made; nothing is prepared or trained."""
    runs: list[tuple[str, str, int]] = []

    @contextmanager
    def prepared_sample(sample: Sample) -> Iterator[SimpleNamespace]:
        runs.append(("prepare", sample.label, sample.seed))
        yield SimpleNamespace(manifest=SimpleNamespace(split=SimpleNamespace(name=sample.label)))

    @contextmanager
    def scoring_task(split: str) -> Iterator[str]:
        yield f"task_of_{split}"

    def tune(files, foundation, seed, folder, bindings) -> Run:
        assert "MIXTURE_OR_TASK_NAME='task_of_" in bindings[0]
        assert files == [few_samples.GIN_FILE]
        runs.append((TUNING, folder.name, seed))
        return run_of(seed)

    figures = dict.fromkeys(few_samples.METRICS, 0.5)
    monkeypatch.setattr(few_samples, "prepared_sample", prepared_sample)
    monkeypatch.setattr(few_samples, "scoring_task", scoring_task)
    monkeypatch.setattr(few_samples, "tune", tune)
    monkeypatch.setattr(few_samples, "means", lambda *given: figures)
    monkeypatch.setattr(few_samples, "regression", lambda *given: figures)
    monkeypatch.setattr(few_samples, "results_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(few_samples, "backbone_of", lambda path: path.name)
    return runs


def test_a_sample_is_prepared_once_and_runs_are_made_once(made, tmp_path: Path) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--samples", "64", "256"]
    arguments += ["--seeds", "0", "1"]
    assert few_samples.main(arguments) == 0
    prepared = [run for run in made if run[0] == "prepare"]
    assert prepared == [
        ("prepare", split, seed) for seed in (0, 1) for split in ("few_shot_64", "few_shot_256")
    ]
    assert len([run for run in made if run[0] == TUNING]) == 12
    rows = read_results(tmp_path / "few_samples.json")
    assert {row["samples"] for row in rows if row["split"] == "few_shot_256"} == {256}
    found = {(row["model"], row["split"], row["seed"]) for row in rows}
    assert {(MEANS, "few_shot_64", 1), (REGRESSION, "few_shot_256", 1)} <= found
    (row, *_) = (row for row in rows if row["model"] == TUNED)
    assert (row["foundation"], row["step"]) == ("base", [20] * 3)
    done = len(made)
    assert few_samples.main(arguments) == 0
    assert len(made) == done
    assert few_samples.main([*arguments, "--foundation", str(tmp_path / "other")]) == 2


def test_runs_answer_together_by_the_mean_of_their_probabilities(made, tmp_path: Path) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--samples", "64", "--seeds", "2"]
    assert few_samples.main([*arguments, "--methods", TUNING]) == 0
    seeds = [seed for what, _, seed in made if what == TUNING]
    assert len(set(seeds)) == 3
    assert seeds[0] == 2
    runs = [run_of(seed) for seed in seeds]
    mean = sum(run.predictions.probabilities for run in runs) / 3
    labels = runs[0].predictions.labels
    pairs = np.subtract.outer(mean[labels == 1], mean[labels == 0])
    rows = read_results(tmp_path / "few_samples.json")
    found = {row["model"]: row for row in rows if row["metric"] == "auc"}
    assert found[TUNED]["value"] == pytest.approx(
        ((pairs > 0) + 0.5 * (pairs == 0)).mean(), abs=1e-6
    )
    assert found[TUNED]["seconds"] == 9.0


def test_a_sample_knows_nothing_else(made) -> None:
    split = Split.parse(Sample(256, 2).split())
    assert split.arguments() == {"n": 256, "seed": 2, "history": "sampled"}


def test_files_of_the_study_fit_together() -> None:
    bindings = ["MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='y'"]
    configuration.parse_config([few_samples.GIN_FILE], bindings)
    assert configuration.macro("NUM_OPTIONS") == len(few_samples.RATINGS)
    assert gin.query_parameter("Validation.best_metric") == "validation/auc"
    # What learns at a rate of its own is called so.
    names = prompt_leaves(ModelConfig())
    assert all(any(name in leaf for leaf in names) for name in configuration.macro("RATE_FACTORS"))
    configuration.parse_config([few_samples.PREPARE])
    assert "{awards}" in gin.query_parameter("PrepareOptions.template")["candidate"]
