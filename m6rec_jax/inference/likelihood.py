"""How likely a model finds given target tokens: what perplexity is made of."""

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
    logits = model.apply(variables, outputs.hidden, method=model.token_logits)
    targets, weights = features["decoder_target_tokens"], features["decoder_loss_weights"]
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - chosen
    correct = chosen >= jnp.max(logits, axis=-1)
    return TokenSums(
        jnp.sum(jnp.where(weights > 0, loss * weights, 0.0), axis=1),
        jnp.sum(jnp.where(correct, weights, 0.0), axis=1),
        jnp.sum(weights, axis=1),
    )
