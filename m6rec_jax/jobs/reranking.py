"""Answers with the best ranking that there is: what two towers and others find, in one order.

`engine.index.reranking` has the sources and the order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import gin
import numpy as np

from m6rec_jax.engine.index.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.jobs.answering import Handler
from m6rec_jax.jobs.job import register
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.jobs.retrieval import IndexHandler, RetrievalJob
from m6rec_jax.requests.request import Request


@register
class RerankingJob(RetrievalJob):
    """Asked of tasks of retrieval; no task is for it."""

    kind = "reranking"
    tasks: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    asked_of = ("retrieval",)

    def handler(self, resources: Resources, task: str) -> Handler:
        return RerankingAnswers(resources, task)


@gin.configurable(allowlist=["k", "max_k", "depth", "exclude_seen"])
class RerankingAnswers(IndexHandler):
    """Items of an index in the order of `Reranker`; arguments and errors as `IndexHandler`.

    Each of the towers, co-occurrence, EASE, words and the past find `depth` items.
    """

    job = "reranking"

    def __init__(self, resources: Resources, task: str, **options: Any) -> None:
        super().__init__(resources, task, **options)
        data, index = self.data, self._index
        catalogue, co_occurrence, ease = data.counted
        place_of = {item.id: place for place, item in enumerate(catalogue.items)}
        # Items that are newer than the prepared data co-occur with nothing, and stand at the end.
        new = [id_ for id_ in index.ids if id_ not in place_of]
        place_of |= {id_: len(place_of) + number for number, id_ in enumerate(new)}
        # The reranker's items, and the place of each; of items of the index, and the other way.
        self._ids, self._place_of = list(place_of), place_of
        self._of_found = np.array([place_of[id_] for id_ in index.ids])
        self._in_index = np.full(len(place_of), NO_ITEM)
        self._in_index[self._of_found] = np.arange(len(self._of_found))
        self._reranker = Reranker(
            co_occurrence,
            ease,
            [*catalogue.texts, *(data.template.item(data.items[id_]) for id_ in new)],
            catalogue.train_counts,
            resources.settings(task).ranking,
            depth=self._depth,
            offered=self._in_index != NO_ITEM,
            kinds=catalogue.kinds,
        )

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), "reranker": dataclasses.asdict(self._reranker.weights)}

    def _ordered(
        self,
        requests: Sequence[Request],
        excluded: Sequence[Sequence[str]],
        users: np.ndarray,
        hits: TopK,
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        best = self._reranker.rerank(
            [self._places(item.id for _, item in one.history) for one in requests],
            [self._places(ids) for ids in excluded],
            TopK(np.where(hits.ids >= 0, self._of_found[hits.ids], hits.ids), hits.scores),
            lambda items: self._index.search.similarities(
                users, np.where(items >= 0, self._in_index[items], items)
            ),
        )
        for items, scores in zip(best.ids, best.scores, strict=True):
            yield [self._ids[item] for item in items[items >= 0]], scores

    def _places(self, ids: Iterable[str]) -> list[int]:
        return [self._place_of[id_] for id_ in ids if id_ in self._place_of]
