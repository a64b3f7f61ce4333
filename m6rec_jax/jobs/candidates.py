"""A number for each candidate of a request: what scoring and likelihood have in common."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from m6rec_jax.engine.candidates.scorer import CandidateScorer
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.answering import Answerer, RequestFields, ScoredItem, title_of
from m6rec_jax.jobs.parts import Parts
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow, Request
from m6rec_jax.text.records import Item


@dataclasses.dataclass(frozen=True, slots=True)
class CandidateScores:
    """Scores of a request's candidates, in their order.

    Attributes:
      candidates: of the request.
      scores: what they are shown with, float `[candidates]`.
      values: what `columns` gives, by column.
    """

    candidates: Sequence[Item]
    scores: np.ndarray
    values: Mapping[str, Any]

    @property
    def items(self) -> list[ScoredItem]:
        """Candidates with their scores."""
        pairs = zip(self.candidates, self.scores.tolist(), strict=True)
        return [ScoredItem(item.id, title_of(item), score) for item, score in pairs]

    def columns(self) -> Mapping[str, Any]:
        return self.values


class CandidateAnswerer(Answerer[RequestRenderer]):
    """Scores the candidates of requests; subclasses say what that means.

    Args:
      parts: see `Answerer`.
      candidates_field: where a request has its candidates.
    """

    def __init__(self, parts: Parts, candidates_field: str = "candidates") -> None:
        super().__init__(parts)
        self._field = candidates_field

    @abc.abstractmethod
    def scorer(self, task: str) -> CandidateScorer:
        """What scores the candidates of a task's requests."""

    def fields(self, task: str) -> RequestFields:
        del task
        return RequestFields(candidates=self._field)

    def accept(self, request: Request, task: str) -> RequestText:
        text = self.of_task(task).render(request)
        self.check_candidates(text.candidates, task)
        return text

    def candidate_texts(self, request: Request, task: str) -> list[str]:
        """The texts of a request's candidates alone; raises as `accept`."""
        return self.of_task(task).candidates(request)

    def check_candidates(self, texts: Sequence[str], task: str) -> None:
        """Raises RejectedRow where a candidate's text cannot be scored."""
        scorer = self.scorer(task)
        for index, candidate in enumerate(texts):
            try:
                scorer.check(candidate, task)
            except DataError as error:
                path = f"{self._field}[{index}]"
                raise RejectedRow("no_text", f"{path!r} cannot be scored: {error}") from None

    def describe(self, task: str) -> Mapping[str, Any]:
        del task
        return {"candidates_field": self._field}

    def warm_up(self, tasks: Iterable[str]) -> None:
        for task in tasks:
            scorer = self.scorer(task)
            self.parts.warm_once(scorer.program_name, scorer.warm_up)
