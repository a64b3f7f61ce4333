"""Likelihood: zero-shot scores (paper section 2), of a model that was tuned for no such task.

By default the question is by how much the best outcome in the words of the data set's template is
likelier than the worst, asked as a foundation has learnt them (`text.outcomes.Contrast`); its
answer is a probability. Other outcomes, or a sentence whose words are judged, for data without
outcomes, are named in gin, for rows of prepared data (`likelihood_rows`) and for requests:

    LikelihoodScorer.contrast = ('liked', 'disliked')
    LikelihoodScorer.sentence = '{item}'

Metrics: `auc` and `user_averaged_auc`, of a contrast also `log_loss` and `calibration_error`,
beside those of baselines that need no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import numpy as np
from scipy.special import expit

from m6rec_jax.engine.likelihood import LikelihoodScorer, question_scores
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.answering import (
    Accepted,
    Answerer,
    Parts,
    RequestFields,
    ScoredItem,
    check_finite,
    title_of,
)
from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    Features,
    Found,
    Job,
    TaskData,
    TaskRows,
    Variables,
    jobs,
    labelled,
    register,
)
from m6rec_jax.jobs.past_items import metrics_apart
from m6rec_jax.jobs.scoring import candidate_names, mean_baselines
from m6rec_jax.metrics import classification
from m6rec_jax.metrics.baselines import MeanBaselines
from m6rec_jax.model import M6Rec
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow, Request
from m6rec_jax.text.counted_sentences import CountedSentence
from m6rec_jax.text.outcomes import Contrast
from m6rec_jax.text.questions import Question
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PlattScaling:
    """From log odds to probabilities, σ(scale · log odds + offset) (Platt, 1999).

    Attributes:
      scale, offset: `m6rec calibrate` learns them (`evaluation.scaling_calibration`).
    """

    scale: float = 1.0
    offset: float = 0.0

    def probabilities(self, log_odds: np.ndarray) -> np.ndarray:
        """Probability of the first of two outcomes, float64 `[n]`, of their log odds `[n]`."""
        found: np.ndarray = expit(self.scale * log_odds.astype(np.float64) + self.offset)
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class LikelihoodPredictions:
    """One entry per scored candidate.

    Attributes:
      users, items: int64 `[n]`, indices into the users and the items table.
      labels: int64 `[n]`, 0 or 1.
      scores: float64 `[n]`, in nats: log odds of the first outcome, or the mean log probability of
        the tokens that count.
      probabilities: float64 `[n]`, of the first outcome; None where a sentence was judged.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray | None


