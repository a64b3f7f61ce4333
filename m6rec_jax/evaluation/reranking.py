"""Evaluation of the hybrid retriever: what two towers found, reranked with what else was found.

In gin, with MODEL_DIR the retriever's:

    Evaluator.reranking = @Reranking()

Its weights are those that `m6rec calibrate` left in MODEL_DIR.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import gin
import numpy as np

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.engine.index.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.index.ranking_weights import RankingWeights, fit_choices
from m6rec_jax.engine.index.reranking import Reranker, Similarities
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.jobs.retrieval import Retrieval, RetrievalPredictions

# Rows that are reranked together.
_BLOCK = 256
# Share of the items whose events are masked where the weights of new ones are learnt.
_MASKED = 0.2
# Of `Reranker.candidates`.
Arguments = tuple[Sequence[np.ndarray], Sequence[np.ndarray], TopK, Similarities]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Reranking:
    """Reranks what a retrieval task's model found, and what the other sources find beside it.

    Co-occurrence is counted after the last training event, as `prepare` leaves it: what a served
    model knows, and what towers and models of ids are trained on. In training it was counted at
    each row's time.

    Attributes:
      depth: how many items each of the towers, co-occurrence, EASE, words and the user's past
        find, the towers as many as lists are long where that is more; all others follow in the
        towers' order.
      towers: whether the two towers take part. Without them, in `m6rec calibrate` and in `m6rec
        eval`, the rest tells what they add; such weights have a name of their own, and are not
        served.
    """

    depth: int = 100
    towers: bool = True


def ranking_name(task: str, name: str, towers: bool) -> str:
    """What the weights for a `Retrieval.name` are called in `ranking.json`."""
    return "/".join(filter(None, (task, name, "" if towers else "without_towers")))


def without_towers(found: Retrieval) -> Retrieval:
    """The same rows, in which the towers found nothing."""
    towers = found.predictions
    nothing = dataclasses.replace(
        towers,
        top_items=np.full_like(towers.top_items, NO_ITEM),
        ranks=np.where(towers.ranks > 0, towers.num_ranked[:, None], 0),  # behind all candidates
    )
    return found._replace(
        predictions=nothing, similarities=lambda rows, ids: np.zeros(ids.shape, np.float32)
    )


def _blocks(found: Retrieval) -> Iterator[tuple[slice, Arguments]]:
    """Rows, and arguments of `Reranker.candidates` for them, block by block."""
    predictions, past = found.predictions, found.past()
    starts = range(0, len(predictions.users), _BLOCK)
    for start in progress_bar(starts, desc="reranking", unit=" blocks", delay=1.0, leave=False):
        rows = slice(start, start + _BLOCK)
        top = TopK(predictions.top_items[rows], predictions.scores[rows])
        similarities = functools.partial(found.similarities, rows)
        yield rows, (past[rows], found.excluded[rows], top, similarities)


def reranker_of(prepared: Prepared, depth: int) -> Reranker:
    """What orders items of prepared data; raises DataError where they have no co-occurrence."""
    catalogue = prepared.catalogue()
    return Reranker(
        prepared.co_occurrence(),
        prepared.ease(),
        catalogue.texts,
        catalogue.train_counts,
        depth=depth,
        kinds=catalogue.kinds,
    )


def reranked(
    reranker: Reranker, found: Retrieval, weights: RankingWeights | None
) -> RetrievalPredictions:
    """The predictions in the reranker's order; weights: None: those of `UNLEARNT`."""
    predictions = found.predictions
    ranks, ids, scores = [], [], []
    for rows, arguments in _blocks(found):
        best = reranker.rerank(*arguments, weights)
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


def learnt_weights(reranker: Reranker, found: Retrieval) -> tuple[RankingWeights, int]:
    """Weights under which the wanted items are likeliest, and how many rows have one among the
    candidates.

    Each row is read twice: as it is, and with the events of a fifth of the items masked, drawn at
    random once, from which the weights of items that nobody has acted on are learnt.

    Raises:
      DataError: no wanted item is among the candidates.
    """
    masked = np.random.default_rng(0).random(len(reranker.new)) < _MASKED
    features, rows, wanted, number, num_rows = [], [], [], 0, 0
    for block, arguments in _blocks(found):
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
    return RankingWeights.of_vector(vector), num_rows
