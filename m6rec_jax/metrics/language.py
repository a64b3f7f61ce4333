"""Perplexity of next-token prediction."""

from __future__ import annotations

import math

from m6rec_jax.errors import DataError


def perplexity_from_sums(sum_negative_log_likelihood: float, num_tokens: float) -> float:
    """exp(mean negative log likelihood per token), from sums gathered over batches.

    Args:
      sum_negative_log_likelihood: in nats, over all weighted tokens.
      num_tokens: sum of the token weights.

    Returns:
      The perplexity; infinity when the mean exceeds what a float can hold.

    Raises:
      DataError: no tokens, or a sum that is NaN.
    """
    if math.isnan(sum_negative_log_likelihood):
        raise DataError("perplexity: the summed negative log likelihood is NaN")
    if not num_tokens > 0:
        raise DataError(
            "perplexity is undefined: no target token has a positive weight; is the split empty?"
        )
    try:
        return math.exp(sum_negative_log_likelihood / num_tokens)
    except OverflowError:
        return math.inf
