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
    """A loss of `Outputs.hidden` as the weighted sum of itself over `Outputs.exits`, if any.

    One exit at a time: the backward pass makes an exit's logits again, so those of a vocabulary
    exist once, not once per layer. Metrics are those of the last exit, `<loss>_over_exits` beside
    it and, of the losses by job, the weighted sums.
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
            at_last = dataclasses.replace(outputs, hidden=hidden, exits=None)
            sums, metrics = loss(model, variables, at_last, features, **options)
            return total + weight * sums.total, (sums, metrics)

        total, (sums, metrics) = jax.lax.scan(at_exit, jnp.zeros(()), (outputs.exits, weights))

        def of_all(values: Sum) -> Sum:
            return Sum(jnp.tensordot(weights, values.total, axes=1), values.count[-1])

        reported = {}
        for name, values in metrics.items():
            last = jax.tree.map(lambda leaf: leaf[-1], values)
            reported[name] = of_all(values) if is_by_job(name) else last
            if name.endswith("/loss"):
                reported[f"{name}_over_exits"] = of_all(values)
        return Sum(total, sums.count[-1]), reported

    return summed
