"""Compiled steps of continuous generation: a cache of slots, some of which take part.

A slot holds the source's keys and values and the decoder's cache of one text. All texts share the
column of the cache that a step goes into, each has a position of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.engine.decoding.constraints import AfterPrefix
from m6rec_jax.engine.decoding.generation_program import row_keys
from m6rec_jax.engine.decoding.loop import next_tokens
from m6rec_jax.engine.decoding.sampling import SamplingOptions, sampler
from m6rec_jax.engine.decoding.text_choices import RowChoices
from m6rec_jax.engine.engine import Variables
from m6rec_jax.model import Encoded, M6Rec
from m6rec_jax.model.decoder_cache import DecoderCache
from m6rec_jax.text.vocabulary import EOS_ID, PAD_ID

Array = jax.Array


def empty_slots(
    model: M6Rec, num_slots: int, length: int, width: int, variables: Variables
) -> DecoderCache:
    """A cache for all slots that holds nothing."""
    hidden = jnp.zeros((num_slots, width, model.config.embed_dim), model.config.dtype)
    encoded = Encoded(hidden, jnp.zeros((num_slots, width), bool))
    task_ids = jnp.zeros((num_slots,), jnp.int32)
    return model.apply(variables, encoded, task_ids, max_length=length, method=model.start_decoding)


def advance_slots(
    model: M6Rec,
    variables: Variables,
    cache: DecoderCache,
    batch: Mapping[str, Array],
    constraint: RowChoices,
    column: Array,
    *,
    num_steps: int,
    width: int,
) -> tuple[DecoderCache, Array, Array, Array]:
    """Takes steps with the texts of some slots, until all have ended at most.

    Args:
      cache: of all slots.
      batch: of each row that takes part, `[rows]`: `rows` (its slot; of all slots, in order),
        `active`, `last` (token), `position`, `limit`, `task_ids`, `seeds` and the fields of
        `SamplingOptions`;
        `given` `[rows, steps]`, its prefix from here on, and `num_given`, how long that is.
      constraint: which tokens may come after the prefix.
      column: where in the cache the first step goes.
      num_steps: steps to take.
      width: columns of the sources that are read.

    Returns:
      The cache, tokens and their log probabilities `[rows, steps]`, and how many steps were taken.
    """
    rows, length = batch["rows"], cache.length
    everybody = rows.shape[0] == cache.num_rows

    def of_rows(array: Array) -> Array:
        return array if everybody else jnp.take(array, rows, axis=-4)

    def into_slots(old: Array, new: Array) -> Array:
        if everybody:
            return new
        return old.at[rows if old.ndim == 4 else (slice(None), rows)].set(new)

    own = DecoderCache(
        jax.tree.map(of_rows, cache.past),
        jax.tree.map(lambda array: of_rows(array)[..., :width, :], cache.source),
        (cache.source_mask if everybody else cache.source_mask[rows])[:, :width],
    )
    sampling = SamplingOptions(batch["temperature"], batch["top_k"], batch["top_p"])
    choose = sampler(row_keys(batch["seeds"], 1), sampling)
    after_prefix = AfterPrefix(constraint, batch["num_given"])

    def advance(now: tuple[Any, ...]) -> tuple[Any, ...]:
        step, last, ended, own, tokens, gains, state = now
        position = jnp.minimum(batch["position"] + step, length - 1)
        hidden, own = model.apply(
            variables,
            own,
            last,
            position,
            batch["task_ids"],
            column=(column + step) % length,
            method=model.decode_step,
        )
        logits = model.apply(variables, hidden, method=model.token_logits)
        log_probs = after_prefix.mask(state, jax.nn.log_softmax(logits, axis=-1))
        given = batch["given"][:, step]
        token, gained = next_tokens(log_probs, choose(log_probs, position), given, ended)
        tokens, gains = tokens.at[:, step].set(token), gains.at[:, step].set(gained)
        ended |= (token == EOS_ID) | (position + 1 >= batch["limit"])
        state = after_prefix.advance(state, token)
        return step + 1, token, ended, own, tokens, gains, state

    shape = (rows.shape[0], num_steps)
    begin = (
        jnp.int32(0),
        batch["last"],
        ~batch["active"],
        own,
        jnp.full(shape, PAD_ID, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        after_prefix.start(rows.shape[0]),
    )
    step, _, _, own, tokens, gained, _ = jax.lax.while_loop(
        lambda now: (now[0] < num_steps) & ~jnp.all(now[2]), advance, begin
    )
    past = jax.tree.map(into_slots, cache.past, own.past)
    return cache._replace(past=past), tokens, gained, step