@register
class LikelihoodJob(Job):
    """The answer to a `text.questions.Question` about each candidate."""

    kind = "likelihood"
    tasks = (TaskRows("zero_shot", "groups", "likelihood_rows"),)
    identity = ("decoder_labels", "decoder_item_ids", "user_ids")
    has_scores = True

    @property
    def asked_of(self) -> tuple[str, ...]:
        """Any: a question needs nothing that was trained for it."""
        return tuple(jobs())

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`score` at every decoder position, and what it was compared with, `[rows, target]`."""
        hidden = model.apply(variables, features).hidden
        score = question_scores(model, variables, hidden, features)
        return {"score": score, "compared": features["decoder_contrast_tokens"]}

    def predictions(self, data: TaskData, found: Found) -> LikelihoodPredictions:
        """Raises DataError where no candidate has a label."""
        rows, positions = labelled(found, "zero-shot")
        scores = found["score"][rows, positions].astype(np.float64)
        contrasted = bool(found["compared"][rows, positions].any())
        return LikelihoodPredictions(
            users=found["user_ids"][rows, 0].astype(np.int64),
            items=found["decoder_item_ids"][rows, positions].astype(np.int64),
            labels=found["decoder_labels"][rows, positions].astype(np.int64),
            scores=scores,
            probabilities=PlattScaling().probabilities(scores) if contrasted else None,
        )

    def metrics(
        self, evaluation: Evaluation, predictions: LikelihoodPredictions
    ) -> dict[str, float]:
        """See `likelihood_metrics`; of repeats and new items apart, too."""

        def metrics(some: LikelihoodPredictions) -> dict[str, float]:
            return likelihood_metrics(some, mean_baselines(evaluation))

        return metrics(predictions) | metrics_apart(evaluation, predictions, metrics)

    def columns(self, data: TaskData, predictions: LikelihoodPredictions) -> Columns:
        """User, item, label and score of each candidate, and the probability where there is one."""
        columns = candidate_names(data, predictions.users, predictions.items)
        columns |= {"label": predictions.labels, "score": predictions.scores}
        if predictions.probabilities is not None:
            columns["probability"] = predictions.probabilities
        return columns

    def answerer(self, parts: Parts) -> Answerer[Any]:
        return LikelihoodAnswers(parts)


def likelihood_metrics(
    predictions: LikelihoodPredictions, baselines: MeanBaselines, seed: int = 0
) -> dict[str, float]:
    """How well zero-shot scores order candidates, beside what needs no model.

    Args:
      predictions: of candidates.
      baselines: fitted to the training part.
      seed: of chance.

    Returns:
      `auc` (unless all labels are the same), `user_averaged_auc` (where a user has both),
      `num_examples`, `num_users`; of probabilities also `log_loss` and `calibration_error`. Of the
      baselines of `MeanBaselines.scoring_metrics`, and of `chance`, random scores, the same as
      `<baseline>/<metric>`; all but popularity and chance know the training part's labels.
    """
    users, labels = predictions.users, predictions.labels
    metrics, num_users = classification.ordering_metrics(users, labels, predictions.scores)
    metrics |= {"num_examples": float(len(labels)), "num_users": float(num_users)}
    if predictions.probabilities is not None:
        metrics |= classification.probability_metrics(labels, predictions.probabilities)
    known = baselines.scoring_metrics(users, predictions.items, labels)
    chance = np.random.default_rng(seed).random(len(labels))
    known["chance"], _ = classification.ordering_metrics(users, labels, chance)
    for name, found in known.items():
        metrics |= {f"{name}/{k}": v for k, v in found.items() if k in metrics}
    return metrics


@dataclasses.dataclass(frozen=True, slots=True)
class Likelihoods:
    """How plausible a sentence about each of a request's candidates is, in their order.

    Attributes:
      candidates: of the request.
      mean_log_probabilities: of the tokens that count, float32 `[candidates]`, in nats.
    """

    column_types: ClassVar[Mapping[str, str]] = {
        "mean_log_probabilities": "float",
        "ranking": "int",
    }
    candidates: Sequence[Item]
    mean_log_probabilities: np.ndarray

    @property
    def ranking(self) -> list[int]:
        """Indices of the candidates, likeliest first; equals in the request's order."""
        return _ranking(self.mean_log_probabilities)

    @property
    def items(self) -> list[ScoredItem]:
        """Candidates with their scores."""
        return _items(self.candidates, self.mean_log_probabilities)

    def columns(self) -> Mapping[str, Any]:
        return {
            "mean_log_probabilities": self.mean_log_probabilities,
            "ranking": self.ranking,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Odds:
    """By how much the better outcome of a request's candidates is likelier, in their order.

    Attributes:
      candidates: of the request.
      log_odds: float32 `[candidates]`, in nats.
      probabilities: float64 `[candidates]`, see `PlattScaling`.
    """

    column_types: ClassVar[Mapping[str, str]] = {
        "probabilities": "float",
        "log_odds": "float",
        "ranking": "int",
    }
    candidates: Sequence[Item]
    log_odds: np.ndarray
    probabilities: np.ndarray

    @property
    def items(self) -> list[ScoredItem]:
        """Candidates with their probabilities."""
        return _items(self.candidates, self.probabilities)

    def columns(self) -> Mapping[str, Any]:
        return {
            "probabilities": self.probabilities,
            "log_odds": self.log_odds,
            "ranking": _ranking(self.log_odds),
        }


def _ranking(scores: np.ndarray) -> list[int]:
    found: list[int] = np.argsort(-scores, kind="stable").tolist()
    return found


def _items(candidates: Sequence[Item], scores: np.ndarray) -> list[ScoredItem]:
    pairs = zip(candidates, scores.tolist(), strict=True)
    return [ScoredItem(item.id, title_of(item), score) for item, score in pairs]


class _LikelihoodTask(NamedTuple):
    renderer: RequestRenderer
    template: DatasetTemplate
    question: Question


@gin.configurable(allowlist=["candidates_field"])
class LikelihoodAnswers(Answerer[_LikelihoodTask]):
    """The answer to a question about each candidate, and the order it puts candidates in.

    The question is that of `LikelihoodScorer`, else the contrast of the first and the last outcome
    of the data set's template. Candidates are read with statistics, as in scoring, but in a
    sentence with `{item}` as in the catalogue.

    Args:
      parts: see `Answerer`.
      candidates_field: where a request has its candidates.
    """

    any_data_set = True

    def __init__(self, parts: Parts, candidates_field: str = "candidates") -> None:
        super().__init__(parts)
        self._field, self._scaling = candidates_field, PlattScaling()

    @property
    def column_types(self) -> Mapping[str, str]:
        of_sentence = isinstance(self.parts.likelihood_scorer().question, CountedSentence)
        return (Likelihoods if of_sentence else Odds).column_types

    def open_task(self, task: str) -> _LikelihoodTask:
        template = self.parts.data(task, any_data_set=True).template
        question = self.parts.likelihood_scorer().question
        if question is None:
            question = Contrast.of([outcome.text for outcome in template.outcomes])
        renderer = self.parts.renderer(task, candidates=not question.as_item, any_data_set=True)
        return _LikelihoodTask(renderer, template, question)

    def fields(self, task: str) -> RequestFields:
        del task
        return RequestFields(candidates=self._field)

    def accept(self, request: Request, task: str) -> RequestText:
        own = self.of_task(task)
        text = own.renderer.render(request)
        if own.question.as_item:
            text = text._replace(candidates=self._as_items(request, own.template))
        self.check_candidates(text.candidates, task)
        return text

    def candidate_texts(self, request: Request, task: str) -> list[str]:
        """The texts of a request's candidates alone; raises as `accept`."""
        own = self.of_task(task)
        if own.question.as_item:
            return self._as_items(request, own.template)
        return own.renderer.candidates(request)

    def check_candidates(self, texts: Sequence[str], task: str) -> None:
        """Raises RejectedRow where a candidate's text cannot be scored."""
        scorer = self._scorer(self.of_task(task).question)
        for index, candidate in enumerate(texts):
            try:
                scorer.check(candidate, task)
            except DataError as error:
                path = f"{self._field}[{index}]"
                raise RejectedRow("no_text", f"{path!r} cannot be scored: {error}") from None

    @staticmethod
    def _as_items(request: Request, template: DatasetTemplate) -> list[str]:
        try:
            return [template.item(candidate) for candidate in request.candidates]
        except DataError as error:
            raise RejectedRow("no_text", str(error)) from None

    def answer(self, accepted: Sequence[Accepted]) -> list[Likelihoods | Odds]:
        places: dict[Question, list[int]] = {}
        for place, one in enumerate(accepted):
            places.setdefault(self.of_task(one.task).question, []).append(place)
        found: dict[int, Likelihoods | Odds] = {}
        for question, own in places.items():
            asked = [accepted[place] for place in own]
            scores = self._scorer(question).score_requests(
                [one.text.history for one in asked],
                [one.text.candidates for one in asked],
                [one.task for one in asked],
            )
            check_finite(asked, scores)
            for place, one, values in zip(own, asked, scores, strict=True):
                candidates = one.request.candidates
                found[place] = (
                    Odds(candidates, values, self._scaling.probabilities(values))
                    if isinstance(question, Contrast)
                    else Likelihoods(candidates, values)
                )
        return [found[place] for place in range(len(accepted))]

    def describe(self, task: str) -> Mapping[str, Any]:
        asked = self.of_task(task).question.describe()
        return {"candidates_field": self._field, **asked, **dataclasses.asdict(self._scaling)}

    def warm_up(self, tasks: Iterable[str]) -> None:
        if list(tasks):
            self.parts.warm_once("likelihood", self.parts.likelihood_scorer().warm_up)

    def _scorer(self, question: Question) -> LikelihoodScorer:
        return self.parts.likelihood_scorer().asking(question)
