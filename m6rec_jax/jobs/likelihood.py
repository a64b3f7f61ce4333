"""Likelihood: zero-shot scores, how plausible a sentence about a candidate is (paper section 2).

Metrics: `auc` and `user_averaged_auc`, beside those of baselines that need no model.

In gin, the sentence that requests are answered by:

    LikelihoodScorer.sentence = '{item}. liked.'
    LikelihoodScorer.counted = ('after',)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import numpy as np

from m6rec_jax.engine.likelihood import mean_target_log_probabilities
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
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate


@dataclasses.dataclass(frozen=True, slots=True)
class LikelihoodPredictions:
    """One entry per scored candidate.

    Attributes:
      users, items: int64 `[n]`, indices into the users and the items table.
      labels: int64 `[n]`, 0 or 1.
      scores: float64 `[n]`, mean log probability of the tokens that count, in nats.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@register
class LikelihoodJob(Job):
    """The mean log probability of the tokens that count, for each candidate."""

    kind = "likelihood"
    tasks = (TaskRows("zero_shot", "groups", "likelihood_rows"),)
    identity = ("decoder_labels", "decoder_item_ids", "user_ids")
    has_scores = True

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`score` at every decoder position, `[rows, target]`."""
        hidden = model.apply(variables, features).hidden
        return {"score": mean_target_log_probabilities(model, variables, hidden, features)}

    def predictions(self, data: TaskData, found: Found) -> LikelihoodPredictions:
        """Raises DataError where no candidate has a label."""
        rows, positions = labelled(found, "zero-shot")
        return LikelihoodPredictions(
            users=found["user_ids"][rows, 0].astype(np.int64),
            items=found["decoder_item_ids"][rows, positions].astype(np.int64),
            labels=found["decoder_labels"][rows, positions].astype(np.int64),
            scores=found["score"][rows, positions].astype(np.float64),
        )

    def metrics(
        self, evaluation: Evaluation, predictions: LikelihoodPredictions
    ) -> dict[str, float]:
        """See `likelihood_metrics`; of repeats and new items apart, too."""

        def metrics(some: LikelihoodPredictions) -> dict[str, float]:
            return likelihood_metrics(some, mean_baselines(evaluation))

        return metrics(predictions) | metrics_apart(evaluation, predictions, metrics)

    def columns(self, data: TaskData, predictions: LikelihoodPredictions) -> Columns:
        """User, item, label and score of each candidate."""
        return candidate_names(data, predictions.users, predictions.items) | {
            "label": predictions.labels,
            "score": predictions.scores,
        }

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
      `auc`, `user_averaged_auc` (where a user has both labels), `num_examples`, `num_users`; and
      the first two of `popularity/...`, `item_mean/...`, `user_and_item_mean/...` and `chance/...`,
      random scores. All baselines but popularity and chance know the training part's labels.

    Raises:
      DataError: all labels are the same.
    """
    users, labels = predictions.users, predictions.labels
    metrics, num_users = _ordering(users, labels, predictions.scores)
    metrics |= {"num_examples": float(len(labels)), "num_users": float(num_users)}
    known = baselines.scoring_metrics(users, predictions.items, labels)
    known["chance"], _ = _ordering(users, labels, np.random.default_rng(seed).random(len(labels)))
    for name, found in known.items():
        metrics |= {f"{name}/{k}": v for k, v in found.items() if k.endswith("auc")}
    return metrics


