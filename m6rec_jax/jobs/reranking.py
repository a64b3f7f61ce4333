"""Reranking: scoring of candidates that stand near the last items of a history.

Its rows name that co-occurrence in words; `engine.index.reranking` orders what was found by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gin
import numpy as np

from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.index.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import Accepted, Answerer
from m6rec_jax.jobs.index_search import IndexAnswerer, RetrievalTask, Retrieved
from m6rec_jax.jobs.job import register
from m6rec_jax.jobs.parts import Parts
from m6rec_jax.jobs.scoring import ScoringJob


@register
class RerankingJob(ScoringJob):
    """The probability that a candidate comes next; everything else as scoring."""

    kind = "reranking"
    tasks = (("reranking", "reranking", "scoring_rows"),)

    def answerer(self, parts: Parts) -> Answerer[Any]:
        return RerankingAnswers(parts)

    @property
    def asked_of(self) -> tuple[str, ...]:
        return ("retrieval", "reranking")


class _RerankingTask(NamedTuple):
    retrieval: str
    found: RetrievalTask
    reranker: Reranker
    scorer: str | None
    # Index of each item of the index among the reranker's texts, and the other way, `NO_ITEM` where
    # the index lacks it; of each id.
    of_found: np.ndarray
    in_index: np.ndarray
    index_of: Mapping[str, int]
    ids: Sequence[str]


@gin.configurable(allowlist=["k", "max_k", "depth", "exclude_seen"])
class RerankingAnswers(IndexAnswerer[_RerankingTask]):
    """Items of an index in the order of `Reranker`: the best ranking that there is.

    Asked of a task of retrieval; where the model has one task of reranking on the same data, its
    scores count too, unless the weights were learnt without. Asked of that task, retrieval is the
    one beside it.

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
        is_scorer = parts.settings(task).kind == "reranking"
        retrieval = parts.beside(task, "retrieval") if is_scorer else task
        scorer = task if is_scorer else parts.beside(task, "reranking")
        if retrieval is None:
            raise ConfigError(
                f"'{task}' scores what retrieval finds, and the model has not one task of "
                "retrieval on the same data: serve both from a bank (`m6rec prompts add`)"
            )
        weights = parts.settings(retrieval).ranking
        if weights is not None and not weights.with_scorer and not is_scorer:
            scorer = None
        parts.retriever().check_task(retrieval)
        data = parts.data(retrieval)
        found = RetrievalTask(parts.renderer(retrieval), parts.index(retrieval), data.items)
        catalogue, co_occurrence, ease = data.counted
        known = {item.id: index for index, item in enumerate(catalogue.items)}
        # Items that are newer than the prepared data co-occur with nothing, and stand at the end.
        new = [id_ for id_ in found.index.ids if id_ not in known]
        if unknown := [id_ for id_ in new if id_ not in data.items]:
            raise DataError(
                f"the index of '{retrieval}' has items that the catalogue lacks, {unknown[0]!r} "
                "first: give the catalogue that it was built from (ITEMS)"
            )
        index_of = known | {id_: len(known) + index for index, id_ in enumerate(new)}
        texts = [*catalogue.texts, *(data.template.item(data.items[id_]) for id_ in new)]
        of_found = np.array([index_of[id_] for id_ in found.index.ids])
        in_index = np.full(len(texts), NO_ITEM)
        in_index[of_found] = np.arange(len(of_found))
        reranker = Reranker(
            co_occurrence,
            ease,
            texts,
            catalogue.train_counts,
            None if scorer is None else parts.scorer(),
            weights,
            depth=self._depth,
            offered=in_index != NO_ITEM,
            kinds=catalogue.kinds,
        )
        return _RerankingTask(
            retrieval, found, reranker, scorer, of_found, in_index, index_of, list(index_of)
        )

    def retrieval(self, task: str) -> tuple[str, RetrievalTask]:
        own = self.of_task(task)
        return own.retrieval, own.found

    def results(
        self, task: str, accepted: Sequence[Accepted], users: np.ndarray, found: TopK
    ) -> list[Retrieved]:
        own, requests = self.of_task(task), [one.request for one in accepted]
        best = own.reranker.rerank(
            [one.text.history for one in accepted],
            [self._indices(own, [item.id for _, item in one.history]) for one in requests],
            [self._indices(own, ids) for ids in self.excluded(accepted)],
            TopK(np.where(found.ids >= 0, own.of_found[found.ids], found.ids), found.scores),
            lambda ids: own.found.index.similarities(
                users, np.where(ids >= 0, own.in_index[ids], ids)
            ),
            None if own.scorer is None else [own.scorer] * len(accepted),
        )
        results = []
        for request, items, scores in zip(requests, best.ids, best.scores, strict=True):
            names = [own.ids[item] for item in items[items >= 0]]
            k = request.k or self.default_k
            results.append(self.listed(own.retrieval, names, scores, k, own.found.catalogue))
        return results

    def describe(self, task: str) -> Mapping[str, Any]:
        own = self.of_task(task)
        return {
            **super().describe(task),
            "scorer": None if own.scorer is None else self.parts.model.fingerprint(own.scorer),
            "reranker": own.reranker.describe(),
        }

    def warm_up(self, tasks: Iterable[str]) -> None:
        tasks = list(tasks)
        super().warm_up(tasks)
        if any(self.of_task(task).scorer is not None for task in tasks):
            self.parts.warm_once(Scorer.program_name, self.parts.scorer().warm_up)

    @staticmethod
    def _indices(own: _RerankingTask, ids: Iterable[str]) -> list[int]:
        return [own.index_of[id_] for id_ in ids if id_ in own.index_of]
