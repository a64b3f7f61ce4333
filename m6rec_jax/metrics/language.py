"""Metrics of next-token prediction: perplexity and token accuracy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from m6rec_jax.errors import DataError


def _token_count(total: float, metric: str) -> float:
    if not total > 0:
        raise DataError(
            f"{metric} is undefined: no target token has a positive weight; is the split empty?"
        )
    return total


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
    mean = sum_negative_log_likelihood / _token_count(num_tokens, "perplexity")
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def perplexity(
    token_log_probabilities: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Perplexity of target tokens.

    Args:
      token_log_probabilities: `[...]`, log p of each target token, natural logarithm.
      weights: same shape; 0 hides padding. Positions with weight 0 may hold anything, even NaN.

    Raises:
      DataError: no weighted token, NaN, or shapes that differ.
    """
    logp = np.asarray(token_log_probabilities, dtype=np.float64)
    w = np.ones_like(logp) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != logp.shape:
        raise DataError(f"perplexity: weights {w.shape}, log probabilities {logp.shape}")
    return perplexity_from_sums(-float((np.where(w > 0, logp, 0.0) * w).sum()), float(w.sum()))


def token_accuracy(
    predicted: npt.ArrayLike, targets: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Weighted share of target tokens that are predicted exactly.

    Args:
      predicted: `[...]` token ids (the argmax of the logits).
      targets: same shape.
      weights: same shape; 0 hides padding.

    Raises:
      DataError: no weighted token, or shapes that differ.
    """
    p, t = np.asarray(predicted), np.asarray(targets)
    w = np.ones(t.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if p.shape != t.shape or w.shape != t.shape:
        raise DataError(
            f"token accuracy: predicted {p.shape}, targets {t.shape}, weights {w.shape} differ"
        )
    return float(((p == t) * w).sum() / _token_count(float(w.sum()), "token accuracy"))
