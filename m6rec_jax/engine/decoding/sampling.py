"""Drawing the next token: temperature and top-p, each row with a key of its own.

The last probability to keep is found by halving an interval of float32 bit patterns (positive
floats are ordered as their bits are): exact after 30 passes over the vocabulary, without a sort,
with a p that need not be known at compile time and may differ between rows.
"""

from __future__ import annotations

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
      top_p: float, draw from the fewest tokens whose probabilities (after temperature) add up to p,
        and from those that are as likely as the last one of them; 1: from all.
    """

    temperature: ArrayLike = 1.0
    top_p: ArrayLike = 1.0


def check_sampling(options: Any) -> None:
    """Raises ConfigError where options of one request, `SamplingOptions`, are out of range."""
    temperature, top_p = options.temperature, options.top_p
    if temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"temperature = {temperature} must be at least 0, top_p = {top_p} above 0 and at most 1"
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
            jnp.any(jnp.asarray(options.top_p) < 1),
            lambda: keep_likeliest(scaled, options.top_p),
            lambda: scaled,
        )
        keys = jax.vmap(jax.random.key)(seeds)
        keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(position, keys.shape))
        return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)

    # Random numbers for a whole vocabulary take longer than a small model's step.
    tokens = jax.lax.cond(jnp.any(temperature > 0), draw, lambda: best)
    return jnp.where(temperature[..., 0] > 0, tokens, best)


def keep_likeliest(log_probs: Array, top_p: ArrayLike) -> Array:
    """log_probs `[rows, vocab]` (up to a constant), -inf outside the top p, scalar or `[rows]`."""
    top_p, probabilities = _per_row(top_p), jax.nn.softmax(log_probs, axis=-1)
    bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)
    total = jnp.sum(probabilities, axis=-1, keepdims=True)

    def halve(_: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval  # all tokens from low on have the mass, those from high on have not
        middle = low + (high - low) // 2
        kept = jnp.where(bits >= middle, probabilities, 0.0)
        has_mass = jnp.sum(kept, axis=-1, keepdims=True) >= top_p * total
        return jnp.where(has_mass, middle, low), jnp.where(has_mass, high, middle)

    start = jnp.zeros(total.shape, jnp.int32), jnp.full(total.shape, _BITS_OF_ONE + 1, jnp.int32)
    low, _ = jax.lax.fori_loop(0, _HALVINGS, halve, start)
    return jnp.where((bits >= low) | (top_p >= 1), log_probs, -jnp.inf)


def _per_row(value: ArrayLike) -> Array:
    return jnp.asarray(value)[..., None]
