"""Quantisation-aware training: the loss is that of the weights as a packed file rounds them."""

from __future__ import annotations

from typing import Any

import jax

from m6rec_jax.checkpoints.trees import flatten, unflatten
from m6rec_jax.errors import ConfigError
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.model.quantization import dequantized, quantized, scaled_axes
from m6rec_jax.objectives import loss_denominators


class RoundedWeightsLoss:
    """A loss function, of a backbone whose weights are rounded (`model.quantization`).

    Gradients pass straight through the rounding (Bengio et al., 2013), so what trains are the
    floats; a frozen backbone is what prompts find when they are packed with it.

    Args:
      loss: of `Step.loss`, perhaps with a teacher.
      bits: of a weight.

    Raises:
      ConfigError: bits out of range.
    """

    def __init__(self, loss: Any, bits: int) -> None:
        if not 2 <= bits <= 8:
            raise ConfigError(f"Step.weight_bits = {bits} must lie between 2 and 8")
        self._loss, self._bits = loss, bits
        self.denominators = getattr(loss, "denominators", loss_denominators)

    def __call__(self, model: M6Rec, variables: Any, *args: Any, **options: Any) -> Any:
        """As `loss`."""
        return self._loss(model, self.rounded(variables), *args, **options)

    def rounded(self, variables: Any) -> Any:
        """The variables with the backbone that a packed file has."""
        params = variables["params"]
        seen = {
            name: self._rounded(leaf, axes) if (axes := scaled_axes(name)) else leaf
            for name, leaf in flatten(params).items()
        }
        return {**variables, "params": unflatten(seen, params)}

    def _rounded(self, weight: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        near = dequantized(*quantized(jax.lax.stop_gradient(weight), axes, self._bits))
        return weight + jax.lax.stop_gradient(near - weight)
