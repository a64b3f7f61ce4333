"""The decoding loop, one token per row and step: greedy or sampled, compiled, ends early.

    step = model_step(model, variables, task_ids)
    decoded = decode(step, cache, prefix_ids, constraint, greedy)

Everything here is for use inside jit. Shapes are fixed; the loop is a `lax.while_loop` that ends
when every row has generated `[EOS]`. A row's result does not depend on the rows beside it.

Scores are the model's own log probabilities, over its whole vocabulary: masks, temperature, top-k
and top-p decide what may come but do not make it likelier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from m6rec_jax.engine.decoding.constraints import Constraint, where_rows
from m6rec_jax.model import M6Rec
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID

Array = jax.Array

# `[BOS]`, the first input, is the pad id, which is never generated. So it also says "nothing here".
FREE = PAD_ID


class Step(Protocol):
    """The model as decoding sees it."""

    def __call__(self, cache: Any, tokens: Array, position: Array) -> tuple[Array, Any]:
        """Logits `[rows, vocab]` after one more token per row, and the new cache."""


Choose = Callable[[Array, Array], Array]


class Decoded(NamedTuple):
    """What was generated.

    Attributes:
      tokens: int32 `[rows, length]`, `[EOS]` included, then padding.
      log_probability: float32 `[rows]`, of the tokens after the prefix; -inf where the
        constraint left no token.
      ended: bool `[rows]`; False where the text was cut off at the length.
      state: the constraint's, after the last token.
      num_steps: int32 scalar, steps that the loop took.
    """

    tokens: Array
    log_probability: Array
    ended: Array
    state: Any
    num_steps: Array


class _Progress(NamedTuple):
    position: Array
    last: Array
    decoded: Decoded
    cache: Any


def model_step(model: M6Rec, variables: Mapping[str, Any], task_ids: Array) -> Step:
    """A step of the model; task_ids `[sources]` or `[sources, 1]`."""

    def step(cache: Any, tokens: Array, position: Array) -> tuple[Array, Any]:
        hidden, cache = model.apply(
            variables, cache, tokens, position, task_ids, method=model.decode_step
        )
        return model.apply(variables, hidden, method=model.token_logits), cache

    return step


def greedy(log_probs: Array, position: Array) -> Array:
    """The likeliest token of each row, of equals the first: a choice for `decode`."""
    # As a maximum and where it is: one pass that finds both is 15 times as slow on a CPU.
    best = jnp.max(log_probs, axis=-1, keepdims=True)
    places = jnp.arange(log_probs.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(log_probs == best, places, places[-1]), axis=-1)


def next_tokens(log_probs: Array, chosen: Array, given: Array, ended: Array) -> tuple[Array, Array]:
    """What comes next in each row, and the log probability that it adds, both `[rows]`.

    Args:
      log_probs: `[rows, vocab]`, -inf where no token may come.
      chosen: `[rows]`.
      given: `[rows]`, the prefix's token, or `FREE`.
      ended: bool `[rows]`.
    """
    token = chosen.astype(jnp.int32)
    gained = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
    # No token may come: the row ends here, without any probability.
    token = jnp.where(jnp.isneginf(gained), EOS_ID, token)
    # A prefix comes whatever the constraint says of it, and adds nothing to the score.
    token = jnp.where(given == FREE, token, given)
    counts = (given == FREE) & ~ended
    return jnp.where(ended, PAD_ID, token), jnp.where(counts, gained, 0.0)


def decode(
    step: Step, cache: Any, prefix_ids: Array, constraint: Constraint, choose: Choose = greedy
) -> Decoded:
    """Generates until every row has ended or the length is reached.

    Args:
      step: gives logits.
      cache: of no position yet, with room for the length of `prefix_ids`.
      prefix_ids: int32 `[rows, length]`, tokens that a row begins with, then `FREE`. A row of
        nothing but padding is given `[EOS]` and ends at once.
      constraint: which tokens may come.
      choose: (log_probs `[rows, vocab]`, position) → tokens `[rows]`.
    """
    num_rows, length = prefix_ids.shape

    def unfinished(now: _Progress) -> Array:
        return (now.position < length) & ~jnp.all(now.decoded.ended)

    def advance(now: _Progress) -> _Progress:
        position, done = now.position, now.decoded
        logits, cache = step(now.cache, now.last, position)
        log_probs = constraint.mask(done.state, jax.nn.log_softmax(logits, axis=-1))
        chosen = choose(log_probs, position)
        token, gained = next_tokens(log_probs, chosen, prefix_ids[:, position], done.ended)
        decoded = Decoded(
            done.tokens.at[:, position].set(token),
            done.log_probability + gained,
            done.ended | (token == EOS_ID),
            where_rows(done.ended, done.state, constraint.advance(done.state, token)),
            position + 1,
        )
        return _Progress(position + 1, token, decoded, cache)

    nothing = Decoded(
        jnp.full((num_rows, length), PAD_ID, jnp.int32),
        jnp.zeros((num_rows,), jnp.float32),
        jnp.zeros((num_rows,), bool),
        constraint.start(num_rows),
        jnp.int32(0),
    )
    first = jnp.full((num_rows,), PAD_ID, jnp.int32)  # [BOS]
    begin = _Progress(jnp.int32(0), first, nothing, cache)
    return jax.lax.while_loop(unfinished, advance, begin).decoded
