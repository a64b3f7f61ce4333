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
      Values and places, both `[..., k]`; no place comes twice.
    """
    if by_argmax is None:
        by_argmax = k <= SMALL
    if not by_argmax:
        values, places = jax.lax.top_k(x, k)
        return values, places

    def take(taken: Array, _: Any) -> tuple[Array, tuple[Array, Array]]:
        rest = jnp.where(taken, -jnp.inf, x)
        value = jnp.max(rest, axis=-1)
        # When only -inf is left, what was taken looks no worse than what was not.
        left = jnp.where(jnp.isneginf(value)[..., None], ~taken, rest == value[..., None])
        place = jnp.argmax(left, axis=-1)
        taken |= jnp.arange(x.shape[-1]) == place[..., None]
        return taken, (value, place.astype(jnp.int32))

    _, (values, places) = jax.lax.scan(take, jnp.zeros(x.shape, bool), length=k)
    return jnp.moveaxis(values, 0, -1), jnp.moveaxis(places, 0, -1)
