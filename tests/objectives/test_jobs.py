"""Losses by job: those of one job's rows are what the total loss would be of them alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import job_losses, total_loss
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
    return total_loss(M6Rec(CONFIG), variables, features, jobs=jobs, **WEIGHTS)


def by_job(variables: Any, features: Features) -> dict[str, float]:
    _, metrics = compiled(variables, features, tuple(JOBS.values()))
    return job_losses(tuple(JOBS), [metrics])


def test_each_job_is_as_if_alone(variables: dict[str, Any], of_two_jobs: Features) -> None:
    figures = by_job(variables, of_two_jobs)
    assert set(figures) == {"loss/first", "loss/second"}
    for name, rows in (("first", slice(0, 2)), ("second", slice(2, None))):
        part = {key: x[rows] for key, x in of_two_jobs.items()}
        alone, _ = compiled(variables, part)
        # Float32 sums in another order.
        assert figures[f"loss/{name}"] == pytest.approx(float(alone), rel=1e-5)


def test_packed_rows_hold_several_jobs(
    variables: dict[str, Any], of_two_jobs: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tokens of a row each counts for its own job, in chunks of logits and at once."""
    ids = of_two_jobs["decoder_job_ids"].copy()
    ids[:, TARGET // 2 :] = JOBS["first"]
    packed = {**of_two_jobs, "decoder_job_ids": ids}
    only_text = {"language_modelling_weight": 1.0}

    def figures(**settings: int) -> dict[str, float]:
        from m6rec_jax.objectives import language_modelling, total

        def loss(*arguments: Any, **keywords: Any) -> Any:
            return language_modelling.language_modelling_loss(*arguments, **keywords, **settings)

        monkeypatch.setitem(total._LOSSES, language_modelling.NAME, loss)
        _, metrics = total_loss(
            M6Rec(CONFIG), variables, packed, jobs=tuple(JOBS.values()), **only_text
        )
        return job_losses(tuple(JOBS), [metrics])

    whole = figures()
    for job in ("first", "second"):
        weights = np.where(ids == JOBS[job], packed["decoder_loss_weights"], 0.0)
        alone, _ = total_loss(
            M6Rec(CONFIG), variables, {**packed, "decoder_loss_weights": weights}, **only_text
        )
        assert whole[f"loss/{job}"] == pytest.approx(float(alone), rel=1e-5)
    assert figures(chunk_length=3) == pytest.approx(whole, rel=1e-5)


def test_a_window_weighs_every_example_alike(
    variables: dict[str, Any], of_two_jobs: Features
) -> None:
    """A job that only some batches hold gets the mean of its own examples."""
    absent = {
        **of_two_jobs,
        "decoder_job_ids": np.full((ROWS, TARGET), JOBS["second"], np.int32),
    }
    window = [compiled(variables, part, tuple(JOBS.values()))[1] for part in (of_two_jobs, absent)]
    figures = job_losses(tuple(JOBS), window)
    assert figures["loss/first"] == pytest.approx(
        by_job(variables, of_two_jobs)["loss/first"], rel=1e-6
    )
    assert "loss/absent" not in figures


def test_jobs_are_no_part_of_the_gradient(variables: dict[str, Any], of_two_jobs: Features) -> None:
    def gradient(jobs: tuple[int, ...]) -> Any:
        def loss(variables: Any) -> Any:
            return total_loss(M6Rec(CONFIG), variables, of_two_jobs, jobs=jobs, **WEIGHTS)[0]

        return jax.jit(jax.grad(loss))(variables)

    same = jax.tree.map(jnp.allclose, gradient(()), gradient(tuple(JOBS.values())))
    assert all(jax.tree.leaves(same))


def test_rows_must_say_whose_they_are(variables: dict[str, Any], features: Features) -> None:
    unnamed = {name: x for name, x in features.items() if name != "decoder_job_ids"}
    with pytest.raises(ConfigError, match="decoder_job_ids"):
        total_loss(M6Rec(CONFIG), variables, unnamed, jobs=(1, 2))
