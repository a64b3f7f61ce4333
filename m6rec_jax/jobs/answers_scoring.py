"""Requests answered with probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import numpy as np

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


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities of a request's candidates, in their order.

    Attributes:
      candidates: of the request.
      probabilities: float32 `[candidates]`.
    """

    column_types: ClassVar[Mapping[str, str]] = {"probabilities": "float"}
    candidates: Sequence[Item]
    probabilities: np.ndarray

    @property
    def items(self) -> list[ScoredItem]:
        """Candidates with their probabilities."""
        pairs = zip(self.candidates, self.probabilities.tolist(), strict=True)
        return [ScoredItem(item.id, title_of(item), score) for item, score in pairs]

    def columns(self) -> Mapping[str, Any]:
        """See `Result`."""
        return {"probabilities": self.probabilities}


@gin.configurable(allowlist=["candidates_field"])
class ScoringAnswers(Answerer[RequestRenderer]):
    """The probability of each candidate; one batch may mix tasks.

    Args:
      parts: see `Answerer`.
      candidates_field: where a request has its candidates. 'item_ids' scores what retrieval found.
    """

    result = Scores

    def __init__(self, parts: Parts, candidates_field: str = "candidates") -> None:
        super().__init__(parts)
        self._field = candidates_field

    def open_task(self, task: str) -> RequestRenderer:
        """See `Answerer`."""
        self.parts.scorer().check_task(task)
        return self.parts.renderer(task)

    def fields(self, task: str) -> RequestFields:
        """See `Answerer`."""
        del task
        return RequestFields(candidates=self._field)

    def accept(self, request: Request, task: str) -> RequestText:
        """See `Answerer`."""
        text = self.of_task(task).render(request)
        vocabulary = self.parts.model.vocabulary
        for index, candidate in enumerate(text.candidates):
            if not len(vocabulary.encode_array(candidate)):
                raise RejectedRow(
                    "no_text", f"'{self._field}[{index}]' has no text to score: {candidate!r}"
                )
        return text

    def answer(self, accepted: Sequence[Accepted]) -> list[Scores]:
        """See `Answerer`."""
        found = self.parts.scorer().score_requests(
            [one.text.history for one in accepted],
            [one.text.candidates for one in accepted],
            [one.task for one in accepted],
        )
        check_finite(accepted, found)
        return [
            Scores(one.request.candidates, values)
            for one, values in zip(accepted, found, strict=True)
        ]

    def describe(self, task: str) -> Mapping[str, Any]:
        """See `Answerer`."""
        del task
        return {"candidates_field": self._field}

    def warm_up(self, tasks: Iterable[str]) -> None:
        """See `Answerer`."""
        if list(tasks):
            self.parts.scorer().warm_up()
