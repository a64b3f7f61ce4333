"""The k largest of many, also where `lax.top_k` does not go."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

# Up to here repeated argmax is about as fast, and one program then serves all ends.
SMALL = 8


def top_k(x: Array, k: int, *, by_argmax: bool | None = None) -> tuple[Array, Array]:
    """The k largest of the last axis, largest first; of equals the one with the smaller place.

    Args:
      x: float `[..., n]`, n at least k.
      k: how many.
      by_argmax: take one maximum after the other, k passes without a sort: `lax.top_k` and sorts
        have no counterpart in exported programs. None: where k is small.

    Returns:
      Values and places, both `[..., k]`. A value of -inf has no meaningful place.
    """
    if by_argmax is None:
        by_argmax = k <= SMALL
    if not by_argmax:
        values, places = jax.lax.top_k(x, k)
        return values, places

    def take(rest: Array, _: Any) -> tuple[Array, tuple[Array, Array]]:
        place = jnp.argmax(rest, axis=-1)
        value = jnp.max(rest, axis=-1)
        taken = jnp.arange(x.shape[-1]) == place[..., None]
        return jnp.where(taken, -jnp.inf, rest), (value, place.astype(jnp.int32))

    _, (values, places) = jax.lax.scan(take, x, length=k)
    return jnp.moveaxis(values, 0, -1), jnp.moveaxis(places, 0, -1)
