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
from m6rec_jax.jobs.answering import Answerer
from m6rec_jax.jobs.job import register
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.jobs.retrieval import IndexAnswerer, RetrievalJob, SearchedTask
from m6rec_jax.requests.request import Request


@register
class RerankingJob(RetrievalJob):
    """Asked of tasks of retrieval; no task is for it."""

    kind = "reranking"
    tasks: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    asked_of = ("retrieval",)

    def answerer(self, resources: Resources) -> Answerer[Any]:
        return RerankingAnswers(resources)


@dataclasses.dataclass(frozen=True)
class _RerankedTask(SearchedTask):
    """Likewise, with what orders the items.

    Attributes:
      reranker: of the items of the prepared data, and of newer ones of the index after them.
      ids, place_of: of the reranker's items, and the place of each id.
      of_found, in_index: place of each item of the index among the reranker's, and the other way,
        `NO_ITEM` where the index lacks it.
    """

    reranker: Reranker
    ids: Sequence[str]
    place_of: Mapping[str, int]
    of_found: np.ndarray
    in_index: np.ndarray

    def ordered(
        self,
        requests: Sequence[Request],
        excluded: Sequence[Sequence[str]],
        users: np.ndarray,
        found: TopK,
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        best = self.reranker.rerank(
            [self._places(item.id for _, item in one.history) for one in requests],
            [self._places(ids) for ids in excluded],
            TopK(np.where(found.ids >= 0, self.of_found[found.ids], found.ids), found.scores),
            lambda items: self.index.search.similarities(
                users, np.where(items >= 0, self.in_index[items], items)
            ),
        )
        for items, scores in zip(best.ids, best.scores, strict=True):
            yield [self.ids[item] for item in items[items >= 0]], scores

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), "reranker": self.reranker.describe()}

    def _places(self, ids: Iterable[str]) -> list[int]:
        return [self.place_of[id_] for id_ in ids if id_ in self.place_of]


@gin.configurable(allowlist=["k", "max_k", "depth", "exclude_seen"])
class RerankingAnswers(IndexAnswerer):
    """Items of an index in the order of `Reranker`; arguments and errors as `IndexAnswerer`.

    Each of the towers, co-occurrence, EASE, words and the past find `depth` items.
    """

    def open_task(self, task: str) -> SearchedTask:
        state, data = super().open_task(task), self.resources.data(task)
        catalogue, co_occurrence, ease = data.counted
        place_of = {item.id: place for place, item in enumerate(catalogue.items)}
        # Items that are newer than the prepared data co-occur with nothing, and stand at the end.
        new = [id_ for id_ in state.index.ids if id_ not in place_of]
        place_of |= {id_: len(place_of) + number for number, id_ in enumerate(new)}
        of_found = np.array([place_of[id_] for id_ in state.index.ids])
        in_index = np.full(len(place_of), NO_ITEM)
        in_index[of_found] = np.arange(len(of_found))
        reranker = Reranker(
            co_occurrence,
            ease,
            [*catalogue.texts, *(state.text_of(data.items[id_]) for id_ in new)],
            catalogue.train_counts,
            self.resources.settings(task).ranking,
            depth=self._depth,
            offered=in_index != NO_ITEM,
            kinds=catalogue.kinds,
        )
        return _RerankedTask(
            **vars(state),
            reranker=reranker,
            ids=list(place_of),
            place_of=place_of,
            of_found=of_found,
            in_index=in_index,
        )
