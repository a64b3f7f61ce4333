"""Evaluation of the hybrid retriever: what two towers found, reranked with what else was found.

In gin, with MODEL_DIR the retriever's:

    Evaluator.reranking = @Reranking()

Its weights are those that `m6rec calibrate` left in MODEL_DIR.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gin
import numpy as np

from m6rec_jax.engine.index.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.index.ranking_weights import UNLEARNT, RankingWeights, fit_choices
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.jobs.job import TaskData
from m6rec_jax.jobs.retrieval import ReadRows, RetrievalPredictions

# Rows that are reranked together.
_BLOCK = 256
# Share of the items whose events are masked where the weights of new ones are learnt.
_MASKED = 0.2


class Retrieval(NamedTuple):
    """What a retriever found for rows of a task.

    Attributes:
      data: of the task.
      predictions: of its rows.
      read: what stands in these rows, in their order.
      similarities: of some rows, a slice, and items `[rows, k]`.
      name: of what is wanted, where a task wants several things.
    """

    data: TaskData
    predictions: RetrievalPredictions
    read: ReadRows
    similarities: Callable[[slice, np.ndarray], np.ndarray]
    name: str = ""


class Learnt(NamedTuple):
    """What was learnt from what was found.

    Attributes:
      weights: that were learnt.
      num_rows: rows whose wanted item was among the candidates.
      ranks: by these weights, as `RetrievalPredictions.ranks`.
      ranks_before: the retriever's, likewise.
    """

    weights: RankingWeights
    num_rows: int
    ranks: np.ndarray
    ranks_before: np.ndarray


def ranking_name(task: str, name: str, towers: bool) -> str:
    """What the weights for a `Retrieval.name` are called in `ranking.json`."""
    return "/".join(filter(None, (task, name, "" if towers else "without_towers")))


@gin.configurable
class Reranking:
    """Reranks what a retrieval task's model found, and what the other sources find beside it.

    Co-occurrence is counted after the last training event, as `prepare` leaves it: what a served
    model knows, and what towers and models of ids are trained on. In training it was counted at
    each row's time.

    Args:
      depth: how many items each of the towers, co-occurrence, EASE, words and the user's past
        find, the towers as many as lists are long where that is more; all others follow in the
        towers' order.
      towers: whether the two towers take part. Without them, in `m6rec calibrate` and in `m6rec
        eval`, the rest tells what they add; such weights have a name of their own, and are not
        served.

    Attributes:
      learnt: None, or what `learning` has learnt: by `Retrieval.name` and by whether the towers
        took part.
    """

    def __init__(self, depth: int = 100, towers: bool = True) -> None:
        self.depth, self.towers = depth, towers
        self._rerankers: dict[str, Reranker] = {}
        self.learnt: dict[tuple[str, bool], Learnt] | None = None

    def learning(self) -> Reranking:
        """The same, which learns its weights from what was found, and uses them.

        Each row is read twice: as it is, and with the events of a fifth of the items masked, drawn
        at random once, from which the weights of items that nobody has acted on are learnt. Where
        the towers take part, weights without them are learnt, too: what the model adds is the
        difference.
        """
        other = copy.copy(self)
        other.learnt = {}
        return other

    def without_towers(self) -> Reranking:
        """The same, in which the towers take no part."""
        other = copy.copy(self)
        other.towers = False
        return other

    def __call__(self, found: Retrieval, weights: RankingWeights | None) -> RetrievalPredictions:
        """The predictions in the reranker's order.

        Args:
          found: by the retriever.
          weights: of `m6rec calibrate`; None: nothing was learnt.

        Raises:
          DataError: the data have no co-occurrence.
        """
        if self.learnt is None:
            return self._reranked(found, weights)
        if self.towers:
            self.without_towers()._learn(found)
        return self._learn(found)

    def _reranked(self, found: Retrieval, weights: RankingWeights | None) -> RetrievalPredictions:
        reranker = self._reranker(found)
        reranker.weights = weights or UNLEARNT
        found = self._part(found)
        predictions = found.predictions
        ranks, ids, scores = [], [], []
        for rows, arguments in self._blocks(found):
            best = reranker.rerank(*arguments)
            targets, before = predictions.targets[rows], predictions.ranks[rows]
            there = targets != NO_ITEM
            same = (targets[:, :, None] == best.ids[:, None]) & there[:, :, None]
            # One that is no candidate is behind those that the towers would have put behind it.
            own = found.similarities(rows, targets)[:, :, None]
            others = found.similarities(rows, best.ids)[:, None]
            behind = (others < own) | ((others == own) & (best.ids[:, None] > targets[:, :, None]))
            behind &= (best.ids != NO_ITEM)[:, None]
            place = np.where(same.any(axis=2), same.argmax(axis=2) + 1, before + behind.sum(axis=2))
            place = np.minimum(place, predictions.num_ranked[rows][:, None])
            ranks.append(np.where(there, place, before))
            length = predictions.top_items.shape[1]
            ids.append(best.ids[:, :length])
            scores.append(best.scores[:, :length])
        return dataclasses.replace(
            predictions,
            ranks=np.concatenate(ranks),
            top_items=np.concatenate(ids),
            scores=np.concatenate(scores),
        )

    def _blocks(self, found: Retrieval) -> Iterator[tuple[slice, tuple[Any, ...]]]:
        """Rows, and arguments of `Reranker.candidates` for them, block by block."""
        found = self._part(found)
        predictions, read = found.predictions, found.read
        starts = range(0, len(predictions.users), _BLOCK)
        for start in progress_bar(starts, desc="reranking", unit=" blocks", delay=1.0, leave=False):
            rows = slice(start, start + _BLOCK)
            top = TopK(predictions.top_items[rows], predictions.scores[rows])
            similarities = functools.partial(found.similarities, rows)
            yield rows, (read.past[rows], read.excluded[rows], top, similarities)

    def _part(self, found: Retrieval) -> Retrieval:
        """What takes part of what was found: with or without the towers."""
        if self.towers:
            return found
        own = found.predictions
        nothing = dataclasses.replace(
            own,
            top_items=np.full_like(own.top_items, NO_ITEM),
            ranks=np.where(own.ranks > 0, own.num_ranked[:, None], 0),  # behind all candidates
        )
        return found._replace(
            predictions=nothing, similarities=lambda rows, ids: np.zeros(ids.shape, np.float32)
        )

    def _reranker(self, found: Retrieval) -> Reranker:
        """Of the task's data; made once."""
        data = found.data
        if data.name not in self._rerankers:
            catalogue = data.prepared().catalogue()
            self._rerankers[data.name] = Reranker(
                data.prepared().co_occurrence(),
                data.prepared().ease(),
                catalogue.texts,
                catalogue.train_counts,
                depth=self.depth,
                kinds=catalogue.kinds,
            )
        return self._rerankers[data.name]

    def _learn(self, found: Retrieval) -> RetrievalPredictions:
        """Learns weights, keeps them in `learnt`, and reranks by them."""
        reranker = self._reranker(found)
        masked = np.random.default_rng(0).random(len(reranker.new)) < _MASKED
        features, rows, wanted, number, num_rows = [], [], [], 0, 0
        for block, arguments in self._blocks(found):
            targets = found.predictions.targets[block]
            for mask in (None, masked):
                candidates = reranker.candidates(*arguments, masked=mask)
                there = candidates.ids != NO_ITEM
                same = (candidates.ids[:, None] == targets[:, :, None]).any(axis=1) & there
                features.append(candidates.features[there])
                rows.append(number + np.nonzero(there)[0])
                wanted.append(same[there])
                number += len(candidates.ids)
                num_rows += int(same.any(axis=1).sum()) if mask is None else 0
        vector = fit_choices(*map(np.concatenate, (features, rows, wanted)))
        weights = RankingWeights.of_vector(vector)
        predictions = self._reranked(found, weights)
        learnt = Learnt(weights, num_rows, predictions.ranks, found.predictions.ranks)
        assert self.learnt is not None
        self.learnt[found.name, self.towers] = learnt
        return predictions
