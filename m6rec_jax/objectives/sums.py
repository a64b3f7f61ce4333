"""Losses and metrics as a sum and a count, so that a mean is taken once, over everything.

A mean of means over devices or accumulation steps weights examples unequally. Under `jax.jit` over
a mesh the sums here are global already; over accumulation steps they are added.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    """A weighted sum and the sum of the weights, float32 scalars."""

    total: Array
    count: Array

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.total + other.total, self.count + other.count)

    def mean(self) -> Array:
        """total / count; 0 where nothing was counted."""
        return self.total / nonzero(self.count)


Metrics = dict[str, Sum]
Features = Mapping[str, Array]


def weighted_sum(values: Array, weights: Array) -> Sum:
    """Σ values · weights and Σ weights. Values where the weight is 0 do not matter, even NaN."""
    weights = weights.astype(jnp.float32)
    return Sum(jnp.sum(jnp.where(weights != 0, values * weights, 0.0)), jnp.sum(weights))


def nonzero(count: Array) -> Array:
    """count, or 1 where it is 0: a denominator for an empty sum."""
    return jnp.where(count == 0, 1.0, count)
