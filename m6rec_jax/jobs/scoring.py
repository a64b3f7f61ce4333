"""Scoring: the probability that a user likes, clicks or buys a candidate (paper section 2).

Metrics: `auc`, `user_averaged_auc`, `log_loss`, `calibration_error`.

Likelihood gives zero-shot scores (paper section 2), of a model that was tuned for no such task. The
question is by how much the best label in the words of the data set's template is likelier than the
worst, asked as a foundation has learnt them (`text.labels.Contrast`); its answer is a probability.
Other labels are named in gin, for rows of prepared data (`likelihood_rows`) and for requests:

    LikelihoodAnswers.contrast = ('liked', 'disliked')
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import numpy as np
from scipy.special import expit

from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.engine.candidates.scoring import (
    CandidateScorer,
    chosen_classes,
    contrast_scores,
    served_probability,
)
from m6rec_jax.engine.task_settings import TaskSettings, dialogue_part
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.answering import Accepted, Answer, Handler, scored
from m6rec_jax.jobs.classification import ClassesJob
from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    ExampleScores,
    Features,
    Found,
    Job,
    TaskData,
    Variables,
    candidate_names,
    labelled,
    register,
)
from m6rec_jax.jobs.past_items import metrics_apart, own_counts
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.metrics import classification
from m6rec_jax.metrics.baselines import MeanBaselines, UserItemCounts
from m6rec_jax.model import M6Rec
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.requests.request import RejectedRow, Request, RequestFields
from m6rec_jax.text.labels import Contrast
from m6rec_jax.text.records import Item

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ScoringPredictions:
    """One entry per scored candidate.

    Where negatives were sampled the probabilities are those among the rows as sampled, as their
    labels and so the metrics are; files of predictions have them as they are served.

    Attributes:
      users, items: int64 `[n]`, indices into the users and the items table.
      labels: int64 `[n]`, 1 where the class is one of the positive ones.
      classes: int64 `[n]`, the class itself.
      probabilities: float64 `[n]`, of the positive classes.
      scores: float64 `[n]`, which order candidates.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    scores: np.ndarray


class CandidateHandler(Handler):
    """Scores the candidates of requests; subclasses say what that means.

    Args:
      resources, task: see `Handler`.
      scorer: of the candidates.
      candidates_field: where a request has them.
    """

    renders_candidates = True

    def __init__(
        self,
        resources: Resources,
        task: str,
        scorer: CandidateScorer,
        candidates_field: str = "candidates",
    ) -> None:
        super().__init__(resources, task, RequestFields(candidates_field))
        self._scorer, self._field = scorer, candidates_field

    def render(self, request: Request) -> RequestText:
        text = super().render(request)
        self.check_candidates(text.candidates)
        return text

    def check_candidates(self, texts: Sequence[str]) -> None:
        """Raises RejectedRow where a candidate's text cannot be scored."""
        for index, candidate in enumerate(texts):
            try:
                self._scorer.check(candidate, self.task)
            except DataError as error:
                path = f"{self._field}[{index}]"
                raise RejectedRow("no_text", f"{path!r} cannot be scored: {error}") from None

    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        scores = self._scorer.score_requests(
            [one.text.history for one in accepted],
            [one.text.candidates for one in accepted],
            [one.handler.task for one in accepted],
            [self._repeats(one) for one in accepted],
        )
        return [
            self.answer_of(one.request.candidates, values)
            for one, values in zip(accepted, scores, strict=True)
        ]

    @abc.abstractmethod
    def answer_of(self, candidates: Sequence[Item], scores: np.ndarray) -> Answer:
        """The answer with the candidates' scores `[candidates]`."""

    def _repeats(self, one: Accepted) -> list[bool]:
        """Which candidates the user had before, where the task's negatives tell them apart."""
        handler = one.handler
        if self.resources.settings(handler.task).repeat_sampling_rate is None:
            return [False] * len(one.text.candidates)
        had = handler.renderer.had(one.request)
        return [item.id in had for item in one.request.candidates]

    def describe(self) -> Mapping[str, Any]:
        return {"candidates_field": self._field}

    def warm_up(self) -> None:
        self.resources.warm_once(self._scorer.program_name, self._scorer.warm_up)


@gin.configurable(allowlist=["candidates_field"])
class ScoringAnswers(CandidateHandler):
    """The probability of each candidate; one batch may mix tasks.

    Args:
      resources, task: see `Handler`.
      candidates_field: where a request has its candidates. 'item_ids' scores what retrieval found.
    """

    job = "scoring"
    column_types: ClassVar[Mapping[str, str]] = {"probabilities": "float"}

    def __init__(
        self, resources: Resources, task: str, candidates_field: str = "candidates"
    ) -> None:
        scorer = resources.scorer()
        scorer.settings(task)
        super().__init__(resources, task, scorer, candidates_field)

    def answer_of(self, candidates: Sequence[Item], scores: np.ndarray) -> Answer:
        return Answer({"probabilities": scores}, scored(candidates, scores))


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


class CandidateJob(Job):
    """What jobs that score candidates share."""

    identity = ("decoder_labels", "decoder_item_ids", "user_ids")
    has_scores = True

    def metrics(self, evaluation: Evaluation, predictions: ScoringPredictions) -> dict[str, float]:
        """See `scoring_metrics`; of repeats and new items apart, too."""
        of_kinds = scores_apart(evaluation, predictions, scoring_metrics)
        return scoring_metrics(predictions) | of_kinds

    def baselines(
        self, evaluation: Evaluation, predictions: ScoringPredictions
    ) -> dict[str, dict[str, float]]:
        """See `MeanBaselines.scoring_metrics`; of repeats and new items apart, too."""
        fitted = mean_baselines(evaluation)

        def metrics(name: str, some: ScoringPredictions) -> dict[str, float]:
            return fitted.scoring_metrics(some.users, some.items, some.labels)[name]

        of_all = fitted.scoring_metrics(predictions.users, predictions.items, predictions.labels)
        return {
            name: values | scores_apart(evaluation, predictions, functools.partial(metrics, name))
            for name, values in of_all.items()
        }

    def example_scores(self, predictions: ScoringPredictions) -> ExampleScores:
        """Log likelihood of each label."""
        values = classification.log_likelihoods(predictions.labels, predictions.probabilities)
        return ExampleScores("log likelihood", predictions.users, values)


