"""Mixtures of tasks of several data sets, with their rates in gin."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import gin
import seqio

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean


@gin.configurable
def mixture_rates(rates: Mapping[str, float] | None = None) -> Mapping[str, float]:
    """How often a mixture of `register_mixture` draws from each task, relative to the others.

        mixture_rates.rates = {"movielens_100k_outcomes": 3.0, "chitchat_infilling": 0.5}

    Args:
      rates: task name to rate; 1 where nothing is said.

    Raises:
      ConfigError: a name that is no task, or a rate that is not positive.
    """
    rates = rates or {}
    for name, rate in rates.items():
        if name not in seqio.TaskRegistry.names():
            hint = did_you_mean(name, seqio.TaskRegistry.names())
            raise ConfigError(f"mixture_rates.rates names '{name}', which is no task{hint}")
        if not rate > 0:
            raise ConfigError(
                f"mixture_rates.rates['{name}'] = {rate} must be positive; leave a task out by "
                "naming another mixture"
            )
    return rates


def register_mixture(name: str, tasks: Sequence[str]) -> str:
    """Registers a mixture of registered tasks, whose rates are those of `mixture_rates`.

    All tasks must share a vocabulary, `vocabulary_file.shared` in gin.

    Returns:
      `name`.
    """
    seqio.MixtureRegistry.add(name, [(task, functools.partial(_rate, task)) for task in tasks])
    return name


def _rate(name: str, task: seqio.Task) -> float:
    del task  # seqio gives it
    return mixture_rates().get(name, 1.0)
