"""Language: how likely the target tokens of rows are (pretraining, classes and outcomes in words).

Metrics: `perplexity`, `loss` (nats per token), `token_accuracy`, `num_tokens`.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    Features,
    Found,
    Job,
    TaskData,
    Variables,
    register,
)
from m6rec_jax.metrics import generation
from m6rec_jax.model import M6Rec
from m6rec_jax.objectives.language_modelling import target_logits, token_cross_entropy


@dataclasses.dataclass(frozen=True, slots=True)
class LanguagePredictions:
    """One entry per row of the task.

    Attributes:
      negative_log_likelihood: float64 `[n]`, Σ weight · -log p over the target tokens, in nats.
      correct: float64 `[n]`, Σ weight of the target tokens that are the likeliest ones.
      weight: float64 `[n]`, Σ weight.
    """

    negative_log_likelihood: np.ndarray
    correct: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, found: Found) -> LanguagePredictions:
        """Of `token_sums` of all rows."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(found[name].astype(np.float64) for name in names))


def token_sums(model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
    """The sums of `LanguagePredictions` for each row, float32 `[batch]`; for use inside jit.

    `features` have `decoder_target_tokens` and `decoder_loss_weights` `[batch, target]`.
    """
    outputs = model.apply(variables, features)
    targets, weights = features["decoder_target_tokens"], features["decoder_loss_weights"]
    logits = model.apply(variables, outputs.hidden, method=model.token_logits)
    losses = token_cross_entropy(logits, targets)
    correct = target_logits(logits, targets) >= jnp.max(logits, axis=-1)
    return {
        "negative_log_likelihood": jnp.sum(jnp.where(weights > 0, losses * weights, 0.0), axis=1),
        "correct": jnp.sum(jnp.where(correct, weights, 0.0), axis=1),
        "weight": jnp.sum(weights, axis=1),
    }


def language_metrics(predictions: LanguagePredictions) -> dict[str, float]:
    """`perplexity`, `loss` (nats per token), `token_accuracy`, `num_tokens`.

    Raises:
      DataError: no target token counts.
    """
    nll = float(predictions.negative_log_likelihood.sum())
    tokens = float(predictions.weight.sum())
    return {
        "perplexity": generation.perplexity_from_sums(nll, tokens),
        "loss": nll / tokens,
        "token_accuracy": float(predictions.correct.sum()) / tokens,
        "num_tokens": tokens,
    }


class TargetsJob(Job):
    """Jobs that say how likely the target tokens of rows are."""

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`token_sums` of every row, `[rows]`."""
        return token_sums(model, variables, features)

    def score_columns(self, data: TaskData, found: Found) -> Columns:
        """The sums of each row."""
        return dataclasses.asdict(LanguagePredictions.of(found))


@register
class LanguageJob(TargetsJob):
    """How likely the target tokens are, and nothing else."""

    kind = "language"
    tasks = (
        ("infilling", "documents", "infilling_rows"),
        ("generation", "documents", "generation_rows"),
        ("outcomes", "groups", "outcome_rows"),
    )
    has_scores = True

    def predictions(self, data: TaskData, found: Found) -> LanguagePredictions:
        return LanguagePredictions.of(found)

    def metrics(self, evaluation: Evaluation, predictions: LanguagePredictions) -> dict[str, float]:
        """See `language_metrics`."""
        return language_metrics(predictions)

    def columns(self, data: TaskData, predictions: LanguagePredictions) -> Columns:
        """The sums of each row."""
        return dataclasses.asdict(predictions)