@register
class ScoringJob(CandidateJob, ClassesJob):
    """The probability of a task's positive classes for each candidate."""

    kind = "scoring"
    handler = ScoringAnswers
    tasks = (("ctr", "groups", "scoring_rows"),)

    def predictions(self, data: TaskData, found: Found) -> ScoringPredictions:
        """Raises DataError where no candidate has a label."""
        users, items, classes, places = labelled_candidates(found, "scoring")
        labels = np.isin(classes, data.positive_classes).astype(np.int64)
        of_classes = np.exp(found["log_probabilities"][places].astype(np.float64))
        chosen = chosen_classes(data.positive_classes, of_classes.shape[-1])
        # Several classes may round to a little above 1.
        probabilities = np.minimum(of_classes @ chosen, 1.0)
        return ScoringPredictions(users, items, labels, classes, probabilities, probabilities)

    def columns(self, data: TaskData, predictions: ScoringPredictions) -> Columns:
        """User, item, label, class and probability of each candidate, as it is served.

        Of the training part, whose rows do not say what came before them, all items count as new.
        """
        settings = TaskSettings(**data.prepared().manifest.view(data.view).negatives)
        repeats = np.zeros(len(predictions.items), bool)
        if settings.repeat_sampling_rate is not None and data.part != "train":
            had = UserItemCounts.fit(*data.past_events())
            repeats = had.of(predictions.users, predictions.items) > 0
        probabilities = served_probability(
            predictions.probabilities, repeats, np.array(settings.sampling_rates)
        )
        return candidate_names(data, predictions.users, predictions.items) | {
            "label": predictions.labels,
            "class": predictions.classes,
            "probability": probabilities,
        }


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


def labelled_candidates(
    found: Found, job: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Users, items and classes of the candidates that have one, int64 `[n]`, and their rows and
    positions; raises as `labelled`.
    """
    rows, positions = labelled(found, job)
    items, classes = (
        found[name][rows, positions].astype(np.int64)
        for name in ("decoder_item_ids", "decoder_labels")
    )
    return found["user_ids"][rows, 0].astype(np.int64), items, classes, (rows, positions)


def scores_apart(
    evaluation: Evaluation,
    predictions: ScoringPredictions,
    metrics: Callable[[ScoringPredictions], dict[str, float]],
) -> dict[str, float]:
    """`metrics_apart` of candidates; of a kind that has one label alone there are none."""

    def of_some(rows: np.ndarray) -> dict[str, float]:
        fields = dataclasses.fields(predictions)
        some = ScoringPredictions(*(getattr(predictions, field.name)[rows] for field in fields))
        return metrics(some) if len(np.unique(some.labels)) > 1 else {}

    return metrics_apart(evaluation, predictions.users, predictions.items, of_some)


def scoring_metrics(predictions: ScoringPredictions) -> dict[str, float]:
    """`auc`, `user_averaged_auc`, `log_loss`, `calibration_error`, `num_examples`, `num_users`.

    `num_users` is how many users have both labels. Where nobody has (one row per user, as in
    leave-one-out splits), there is no `user_averaged_auc`. Where all rows have one label, as a few
    rows of rare conversions may, there is no `auc`, which is logged.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    metrics, num_users = classification.ordering_metrics(
        predictions.users, labels, predictions.scores
    )
    if not metrics:
        log.warning("no AUC: all %d labels are %d; validate on more rows", len(labels), labels[0])
    metrics |= classification.probability_metrics(labels, probabilities)
    return metrics | {"num_examples": float(len(labels)), "num_users": float(num_users)}


def mean_baselines(evaluation: Evaluation) -> MeanBaselines:
    """Fitted to the training part, popularity without sampled negatives.

    A user's own likes are also those that the rows' histories may hold and nothing is trained on,
    such as validation events: who asks brings them along.

    Raises:
      DataError: the view 'groups' is not prepared.
    """

    def fit() -> MeanBaselines:
        train, prepared = evaluation.data.interactions("train"), evaluation.data.prepared()
        num_users, catalogue = prepared.manifest.counts["users"], prepared.catalogue()
        sizes = num_users, len(catalogue.items)
        fitted = MeanBaselines.fit(train.users, train.items, train.labels, *sizes)
        user_means = fitted.user_means
        label = DatasetSpec.from_dict(prepared.dataset_spec).label
        if label.at_least is not None:
            users, items, values = (of.to_numpy() for of in prepared.known_events().columns)
            labels = label.labels(values)
            visible = prepared.manifest.visible.get(evaluation.data.part, ())
            if "validation" in visible and evaluation.data.part != "validation":
                further = evaluation.data.interactions("validation")
                users = np.concatenate([users, further.users])
                items = np.concatenate([items, further.items])
                labels = np.concatenate([labels, further.labels])
            user_means = MeanBaselines.fit(users, items, labels, *sizes).user_means
        return dataclasses.replace(
            fitted,
            item_counts=catalogue.train_counts,
            user_means=user_means,
            own_counts=own_counts(evaluation),
        )

    return evaluation.once("baselines", fit)
