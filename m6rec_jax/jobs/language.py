"""Language: how likely the target tokens of rows are (pretraining, classes and outcomes in words).

Metrics: `perplexity`, `loss` (nats per token), `token_accuracy`, `num_tokens`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from m6rec_jax.engine.candidates.likelihood import token_sums
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


@register
class LanguageJob(Job):
    """How likely the target tokens are."""

    kind = "language"
    tasks = (
        ("infilling", "documents", "infilling_rows"),
        ("generation", "documents", "generation_rows"),
        ("outcomes", "groups", "outcome_rows"),
    )
    has_scores = True

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`token_sums` of every row, `[rows]`."""
        return token_sums(model, variables, features)

    def predictions(self, data: TaskData, found: Found) -> LanguagePredictions:
        return LanguagePredictions.of(found)

    def metrics(self, evaluation: Evaluation, predictions: LanguagePredictions) -> dict[str, float]:
        """See `language_metrics`."""
        return language_metrics(predictions)

    def columns(self, data: TaskData, predictions: LanguagePredictions) -> Columns:
        """The sums of each row."""
        return dataclasses.asdict(predictions)
