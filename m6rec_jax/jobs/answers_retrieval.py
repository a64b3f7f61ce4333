"""Requests answered with the items of an index that fit best."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import numpy as np

from m6rec_jax.engine.index_files import StoredIndex
from m6rec_jax.jobs.answering import (
    Accepted,
    Answerer,
    Parts,
    ScoredItem,
    by_task,
    check_default_k,
    check_finite,
    check_k,
    excluded_ids,
    title_of,
)
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import Request
from m6rec_jax.text.records import Item


@dataclasses.dataclass(frozen=True, slots=True)
class Retrieved:
    """Items of the catalogue, best first.

    Attributes:
      item_ids: of the items.
      scores: cosine similarities, or what a reranker orders by, float32 `[items]`.
      catalogue: items by id, for their titles.
    """

    column_types: ClassVar[Mapping[str, str]] = {"item_ids": "string", "scores": "float"}
    item_ids: Sequence[str]
    scores: np.ndarray
    catalogue: Mapping[str, Item] = dataclasses.field(repr=False)

    @property
    def items(self) -> list[ScoredItem]:
        """Items with their scores."""
        known = [self.catalogue.get(id_) for id_ in self.item_ids]
        return [
            ScoredItem(id_, id_ if item is None else title_of(item), score)
            for id_, item, score in zip(self.item_ids, known, self.scores.tolist(), strict=True)
        ]

    def columns(self) -> Mapping[str, Any]:
        """See `Result`."""
        return {"item_ids": self.item_ids, "scores": self.scores}


@dataclasses.dataclass(frozen=True, slots=True)
class RetrievalTask:
    """What answering one task takes."""

    renderer: RequestRenderer
    index: StoredIndex
    catalogue: Mapping[str, Item]


@gin.configurable(allowlist=["k", "max_k", "exclude_seen"])
class RetrievalAnswers(Answerer[RetrievalTask]):
    """Ids *and* scores of the items that fit best.

    Args:
      parts: see `Answerer`.
      k: how many items, for requests that do not say.
      max_k: the most a request may ask for; as many are searched for in any case, so that all
        requests run the same program.
      exclude_seen: leave out the items of a request's behaviours, beside those of its `exclude`.

    Raises:
      ConfigError: k is not between 1 and max_k.
    """

    result = Retrieved

    def __init__(
        self, parts: Parts, k: int = 10, max_k: int = 100, exclude_seen: bool = True
    ) -> None:
        check_default_k(k, max_k, "RetrievalAnswers")
        super().__init__(parts)
        self._k, self._max_k, self._exclude_seen = k, max_k, exclude_seen

    def open_task(self, task: str) -> RetrievalTask:
        """See `Answerer`."""
        self.parts.retriever().check_task(task)
        index = self.parts.index(task)
        return RetrievalTask(self.parts.renderer(task), index, self.parts.data(task).items)

    def accept(self, request: Request, task: str) -> RequestText:
        """See `Answerer`."""
        check_k(request, self._max_k, "RetrievalAnswers.max_k")
        return self.of_task(task).renderer.render(request)

    def answer(self, accepted: Sequence[Accepted]) -> list[Retrieved]:
        """See `Answerer`."""
        users = self.parts.retriever().embed_users(
            [one.text.history for one in accepted], [one.task for one in accepted]
        )
        check_finite(accepted, users)
        results: dict[int, Retrieved] = {}
        for task, members in by_task(accepted).items():
            own = self.of_task(task)
            seen = [excluded_ids(accepted[i].request, self._exclude_seen) for i in members]
            found = own.index.top_k(users[members], self._max_k, seen, self.parts.batch_sizes)
            for i, ids, scores in zip(members, found.ids, found.scores, strict=True):
                k = accepted[i].request.k or self._k
                left = ids[:k][ids[:k] >= 0]
                results[i] = Retrieved(
                    [own.index.ids[item] for item in left], scores[: len(left)], own.catalogue
                )
        return [results[i] for i in range(len(accepted))]

    def describe(self, task: str) -> Mapping[str, Any]:
        """See `Answerer`."""
        index = self.of_task(task).index
        return {
            "index": [index.manifest.model, index.manifest.catalogue],
            "search": type(index.search).__name__,
            "k": self._k,
            "max_k": self._max_k,
            "exclude_seen": self._exclude_seen,
        }

    def warm_up(self, tasks: Iterable[str]) -> None:
        """See `Answerer`."""
        for task in tasks:
            self.parts.retriever().warm_up()
            self.of_task(task).index.warm_up(self._max_k, self.parts.batch_sizes)
