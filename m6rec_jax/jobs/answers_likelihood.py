"""Requests answered by how plausible a sentence about each candidate is: zero-shot scoring.

LikelihoodScorer.sentence = '{item}. liked.'       # in gin, as likelihood_rows in evaluation
LikelihoodScorer.counted = ('after',)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import numpy as np

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
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow, Request
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate


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
        """See `Result`."""
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
        """See `Answerer`."""
        as_item = self.parts.likelihood_scorer().sentence.as_item
        renderer = self.parts.renderer(task, candidates=not as_item, any_data_set=True)
        return _LikelihoodTask(renderer, self.parts.data(task, any_data_set=True).template)

    def fields(self, task: str) -> RequestFields:
        """See `Answerer`."""
        del task
        return RequestFields(candidates=self._field)

    def accept(self, request: Request, task: str) -> RequestText:
        """See `Answerer`."""
        own, scorer = self.of_task(task), self.parts.likelihood_scorer()
        text = own.renderer.render(request)
        if scorer.sentence.as_item:
            try:
                texts = [own.template.item(candidate) for candidate in request.candidates]
            except DataError as error:
                raise RejectedRow("no_text", str(error)) from None
            text = text._replace(candidates=texts)
        for index, candidate in enumerate(text.candidates):
            try:
                scorer.check(candidate, task)
            except DataError as error:
                path = f"{self._field}[{index}]"
                raise RejectedRow("no_text", f"{path!r} cannot be scored: {error}") from None
        return text

    def answer(self, accepted: Sequence[Accepted]) -> list[Likelihoods]:
        """See `Answerer`."""
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
        """See `Answerer`."""
        del task
        sentence = self.parts.likelihood_scorer().sentence
        return {
            "candidates_field": self._field,
            "sentence": sentence.render("{item}" if sentence.as_item else "{candidate}"),
            "counted": sorted(sentence.counted),
        }

    def warm_up(self, tasks: Iterable[str]) -> None:
        """See `Answerer`."""
        if list(tasks):
            self.parts.likelihood_scorer().warm_up()
