"""Answers with the best ranking that there is: what two towers and others find, in one order.

`engine.index.reranking` has the sources and the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import numpy as np

from m6rec_jax.engine.index.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.answering import Accepted, Answerer
from m6rec_jax.jobs.index_search import IndexAnswerer, RetrievalTask, Retrieved
from m6rec_jax.jobs.job import register
from m6rec_jax.jobs.parts import Parts
from m6rec_jax.jobs.retrieval import RetrievalJob


@register
class RerankingJob(RetrievalJob):
    """Asked of tasks of retrieval; no task is for it."""

    kind = "reranking"
    tasks: ClassVar[tuple[tuple[str, str, str], ...]] = ()

    def answerer(self, parts: Parts) -> Answerer[Any]:
        return RerankingAnswers(parts)

    @property
    def asked_of(self) -> tuple[str, ...]:
        return ("retrieval",)


class _RerankingTask(NamedTuple):
    found: RetrievalTask
    reranker: Reranker
    # Index of each item of the index among the reranker's texts, and the other way, `NO_ITEM` where
    # the index lacks it; of each id.
    of_found: np.ndarray
    in_index: np.ndarray
    index_of: Mapping[str, int]
    ids: Sequence[str]


@gin.configurable(allowlist=["k", "max_k", "depth", "exclude_seen"])
class RerankingAnswers(IndexAnswerer[_RerankingTask]):
    """Items of an index in the order of `Reranker`: the best ranking that there is.

    Args:
      parts: see `Answerer`.
      k: how many items, for requests that do not say.
      max_k: the most a request may ask for, at most `depth`.
      depth: how many items each of the towers, co-occurrence, words and the past find.
      exclude_seen: leave out the items of a request's behaviours, beside those of its `exclude`;
        None: where the data set's repeats do not count.

    Raises:
      ConfigError: k, max_k and depth do not ascend.
    """

    def __init__(
        self,
        parts: Parts,
        k: int = 10,
        max_k: int = 100,
        depth: int = 100,
        exclude_seen: bool | None = None,
    ) -> None:
        super().__init__(parts, k, max_k, depth, exclude_seen)

    def open_task(self, task: str) -> _RerankingTask:
        parts = self.parts
        parts.retriever().check_task(task)
        data = parts.data(task)
        retrieval = RetrievalTask(parts.renderer(task), parts.index(task), data.items)
        catalogue, co_occurrence, ease = data.counted
        known = {item.id: index for index, item in enumerate(catalogue.items)}
        # Items that are newer than the prepared data co-occur with nothing, and stand at the end.
        new = [id_ for id_ in retrieval.index.ids if id_ not in known]
        if unknown := [id_ for id_ in new if id_ not in data.items]:
            raise DataError(
                f"the index of '{task}' has items that the catalogue lacks, {unknown[0]!r} "
                "first: give the catalogue that it was built from (ITEMS)"
            )
        index_of = known | {id_: len(known) + index for index, id_ in enumerate(new)}
        texts = [*catalogue.texts, *(data.template.item(data.items[id_]) for id_ in new)]
        of_found = np.array([index_of[id_] for id_ in retrieval.index.ids])
        in_index = np.full(len(texts), NO_ITEM)
        in_index[of_found] = np.arange(len(of_found))
        reranker = Reranker(
            co_occurrence,
            ease,
            texts,
            catalogue.train_counts,
            parts.settings(task).ranking,
            depth=self._depth,
            offered=in_index != NO_ITEM,
            kinds=catalogue.kinds,
        )
        return _RerankingTask(retrieval, reranker, of_found, in_index, index_of, list(index_of))

    def retrieval(self, task: str) -> RetrievalTask:
        return self.of_task(task).found

    def results(
        self, task: str, accepted: Sequence[Accepted], users: np.ndarray, found: TopK
    ) -> list[Retrieved]:
        state, requests = self.of_task(task), [one.request for one in accepted]
        best = state.reranker.rerank(
            [self._indices(state, [item.id for _, item in one.history]) for one in requests],
            [self._indices(state, ids) for ids in self.excluded(accepted)],
            TopK(np.where(found.ids >= 0, state.of_found[found.ids], found.ids), found.scores),
            lambda ids: state.found.index.similarities(
                users, np.where(ids >= 0, state.in_index[ids], ids)
            ),
        )
        results = []
        for request, items, scores in zip(requests, best.ids, best.scores, strict=True):
            names = [state.ids[item] for item in items[items >= 0]]
            k = request.k or self.default_k
            results.append(self.listed(task, names, scores, k, state.found.catalogue))
        return results

    def describe(self, task: str) -> Mapping[str, Any]:
        return {**super().describe(task), "reranker": self.of_task(task).reranker.describe()}

    @staticmethod
    def _indices(state: _RerankingTask, ids: Iterable[str]) -> list[int]:
        return [state.index_of[id_] for id_ in ids if id_ in state.index_of]
