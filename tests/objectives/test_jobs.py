"""Losses by job: those of one job's rows are what the total loss would be of them alone."""

from __future__ import annotations

import functools
from typing import Any

import gin
import jax
import numpy as np
import pytest

from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import mean_loss, total_loss, window_means
from tests.objectives.conftest import CONFIG, ROWS, TARGET, Features

WEIGHTS = {
    "language_modelling_weight": 0.5,
    "classification_weight": 2.0,
    "contrastive_weight": 3.0,
}
JOBS = {"first": 7, "second": 11, "absent": 13}


@pytest.fixture
def of_two_jobs(features: Features) -> Features:
    """Rows 0 and 1 are of the first job, the others of the second."""
    ids = np.where(np.arange(ROWS) < 2, JOBS["first"], JOBS["second"])
    return {**features, "decoder_job_ids": np.repeat(ids[:, None], TARGET, 1).astype(np.int32)}


@functools.partial(jax.jit, static_argnames="jobs")
def compiled(variables: Any, features: Features, jobs: tuple[int, ...] = ()) -> Any:
    """Loss and metrics: one compilation takes less time than many operations one by one."""
    terms, metrics = total_loss(M6Rec(CONFIG), variables, features, jobs=jobs, **WEIGHTS)
    return mean_loss(terms), metrics


def job_losses(metrics: Any) -> dict[str, float]:
    means = window_means([metrics], tuple(JOBS))
    return {name: value for name, value in means.items() if name.startswith("loss/")}


def by_job(variables: Any, features: Features) -> dict[str, float]:
    _, metrics = compiled(variables, features, tuple(JOBS.values()))
    return job_losses(metrics)


def test_each_job_is_as_if_alone(variables: dict[str, Any], of_two_jobs: Features) -> None:
    figures = by_job(variables, of_two_jobs)
    assert set(figures) == {"loss/first", "loss/second"}
    for name, rows in (("first", slice(0, 2)), ("second", slice(2, None))):
        part = {key: x[rows] for key, x in of_two_jobs.items()}
        alone, _ = compiled(variables, part)
        # Float32 sums in another order.
        assert figures[f"loss/{name}"] == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.usefixtures("no_gin")
def test_packed_rows_hold_several_jobs(variables: dict[str, Any], of_two_jobs: Features) -> None:
    """Of the tokens of a row each counts for its own job, in chunks of logits and at once."""
    ids = of_two_jobs["decoder_job_ids"].copy()
    ids[:, TARGET // 2 :] = JOBS["first"]
    packed = {**of_two_jobs, "decoder_job_ids": ids}

    def figures(chunk_length: int) -> dict[str, float]:
        gin.bind_parameter("language_modelling_loss.chunk_length", chunk_length)
        _, metrics = total_loss(M6Rec(CONFIG), variables, packed, jobs=tuple(JOBS.values()))
        return job_losses(metrics)

    whole = figures(0)
    for job in ("first", "second"):
        weights = np.where(ids == JOBS[job], packed["decoder_loss_weights"], 0.0)
        terms, _ = total_loss(M6Rec(CONFIG), variables, {**packed, "decoder_loss_weights": weights})
        assert whole[f"loss/{job}"] == pytest.approx(float(mean_loss(terms)), rel=1e-5)
    assert figures(3) == pytest.approx(whole, rel=1e-5)
