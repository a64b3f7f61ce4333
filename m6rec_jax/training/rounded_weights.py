"""Quantisation-aware training: the loss is that of the weights as a packed file rounds them."""

from __future__ import annotations

from typing import Any

import jax

from m6rec_jax.checkpoints.trees import flatten, unflatten
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.model.quantization import dequantized, quantized, scaled_axes
from m6rec_jax.objectives import Loss


def rounded(variables: Any, bits: int) -> Any:
    """The variables with the backbone that a packed file has (`model.quantization`).

    Gradients pass straight through the rounding (Bengio et al., 2013), so what trains are the
    floats; a frozen backbone is what prompts find when they are packed with it.
    """

    def of(weight: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        near = dequantized(*quantized(jax.lax.stop_gradient(weight), axes, bits))
        return weight + jax.lax.stop_gradient(near - weight)

    params = variables["params"]
    leaves = {
        name: of(leaf, axes) if (axes := scaled_axes(name)) else leaf
        for name, leaf in flatten(params).items()
    }
    return {**variables, "params": unflatten(leaves, params)}


def with_rounded_weights(loss: Loss, bits: int) -> Loss:
    """A loss of the rounded weights."""

    def of_rounded(model: M6Rec, variables: Any, features: Any, **options: Any) -> Any:
        return loss(model, rounded(variables, bits), features, **options)

    return of_rounded
