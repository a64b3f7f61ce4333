"""The decode step, one token per row: texts of unlike lengths share every step.

    slots = Slots.of(cache, automaton, features)        # one slot for each text
    slots, written = advance(step, slots, automaton, active, num_steps)

A batch of texts runs to its end in one call. Texts that come at any time share slots on the device
(`continuous`): their sources are put into free slots, and calls of a few steps let all of them
grow. What a slot writes does not depend on the others.

Everything here is for use inside jit. Scores are the model's own log probabilities, over its whole
vocabulary: masks, temperature, top-k and top-p decide what may come but do not make it likelier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from m6rec_jax.engine.decoding.automaton import Automaton
from m6rec_jax.engine.decoding.sampling import SamplingOptions, drawn, likeliest
from m6rec_jax.model import M6Rec
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID

Array = jax.Array

# `[BOS]`, the first input, is the pad id, which is never generated. So it also says "nothing here".
FREE = PAD_ID


# The model as decoding sees it: of a cache, the last tokens, position and column (those of
# `M6Rec.decode_step`) the logits `[rows, vocab]` after one more token per row, and the new cache.
Step = Callable[[Any, Array, Array, Array], tuple[Array, Any]]


class GeneratedBatch(NamedTuple):
    """Texts of each source, best first, `[sources, texts]`.

    Attributes:
      tokens: int32 `[sources, texts, length]`, `[EOS]` included, then padding.
      scores: float32, what texts are ordered by: of beam search normalised by the length; -inf
        where there is no text.
      log_probability: float32, of the tokens after the prefix.
      ended: bool; False: cut off at the length.
      entries: int32, which titles they are; `NO_ENTRY` without any.
    """

    tokens: Array
    scores: Array
    log_probability: Array
    ended: Array
    entries: Array


def model_step(model: M6Rec, variables: Mapping[str, Any], task_ids: Array) -> Step:
    """A step of the model; task_ids `[sources]` or `[sources, 1]`."""

    def step(cache: Any, tokens: Array, position: Array, column: Array) -> tuple[Array, Any]:
        hidden, cache = model.apply(
            variables, cache, tokens, position, task_ids, column=column, method=model.decode_step
        )
        return model.apply(variables, hidden, method=model.token_logits), cache

    return step


class Slots(NamedTuple):
    """Texts under way, `[rows]` unless said otherwise.

    Attributes:
      cache: `DecoderCache`; its length is that of the longest text.
      given: int32 `[rows, length]`, tokens that a text begins with, then `FREE`.
      limit: int32, most tokens of the text, those given included.
      node: int32, of the automaton.
      last, position: int32, the token before, and how many there are; position may be a scalar,
        where all rows began together.
      seed: uint32, what is drawn depends on nothing else; None, with sampling: the likeliest tokens
        are taken.
      sampling: `SamplingOptions`, scalars or `[rows]`.
    """

    cache: Any
    given: Array
    limit: Array
    node: Array
    last: Array
    position: Array
    seed: Array | None = None
    sampling: SamplingOptions | None = None

    @classmethod
    def of(cls, cache: Any, automaton: Automaton, features: Mapping[str, Array]) -> Slots:
        """Texts that begin together, one for each source.

        Args:
          cache: of no position yet, with room for the length of the prefixes.
          automaton: what the sources may write.
          features: `prefix_ids` int32 `[sources, length]`, see `given`; a row of padding is given
            `[EOS]` and ends at once. `seed` and the fields of `SamplingOptions` where texts are
            drawn.
        """
        rows, length = features["prefix_ids"].shape
        sampling = None
        if "seed" in features:
            sampling = SamplingOptions(*(features[name] for name in SamplingOptions._fields))
        return cls(
            cache,
            features["prefix_ids"],
            jnp.full((rows,), length, jnp.int32),
            automaton.start_nodes(rows),
            jnp.full((rows,), PAD_ID, jnp.int32),  # [BOS]
            jnp.int32(0),
            features.get("seed"),
            sampling,
        )


class Written(NamedTuple):
    """What steps have written.

    Attributes:
      tokens: int32 `[rows, steps]`, `[EOS]` included, then padding.
      gained: float32 `[rows, steps]`, log probabilities of the tokens after the prefix; -inf where
        the automaton left no token.
      ended: bool `[rows]`, by `[EOS]` or at the limit.
      num_steps: int32 scalar, how many were taken.
    """

    tokens: Array
    gained: Array
    ended: Array
    num_steps: Array


def advance(
    step: Step,
    slots: Slots,
    automaton: Automaton,
    active: Array,
    num_steps: int,
    column: Array | int = 0,
) -> tuple[Slots, Written]:
    """Takes steps, until all have ended at most.

    Args:
      step: gives logits.
      slots: that take part.
      automaton: what they may write.
      active: bool `[rows]`; others write nothing.
      num_steps: to take.
      column: of the cache, where the first one goes.
    """
    rows, length = slots.given.shape
    nothing = Written(
        jnp.full((rows, num_steps), PAD_ID, jnp.int32),
        jnp.zeros((rows, num_steps), jnp.float32),
        ~active,
        jnp.int32(0),
    )

    def unfinished(now: tuple[Slots, Written]) -> Array:
        return (now[1].num_steps < num_steps) & ~jnp.all(now[1].ended)

    def take(now: tuple[Slots, Written]) -> tuple[Slots, Written]:
        slots, done = now
        number = done.num_steps
        position = jnp.minimum(slots.position, length - 1)
        logits, cache = step(slots.cache, slots.last, position, (column + number) % length)
        room = slots.limit - position
        log_probs = automaton.mask(slots.node, jax.nn.log_softmax(logits, axis=-1), room)
        here = jnp.broadcast_to(position, (rows,))
        given = jnp.take_along_axis(slots.given, here[:, None], axis=1)[:, 0]
        if slots.seed is None or slots.sampling is None:
            chosen = likeliest(log_probs)
        else:
            chosen = drawn(log_probs, position, slots.seed, slots.sampling)
        token, gained = _next_tokens(log_probs, chosen, given, done.ended)
        node = automaton.advance(slots.node, token, given != FREE)
        position = slots.position + 1
        return slots._replace(cache=cache, node=node, last=token, position=position), Written(
            done.tokens.at[:, number].set(token),
            done.gained.at[:, number].set(gained),
            done.ended | (token == EOS_ID) | (position >= slots.limit),
            number + 1,
        )

    return jax.lax.while_loop(unfinished, take, (slots, nothing))


def _next_tokens(
    log_probs: Array, chosen: Array, given: Array, ended: Array
) -> tuple[Array, Array]:
    """What comes next in each row, and the log probability that it adds, both `[rows]`."""
    gained = jnp.take_along_axis(log_probs, chosen[:, None], axis=-1)[:, 0]
    # No token may come: the row ends here, without any probability.
    token = jnp.where(jnp.isneginf(gained), EOS_ID, chosen)
    # A prefix comes whatever the automaton says of it, and adds nothing to the score.
    token = jnp.where(given == FREE, token, given)
    counts = (given == FREE) & ~ended
    return jnp.where(ended, PAD_ID, token), jnp.where(counts, gained, 0.0)
