"""From the probability that a model was trained to give to the probability of the real thing."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.errors import ConfigError

Probability = TypeVar("Probability", np.ndarray, jax.Array)


def correct_sampled_negatives(probability: Probability, negative_rate: float) -> Probability:
    """Undoes the sampling of negatives: keeping a share r of them multiplied the odds by 1 / r.

    Args:
      probability: of the positive class, under the sampled training data.
      negative_rate: r in (0, 1], the share of negatives that training saw. 1 changes nothing.

    Returns:
      p / (p + (1 - p) / r), of the same shape. The order of candidates stays.

    Raises:
      ConfigError: a rate outside (0, 1].
    """
    if not 0.0 < negative_rate <= 1.0:
        raise ConfigError(f"negative_rate = {negative_rate} must lie in (0, 1]")
    if negative_rate == 1.0:
        return probability
    return probability / (probability + (1.0 - probability) / negative_rate)


def positive_probability(
    log_probabilities: jax.Array, positive_classes: tuple[int, ...]
) -> jax.Array:
    """Sum of the positive classes' probabilities, `[..., classes]` to `[...]`.

    With two classes that is class 1. With one class per rating value it is, say, 4 and 5 stars, so
    that richer labels than yes and no can be trained on.

    Raises:
      ConfigError: a class that the head does not have, or no class or all of them.
    """
    num_classes = log_probabilities.shape[-1]
    chosen = sorted(set(positive_classes))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_classes or len(chosen) == num_classes:
        raise ConfigError(
            f"positive_classes = {tuple(positive_classes)} must be some, but not all, of the "
            f"classes 0 to {num_classes - 1} (PromptConfig.num_options = {num_classes})"
        )
    return jnp.exp(jax.nn.logsumexp(log_probabilities[..., jnp.asarray(chosen)], axis=-1))
