"""Drawing the next token: temperature, top-k and top-p, each row with a key of its own.

The last probability to keep is found by halving an interval of float32 bit patterns (positive
floats are ordered as their bits are): exact after 30 passes over the vocabulary, without a sort,
with a k and a p that need not be known at compile time and may differ between rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from m6rec_jax.errors import ConfigError

Array = jax.Array

_BITS_OF_ONE = 0x3F800000  # 1.0 in float32
_HALVINGS = 30  # 2^30 > _BITS_OF_ONE + 1


class SamplingOptions(NamedTuple):
    """How to draw; scalars or `[rows]`, of which none is compiled in.

    Attributes:
      temperature: float, divides the logits; 0 takes the likeliest token.
      top_k: int, draw from the k likeliest tokens only; 0: from all.
      top_p: float, draw from the fewest tokens whose probabilities (after temperature and top_k)
        add up to p; 1: from all.

    A token as likely as the last one kept is kept as well.
    """

    temperature: ArrayLike = 1.0
    top_k: ArrayLike = 0
    top_p: ArrayLike = 1.0


def check_sampling(options: Any) -> None:
    """Raises ConfigError where options of one request, `SamplingOptions`, are out of range."""
    temperature, top_k, top_p = options.temperature, options.top_k, options.top_p
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"temperature = {temperature} and top_k = {top_k} must be at least 0, top_p = "
            f"{top_p} above 0 and at most 1"
        )


# The likeliest token at each step.
GREEDY = SamplingOptions(temperature=0.0)


def likeliest(log_probs: Array) -> Array:
    """The likeliest token of each row, of equals the first: `[rows, vocab]` to `[rows]`."""
    # As a maximum and where it is: one pass that finds both is 15 times as slow on a CPU.
    best = jnp.max(log_probs, axis=-1, keepdims=True)
    places = jnp.arange(log_probs.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(log_probs == best, places, places[-1]), axis=-1)


def drawn(log_probs: Array, position: Array, seeds: Array, options: SamplingOptions) -> Array:
    """Tokens `[rows]`; the likeliest ones where the temperature is 0.

    What a row draws depends on its seed (uint32 `[rows]`), the position (of all rows or `[rows]`)
    and its own log_probs `[rows, vocab]` alone, never on the rows beside it.
    """
    best, temperature = likeliest(log_probs), _per_row(options.temperature)

    def draw() -> Array:
        scaled = log_probs / jnp.where(temperature > 0, temperature, 1.0)
        kept = jax.lax.cond(
            jnp.any((jnp.asarray(options.top_k) > 0) | (jnp.asarray(options.top_p) < 1)),
            lambda: keep_likeliest(scaled, options.top_k, options.top_p),
            lambda: scaled,
        )
        keys = jax.vmap(jax.random.key)(seeds)
        keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(position, keys.shape))
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    # Random numbers for a whole vocabulary take longer than a small model's step.
    tokens = jax.lax.cond(jnp.any(temperature > 0), draw, lambda: best)
    return jnp.where(temperature[..., 0] > 0, tokens, best)


def keep_likeliest(log_probs: Array, top_k: ArrayLike, top_p: ArrayLike) -> Array:
    """log_probs `[rows, vocab]` (up to a constant), -inf outside the top k and then the top p.

    Args:
      top_k, top_p: scalars or `[rows]`, as in `SamplingOptions`.
    """
    top_k, top_p = _per_row(top_k), _per_row(top_p)

    def enough_tokens(kept: Array) -> Array:
        return jnp.sum(kept, axis=-1, keepdims=True) >= top_k

    probabilities = jax.nn.softmax(log_probs, axis=-1)
    kept = _fewest(probabilities, enough_tokens) | (top_k <= 0)
    probabilities = jnp.where(kept, probabilities, 0.0)
    total = jnp.sum(probabilities, axis=-1, keepdims=True)

    def enough_mass(kept: Array) -> Array:
        mass = jnp.sum(jnp.where(kept, probabilities, 0.0), axis=-1, keepdims=True)
        return mass >= top_p * total

    kept &= _fewest(probabilities, enough_mass) | (top_p >= 1)
    return jnp.where(kept, log_probs, -jnp.inf)


def _fewest(probabilities: Array, enough: Callable[[Array], Array]) -> Array:
    """The likeliest tokens `[rows, vocab]`, as few as are `enough` (bool `[rows, 1]` of a set)."""
    bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)

    def halve(_: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval  # all tokens from low on are enough, those from high on are not
        middle = low + (high - low) // 2
        fits = enough(bits >= middle)
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    shape = (*probabilities.shape[:-1], 1)
    start = (jnp.zeros(shape, jnp.int32), jnp.full(shape, _BITS_OF_ONE + 1, jnp.int32))
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, start)
    return bits >= low


def _per_row(value: ArrayLike) -> Array:
    return jnp.asarray(value)[..., None]
