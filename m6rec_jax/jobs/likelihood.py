"""Likelihood: zero-shot scores (paper section 2), of a model that was tuned for no such task.

The question is by how much the best label in the words of the data set's template is likelier than
the worst, asked as a foundation has learnt them (`text.labels.Contrast`); its answer is a
probability. Other labels are named in gin, for rows of prepared data (`likelihood_rows`) and for
requests:

    LikelihoodAnswers.contrast = ('liked', 'disliked')

Metrics: `auc`, `user_averaged_auc`, `log_loss` and `calibration_error`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import numpy as np
from scipy.special import expit

from m6rec_jax.engine.candidates.scoring import contrast_scores
from m6rec_jax.engine.task_settings import TaskSettings, dialogue_part
from m6rec_jax.jobs.answering import Answer, scored
from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    Features,
    Found,
    TaskData,
    Variables,
    candidate_names,
    register,
)
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.jobs.scoring import (
    CandidateHandler,
    CandidateJob,
    ScoringPredictions,
    labelled_candidates,
)
from m6rec_jax.metrics import classification
from m6rec_jax.model import M6Rec
from m6rec_jax.text.labels import Contrast
from m6rec_jax.text.records import Item


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PlattScaling:
    """From log odds to probabilities, σ(scale · log odds + offset) (Platt, 1999).

    Attributes:
      scale, offset: `m6rec calibrate` learns them (`evaluation.calibration`).
    """

    scale: float = 1.0
    offset: float = 0.0

    def probabilities(self, log_odds: np.ndarray) -> np.ndarray:
        """Probability of the first of two outcomes, float64 `[n]`, of their log odds `[n]`."""
        return expit(self.scale * log_odds.astype(np.float64) + self.offset)


@gin.configurable(allowlist=["contrast"])
class LikelihoodAnswers(CandidateHandler):
    """How likely each candidate's better label is, and the order that puts candidates in.

    Candidates are read with statistics, as in scoring.

    Args:
      resources, task: see `Handler`.
      contrast: the two labels, the better one first; empty: the first and the last of the data
        set's template.
    """

    job = "likelihood"
    any_data_set = True
    column_types: ClassVar[Mapping[str, str]] = {
        "probabilities": "float",
        "log_odds": "float",
        "ranking": "int",
    }

    def __init__(self, resources: Resources, task: str, contrast: Sequence[str] = ()) -> None:
        template = resources.data(task, any_data_set=True).template
        self._contrast = Contrast.of(contrast or [one.text for one in template.outcomes])
        super().__init__(resources, task, resources.likelihood_scorer(self._contrast))
        self._scaling = PlattScaling()

    @property
    def group(self) -> Hashable:
        """One question at a time."""
        return self.job, self._contrast

    def answer_of(self, candidates: Sequence[Item], scores: np.ndarray) -> Answer:
        probabilities = self._scaling.probabilities(scores)
        # Likeliest first; equals in the request's order.
        ranking = np.argsort(-scores, kind="stable").tolist()
        columns = {"probabilities": probabilities, "log_odds": scores, "ranking": ranking}
        return Answer(columns, scored(candidates, probabilities))

    def describe(self) -> Mapping[str, Any]:
        contrast = {"contrast": list(self._contrast)}
        return {**super().describe(), **contrast, **dataclasses.asdict(self._scaling)}


@register
class LikelihoodJob(CandidateJob):
    """How likely each candidate's better label is."""

    kind = "likelihood"
    handler = LikelihoodAnswers
    tasks = (("zero_shot", "groups", "likelihood_rows"),)
    on_request = True

    def may_be_asked_of(self, settings: TaskSettings) -> bool:
        """Any: a question needs nothing that was trained for it."""
        return not dialogue_part(settings)

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`score` at every decoder position, `[rows, target]`."""
        hidden = model.apply(variables, features).hidden
        return {"score": contrast_scores(model, variables, hidden, features)}

    def predictions(self, data: TaskData, found: Found) -> ScoringPredictions:
        """In order of log odds; labels and classes are 1 where the better label is true.

        Raises DataError where no candidate has a label.
        """
        users, items, labels, places = labelled_candidates(found, "zero-shot")
        log_odds = found["score"][places].astype(np.float64)
        probabilities = PlattScaling().probabilities(log_odds)
        return ScoringPredictions(users, items, labels, labels, probabilities, log_odds)

    def baselines(
        self, evaluation: Evaluation, predictions: ScoringPredictions
    ) -> dict[str, dict[str, float]]:
        """Those of scoring, which know labels (but for popularity), and `chance`, random scores."""
        chance = np.random.default_rng(0).random(len(predictions.labels))
        of_chance, _ = classification.ordering_metrics(
            predictions.users, predictions.labels, chance
        )
        return super().baselines(evaluation, predictions) | {"chance": of_chance}

    def columns(self, data: TaskData, predictions: ScoringPredictions) -> Columns:
        """User, item, label, score and probability of each candidate."""
        return candidate_names(data, predictions.users, predictions.items) | {
            "label": predictions.labels,
            "score": predictions.scores,
            "probability": predictions.probabilities,
        }
