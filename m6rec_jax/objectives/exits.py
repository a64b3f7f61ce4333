"""A loss at every exit of the decoder: what early exit is trained by (paper section 5)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.model.early_exit import exit_weights
from m6rec_jax.model.m6rec import M6Rec, Outputs
from m6rec_jax.objectives.sums import Features, Metrics, Sum, is_by_job

Array = jax.Array
Loss = Callable[..., tuple[Sum, Metrics]]


def over_exits(loss: Loss) -> Loss:
    """A loss as the weighted sum of itself over `Outputs.exits`, where there are any.

    One exit at a time: the backward pass makes an exit's logits again, so those of a vocabulary
    exist once, not once per layer.

    Args:
      loss: of `Outputs.hidden`, as `classification_loss`.

    Returns:
      The loss. Its metrics are those of the last exit, `<loss>_over_exits` beside it and, of the
      losses by job, the weighted sums.
    """

    @functools.wraps(loss)
    def summed(
        model: M6Rec, variables: Any, outputs: Outputs, features: Features, **options: Any
    ) -> tuple[Sum, Metrics]:
        if outputs.exits is None:
            return loss(model, variables, outputs, features, **options)
        weights = jnp.asarray(exit_weights(model.config))

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def at_exit(total: Array, of_exit: tuple[Array, Array]) -> tuple[Array, tuple[Sum, Any]]:
            hidden, weight = of_exit
            own = dataclasses.replace(outputs, hidden=hidden, exits=None)
            found, metrics = loss(model, variables, own, features, **options)
            return total + weight * found.total, (found, metrics)

        total, (found, metrics) = jax.lax.scan(at_exit, jnp.zeros(()), (outputs.exits, weights))

        def of_all(sums: Sum) -> Sum:
            return Sum(jnp.tensordot(weights, sums.total, axes=1), sums.count[-1])

        own = {
            name: of_all(sums) if is_by_job(name) else jax.tree.map(lambda leaf: leaf[-1], sums)
            for name, sums in metrics.items()
        }
        own |= {
            f"{name}_over_exits": of_all(sums)
            for name, sums in metrics.items()
            if name.endswith("/loss")
        }
        return Sum(total, found.count[-1]), own

    return summed
