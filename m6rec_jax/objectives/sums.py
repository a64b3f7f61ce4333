"""Losses and metrics as a sum and a count, so that a mean is taken once, over everything.

A mean of means over devices or accumulation steps weights examples unequally. Under `jax.jit` over
a mesh the sums here are global already; over accumulation steps and batches they are added.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.errors import ConfigError

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    """A weighted sum and the sum of the weights, float32 scalars."""

    total: Array
    count: Array

    def mean(self) -> Array:
        """total / count; 0 where nothing was counted."""
        return self.total / nonzero(self.count)


# What a loss consists of, by name: each objective's weight times its sum of losses, and how many
# tokens, labels or items there are.
Terms = dict[str, Sum]
Metrics = dict[str, Sum]
Features = Mapping[str, Array]
# `total_loss`, or a loss that adds terms to those of another one: (model, variables, features, *,
# rngs, deterministic, jobs) → (terms, of which `mean_loss` is the loss, every objective's metrics).
Loss = Callable[..., tuple[Terms, Metrics]]


def mean_loss(terms: Terms, counts: Mapping[str, Array] | None = None) -> Array:
    """Σ total / count over the terms: a float32 scalar.

    Args:
      terms: of a batch, or of a part of it.
      counts: of the whole batch, by term, where `terms` are of a part: the losses and gradients of
        all parts then add up to those of the batch. None: those of `terms`.
    """
    counts = counts or {name: term.count for name, term in terms.items()}
    means = (term.total / nonzero(counts[name]) for name, term in terms.items())
    return sum(means, jnp.zeros(()))


def weighted_sum(values: Array, weights: Array) -> Sum:
    """Σ values · weights and Σ weights. Values where the weight is 0 do not matter, even NaN."""
    weights = weights.astype(jnp.float32)
    return Sum(jnp.sum(jnp.where(weights != 0, values * weights, 0.0)), jnp.sum(weights))


def nonzero(count: Array) -> Array:
    """count, or 1 where it is 0: a denominator for an empty sum."""
    return jnp.where(count == 0, 1.0, count)


# The metric of each objective that holds its sums by job.
_BY_JOB = "/loss_by_job"


def sums_by_job(
    objective: str, values: Array, weights: Array, job_ids: Array | None, jobs: Sequence[int]
) -> Metrics:
    """The metric `<objective>/loss_by_job`; none without jobs.

    Args:
      objective: its name.
      values: losses, `[batch, places]`. Where the weight is 0 they do not matter, even NaN.
      weights: `[batch, places]`.
      job_ids: int32 `[batch, places]`, or `[batch, 1]` where a row is of one job; not read without
        jobs.
      jobs: numbers of the jobs (`pipeline.row_layout.job_id`). Rows of others are left out.

    Returns:
      Σ values · weights and Σ weights of each job, `[jobs]`.

    Raises:
      ConfigError: there are jobs but no `job_ids`.
    """
    if not jobs:
        return {}
    if job_ids is None:
        raise ConfigError("losses by job need the feature 'decoder_job_ids'")
    of_job = job_ids[..., None] == jnp.asarray(jobs, jnp.int32)
    weights = jax.lax.stop_gradient(weights).astype(jnp.float32)[..., None] * of_job
    values = jax.lax.stop_gradient(values)[..., None]
    losses = jnp.where(weights != 0, values * weights, 0.0)
    return {objective + _BY_JOB: Sum(jnp.sum(losses, (0, 1)), jnp.sum(weights, (0, 1)))}


def is_by_job(name: str) -> bool:
    """Whether a metric is one of `sums_by_job`."""
    return name.endswith(_BY_JOB)


def window_means(window: Sequence[Mapping[str, Any]], jobs: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of several steps or batches as one. Of what nothing was counted there is no mean.

    Args:
      window: metrics of each, on the host.
      jobs: names, in the order of their numbers in `sums_by_job`.

    Returns:
      Means of arrays over the steps, and of sums over all that was counted; `loss/<job>`: what the
      total loss would be of the job's examples alone.
    """
    means: dict[str, float] = {}
    of_jobs: dict[str, float] = {}
    for name, last in window[-1].items():
        values = [metrics[name] for metrics in window]
        if not isinstance(last, Sum):
            means[name] = float(np.mean(values))
            continue
        total, count = (
            np.sum([np.asarray(getattr(value, part), np.float64) for value in values], axis=0)
            for part in ("total", "count")
        )
        if not is_by_job(name):
            means |= {name: float(total / count)} if count else {}
            continue
        for job, of_total, of_count in zip(jobs, total, count, strict=True):
            if of_count:
                key = f"loss/{job}"
                of_jobs[key] = of_jobs.get(key, 0.0) + float(of_total / of_count)
    return means | of_jobs
