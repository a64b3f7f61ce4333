"""Scores candidates for users: the probability that a user likes, clicks or buys (paper section 2).

    scorer = Scorer(model, variables, vocabulary, EngineOptions(source_length=256, ...))
    scorer.score_requests([history], [candidates])      # text in, one probability per candidate out
    bank.scorer().score_requests(histories, candidates, ["ctr", "stars"])      # a task per request

A history is encoded once, however many candidates it has; candidates are packed into decoder rows.
Shapes come from a few buckets, so a new request compiles nothing once each bucket has been seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m6rec_jax.data.splitting.negatives import corrected_probability
from m6rec_jax.engine.candidates.scorer import CandidateScorer
from m6rec_jax.engine.engine import Variables
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError
from m6rec_jax.model import M6Rec

Array = jax.Array


def class_log_probabilities(
    model: M6Rec, variables: Variables, features: Mapping[str, Array]
) -> Array:
    """Log probability of every class at every decoder position, `[batch, target, classes]`.

    Only positions whose input token is `[EOS]` mean anything. For use inside jit.
    """
    hidden = model.apply(variables, features).hidden
    return read_log_probabilities(model, variables, hidden, features["task_ids"])


def read_log_probabilities(
    model: M6Rec, variables: Variables, hidden: Array, task_ids: Array
) -> Array:
    """`class_log_probabilities` of the decoder's final states, `[batch, target, embed]`."""
    logits = model.apply(variables, hidden, task_ids, method=model.option_logits)
    return jax.nn.log_softmax(logits, axis=-1)


def positive_probability(log_probabilities: Array, positive: Array) -> Array:
    """Sum of the positive classes' probabilities, `[batch, target, classes]` to `[batch, target]`.

    With two classes that is class 1. With one class per rating value it is, say, 4 and 5 stars, so
    that richer labels than yes and no can be trained on.

    Args:
      log_probabilities: of all classes.
      positive: of each row, `[batch, classes]`, above 0 for its positive classes.
    """
    chosen = jnp.where(positive[:, None] > 0, log_probabilities, -jnp.inf)
    # Several classes may round to a little above 1.
    return jnp.exp(jnp.minimum(jax.nn.logsumexp(chosen, axis=-1), 0.0))


def served_probability(probability: Any, repeats: Any, sampling_rates: Any) -> Any:
    """A model's probabilities as they are served: corrected for how negatives were sampled.

    Args:
      probability: of candidates, `[..., n]`, of numpy or JAX, as all arguments.
      repeats: which of them the user had before, bool `[..., n]`.
      sampling_rates: `TaskSettings.sampling_rates`, `[..., 2]`.
    """
    new, had = sampling_rates[..., :1], sampling_rates[..., 1:]
    return corrected_probability(probability, new * ~repeats + had * repeats)


def chosen_classes(positive_classes: Sequence[int], num_classes: int) -> np.ndarray:
    """Which classes are positive, bool `[classes]`.

    Raises:
      ConfigError: a class that the head does not have, or no class or all of them.
    """
    chosen = sorted(set(positive_classes))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_classes or len(chosen) == num_classes:
        raise ConfigError(
            f"positive_classes = {tuple(positive_classes)} must be some, but not all, of the "
            f"classes 0 to {num_classes - 1} (PromptConfig.num_options = {num_classes})"
        )
    return np.isin(np.arange(num_classes), chosen)


def read_probability(
    model: M6Rec, variables: Variables, hidden: Array, features: Mapping[str, Array]
) -> Array:
    """`Read`: the probability of the task's positive classes."""
    found = read_log_probabilities(model, variables, hidden, features["task_ids"])
    return positive_probability(found, features["positive_classes"])


def finish_probability(values: Array, features: Mapping[str, Array]) -> Array:
    """`Finish`: see `served_probability`."""
    return served_probability(values, features["decoder_repeats"] > 0, features["sampling_rates"])


class Scorer(CandidateScorer):
    """Probability of the positive classes for rows or for requests in text.

    The settings of a task name its positive classes and how often training saw each negative
    (`TaskSettings.sampling_rates`), by which probabilities are corrected.

    Raises:
      ConfigError: the model has no classes, or lengths that do not fit together.
    """

    needed_part = "classes"
    program_name = "score"
    decoder_features = (*CandidateScorer.decoder_features, "decoder_repeats")
    may_exit = True

    read = staticmethod(read_probability)
    finish = staticmethod(finish_probability)

    def task_features(self, settings: Sequence[TaskSettings], size: int) -> dict[str, np.ndarray]:
        capacity = self.model.config.prompts.num_options
        positive = np.zeros((size, capacity), np.int32)
        rates = np.ones((size, 2), np.float32)
        for row, own in enumerate(settings):
            chosen = chosen_classes(own.positive_classes, own.num_options or capacity)
            positive[row, : len(chosen)] = chosen
            rates[row] = own.sampling_rates
        return {"positive_classes": positive, "sampling_rates": rates}
