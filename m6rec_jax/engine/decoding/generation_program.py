"""One program that reads histories and generates texts: encoder, cache, then a decoding loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from m6rec_jax.engine.decoding.beam_search import Beams, beam_search
from m6rec_jax.engine.decoding.constraints import AfterPrefix, Constraint
from m6rec_jax.engine.decoding.loop import Choose, Decoded, decode, greedy, model_step
from m6rec_jax.engine.decoding.sampling import sampler
from m6rec_jax.engine.decoding.token_trie import NO_ENTRY, TokenTrie, UnseenTrie
from m6rec_jax.model import Encoded, M6Rec

Array = jax.Array
Variables = Mapping[str, Any]


class GeneratedBatch(NamedTuple):
    """Texts of each source, best first where that has a meaning.

    Attributes:
      tokens: int32 `[sources, texts, length]`.
      scores: float32 `[sources, texts]`, what texts are ordered by: of beam search the
        length-normalised log probability, else the log probability.
      log_probability: float32 `[sources, texts]`, of the tokens after the prefix.
      ended: bool `[sources, texts]`.
      entries: int32 `[sources, texts]`, of the trie; `NO_ENTRY` without one.
    """

    tokens: Array
    scores: Array
    log_probability: Array
    ended: Array
    entries: Array


def generate(
    model: M6Rec,
    variables: Variables,
    features: Mapping[str, Array],
    constraint: Constraint,
    options: Any,
    *,
    verb: str,
    num_texts: int,
    encoded: Encoded | None = None,
) -> GeneratedBatch:
    """Encodes and decodes a batch; for use inside jit.

    Args:
      model, variables: the model.
      features: `encoder_input_tokens`, `encoder_block_ids` `[sources, source]`, `task_ids`
        `[sources, 1]`, `prefix_ids` `[sources, length]`, `seeds` uint32 `[sources, 1]`.
      constraint: which tokens may come.
      options: `SamplingOptions` of 'sample', the length penalty of 'beam_search'.
      verb: 'greedy', 'sample' or 'beam_search'.
      num_texts: per source.
      encoded: of the sources, where they are encoded already.
    """
    prefix_ids, task_ids = features["prefix_ids"], features["task_ids"]
    if encoded is None:
        tokens, blocks = features["encoder_input_tokens"], features["encoder_block_ids"]
        encoded = model.apply(variables, tokens, blocks, task_ids, method=model.encode)
    cache: Any = model.apply(
        variables,
        encoded,
        task_ids,
        max_length=prefix_ids.shape[1],
        rows_per_source=num_texts,
        method=model.start_decoding,
    )
    step = model_step(model, variables, task_ids)
    result: Beams | Decoded
    if verb == "beam_search":
        beams = beam_search(
            step,
            cache,
            prefix_ids,
            constraint,
            num_beams=num_texts,
            length_penalty=options,
        )
        result, scores = beams, beams.scores
    else:
        choose: Choose = greedy
        if verb == "sample":
            choose = sampler(row_keys(features["seeds"][:, 0], num_texts), options)
        result = decode(step, cache, jnp.repeat(prefix_ids, num_texts, axis=0), constraint, choose)
        scores = result.log_probability
    entries = jnp.full_like(scores, NO_ENTRY, jnp.int32)
    if isinstance(constraint, TokenTrie | UnseenTrie | AfterPrefix):
        entries = constraint.entries(result.state)
    shape = (prefix_ids.shape[0], num_texts)
    return GeneratedBatch(
        result.tokens.reshape(*shape, -1),
        scores.reshape(shape),
        result.log_probability.reshape(shape),
        result.ended.reshape(shape),
        entries.reshape(shape),
    )


def row_keys(seeds: Array, num_texts: int) -> Array:
    """A key per row, `[sources * texts]`, that depends on nothing but its seed and its number."""
    keys = jax.vmap(jax.random.key)(seeds)
    fold_in = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)), in_axes=(0, None))
    return fold_in(keys, jnp.arange(num_texts)).reshape(-1)