def _ordering(
    users: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[dict[str, float], int]:
    """AUC, that averaged over users, and how many of those have both labels."""
    metrics = {"auc": classification.auc(labels, scores)}
    per_user = classification.per_user_auc(users, labels, scores).values
    if per_user.size:
        metrics["user_averaged_auc"] = float(per_user.mean())
    return metrics, int(per_user.size)


@dataclasses.dataclass(frozen=True, slots=True)
class Likelihoods:
    """How plausible a request's candidates are, in their order.

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
        found: list[int] = np.argsort(-self.mean_log_probabilities, kind="stable").tolist()
        return found

    @property
    def items(self) -> list[ScoredItem]:
        """Candidates with their scores."""
        pairs = zip(self.candidates, self.mean_log_probabilities.tolist(), strict=True)
        return [ScoredItem(item.id, title_of(item), score) for item, score in pairs]

    def columns(self) -> Mapping[str, Any]:
        return {
            "mean_log_probabilities": self.mean_log_probabilities,
            "ranking": self.ranking,
        }


class _LikelihoodTask(NamedTuple):
    renderer: RequestRenderer
    template: DatasetTemplate


@gin.configurable(allowlist=["candidates_field"])
class LikelihoodAnswers(Answerer[_LikelihoodTask]):
    """Mean log probability of the tokens that count, and the order it puts candidates in.

    The sentence (`LikelihoodScorer.sentence`) says which text of a candidate is read: `{candidate}`
    has statistics, as in scoring, `{item}` is the catalogue's.

    Args:
      parts: see `Answerer`.
      candidates_field: where a request has its candidates.
    """

    result = Likelihoods
    any_data_set = True

    def __init__(self, parts: Parts, candidates_field: str = "candidates") -> None:
        super().__init__(parts)
        self._field = candidates_field

    def open_task(self, task: str) -> _LikelihoodTask:
        as_item = self.parts.likelihood_scorer().sentence.as_item
        renderer = self.parts.renderer(task, candidates=not as_item, any_data_set=True)
        return _LikelihoodTask(renderer, self.parts.data(task, any_data_set=True).template)

    def fields(self, task: str) -> RequestFields:
        del task
        return RequestFields(candidates=self._field)

    def accept(self, request: Request, task: str) -> RequestText:
        own = self.of_task(task)
        text = own.renderer.render(request)
        if self.parts.likelihood_scorer().sentence.as_item:
            text = text._replace(candidates=self._as_items(request, own.template))
        self.check_candidates(text.candidates, task)
        return text

    def candidate_texts(self, request: Request, task: str) -> list[str]:
        """The texts of a request's candidates alone; raises as `accept`."""
        own = self.of_task(task)
        if self.parts.likelihood_scorer().sentence.as_item:
            return self._as_items(request, own.template)
        return own.renderer.candidates(request)

    def check_candidates(self, texts: Sequence[str], task: str) -> None:
        """Raises RejectedRow where a candidate's text cannot be scored."""
        for index, candidate in enumerate(texts):
            try:
                self.parts.likelihood_scorer().check(candidate, task)
            except DataError as error:
                path = f"{self._field}[{index}]"
                raise RejectedRow("no_text", f"{path!r} cannot be scored: {error}") from None

    @staticmethod
    def _as_items(request: Request, template: DatasetTemplate) -> list[str]:
        try:
            return [template.item(candidate) for candidate in request.candidates]
        except DataError as error:
            raise RejectedRow("no_text", str(error)) from None

    def answer(self, accepted: Sequence[Accepted]) -> list[Likelihoods]:
        found = self.parts.likelihood_scorer().score_requests(
            [one.text.history for one in accepted],
            [one.text.candidates for one in accepted],
            [one.task for one in accepted],
        )
        check_finite(accepted, found)
        return [
            Likelihoods(one.request.candidates, values)
            for one, values in zip(accepted, found, strict=True)
        ]

    def describe(self, task: str) -> Mapping[str, Any]:
        del task
        sentence = self.parts.likelihood_scorer().sentence
        return {
            "candidates_field": self._field,
            "sentence": sentence.render("{item}" if sentence.as_item else "{candidate}"),
            "counted": sorted(sentence.counted),
        }

    def warm_up(self, tasks: Iterable[str]) -> None:
        if list(tasks):
            self.parts.warm_once("likelihood", self.parts.likelihood_scorer().warm_up)
