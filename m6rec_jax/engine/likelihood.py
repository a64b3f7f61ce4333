"""How likely a model finds given target tokens: perplexity, and zero-shot scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from m6rec_jax.model import M6Rec

Array = jax.Array


class TokenSums(NamedTuple):
    """Sums over the target tokens of each row, float32 `[batch]`.

    Attributes:
      negative_log_likelihood: Σ weight · -log p, in nats.
      correct: Σ weight where the target is the likeliest token.
      weight: Σ weight.
    """

    negative_log_likelihood: Array
    correct: Array
    weight: Array


def token_sums(
    model: M6Rec, variables: Mapping[str, Any], features: Mapping[str, Array]
) -> TokenSums:
    """Sums of the target tokens' likelihood; for use inside jit.

    Args:
      model, variables: the model.
      features: a batch, with `decoder_target_tokens` and `decoder_loss_weights`
        `[batch, target]`.
    """
    outputs = model.apply(variables, features)
    targets, weights = features["decoder_target_tokens"], features["decoder_loss_weights"]
    log_p, correct = target_log_probabilities(model, variables, outputs.hidden, targets)
    return TokenSums(
        -jnp.sum(jnp.where(weights > 0, log_p * weights, 0.0), axis=1),
        jnp.sum(jnp.where(correct, weights, 0.0), axis=1),
        jnp.sum(weights, axis=1),
    )


def target_log_probabilities(
    model: M6Rec, variables: Mapping[str, Any], hidden: Array, targets: Array
) -> tuple[Array, Array]:
    """Log probability of each target token; for use inside jit.

    Args:
      model, variables: the model.
      hidden: the decoder's final states, `[batch, target, embed]`.
      targets: int32 `[batch, target]`.

    Returns:
      (log p, whether the target is the likeliest token), `[batch, target]`.
    """
    logits = model.apply(variables, hidden, method=model.token_logits)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), chosen >= jnp.max(logits, axis=-1)


def mean_log_probabilities(
    log_probabilities: Array, weights: Array, decoder_block_ids: Array
) -> Array:
    """Weighted mean over each packed text: the paper's zero-shot score (section 2).

    Args:
      log_probabilities: of the target tokens, `[batch, target]`.
      weights: 1 where a token counts, else 0, `[batch, target]`.
      decoder_block_ids: int32 `[batch, target]`, texts from 1, 0 is padding.

    Returns:
      At every position the mean of its text, `[batch, target]`; 0 where nothing counts.
    """
    length = decoder_block_ids.shape[1]

    def of_row(values: Array, weights: Array, blocks: Array) -> Array:
        sums = jax.ops.segment_sum(
            jnp.where(weights > 0, values * weights, 0.0), blocks, length + 1
        )
        totals = jax.ops.segment_sum(weights, blocks, length + 1)
        return (sums / jnp.maximum(totals, 1e-9))[blocks]

    return jax.vmap(of_row)(log_probabilities, weights, decoder_block_ids)


def mean_target_log_probabilities(
    model: M6Rec, variables: Mapping[str, Any], hidden: Array, features: Mapping[str, Array]
) -> Array:
    """`mean_log_probabilities` of a whole batch, `[batch, target]`; for use inside jit.

    Args:
      model, variables: the model.
      hidden: the decoder's final states, `[batch, target, embed]`.
      features: of rows laid out by `text.counted_sentences`.
    """
    targets = features["decoder_target_tokens"]
    log_p, _ = target_log_probabilities(model, variables, hidden, targets)
    return mean_log_probabilities(
        log_p, features["decoder_loss_weights"], features["decoder_block_ids"]
    )
