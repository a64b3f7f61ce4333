"""Metrics of ranked lists: hit rate, NDCG, MRR, catalogue coverage.

Everything starts from the *ranks* of the wanted items: 1 is the top of the list. `ranks` is `[n]`
(one wanted item per user) or `[n, m]` (up to `m`; `NO_TARGET` fills short rows). A wanted item that
is not on the list has rank `NOT_RANKED`. `target_ranks` makes ranks from top-k ids,
`ranks_by_score` from scores. Metrics raise DataError for no rows or a row without a wanted item.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m6rec_jax.errors import DataError

Ranks = npt.NDArray[np.int64]

NO_TARGET = 0
NOT_RANKED = int(np.iinfo(np.int64).max)


def target_ranks(top_ids: npt.ArrayLike, targets: npt.ArrayLike) -> Ranks:
    """Ranks of the wanted items in lists of recommended ids.

    Args:
      top_ids: `[n, k]`, best first. Negative ids mean "no recommendation" and match nothing.
      targets: `[n]` or `[n, m]`; negative ids are padding.

    Returns:
      Ranks shaped like `targets`: 1 to k, `NOT_RANKED`, or `NO_TARGET` for padding.
    """
    top = np.asarray(top_ids)
    wanted = np.asarray(targets)
    columns = wanted[:, None] if wanted.ndim == 1 else wanted
    ranks = np.full(columns.shape, NOT_RANKED, dtype=np.int64)
    for m in range(columns.shape[1]):  # one [n, k] comparison at a time bounds the memory
        match = top == columns[:, m : m + 1]
        if top.shape[1]:
            ranks[:, m] = np.where(match.any(axis=1), match.argmax(axis=1) + 1, NOT_RANKED)
    ranks[columns < 0] = NO_TARGET
    return ranks.reshape(wanted.shape)


def ranks_by_score(
    scores: npt.ArrayLike, targets: npt.ArrayLike, excluded: npt.ArrayLike | None = None
) -> Ranks:
    """Ranks of the wanted items when all items are ordered by score.

    Of equal scores the smaller index comes first, so that a model that gives every item the same
    score gains nothing.

    Args:
      scores: `[n, items]`.
      targets: `[n]` or `[n, m]` item indices; negative ids are padding.
      excluded: `[n, items]` bool, items that must not be ranked (already seen). A wanted item that
        is excluded gets `NOT_RANKED`.

    Returns:
      Ranks shaped like `targets`.

    Raises:
      DataError: a score is NaN.
    """
    s = np.array(scores, dtype=np.float64)
    wanted = np.asarray(targets)
    if np.isnan(s).any():  # nothing is above such a one: it would be the best
        raise DataError(f"ranks: {int(np.isnan(s).sum())} scores are NaN")
    hidden = np.zeros(s.shape, bool) if excluded is None else np.asarray(excluded, bool)
    columns = wanted[:, None] if wanted.ndim == 1 else wanted
    ranks = np.full(columns.shape, NOT_RANKED, dtype=np.int64)
    rows = np.arange(s.shape[0])
    item = np.arange(s.shape[1])
    for m in range(columns.shape[1]):
        target = np.maximum(columns[:, m], 0)
        own = s[rows, target][:, None]
        above = (s > own) | ((s == own) & (item[None, :] < target[:, None]))
        ranks[:, m] = 1 + (above & ~hidden).sum(axis=1)
        ranks[hidden[rows, target], m] = NOT_RANKED
    ranks[columns < 0] = NO_TARGET
    return ranks.reshape(wanted.shape)


def _ranks(ranks: npt.ArrayLike, metric: str) -> Ranks:
    array = np.asarray(ranks)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise DataError(f"{metric}: ranks must be [n] or [n, m], got shape {array.shape}")
    if array.shape[0] == 0:
        raise DataError(f"{metric}: there are no users to rank for; is the split empty?")
    empty = np.flatnonzero((array == NO_TARGET).all(axis=1))
    if empty.size:
        raise DataError(
            f"{metric}: {empty.size} of {array.shape[0]} rows have no wanted item, "
            f"first at row {empty[0]}"
        )
    return array.astype(np.int64)


def _found(ranks: Ranks, k: int) -> npt.NDArray[np.bool_]:
    return (ranks != NO_TARGET) & (ranks <= k)


def hit_rate(ranks: npt.ArrayLike, k: int) -> float:
    """HR@k: share of rows with at least one wanted item among the first k."""
    return float(_found(_ranks(ranks, f"HR@{k}"), k).any(axis=1).mean())


def chance_hit_rate(num_ranked: npt.ArrayLike, num_wanted: npt.ArrayLike, k: int) -> float:
    """HR@k that a random order is expected to have.

    Args:
      num_ranked: `[rows]`, how many items are ranked, the wanted ones among them.
      num_wanted: `[rows]`, how many are wanted.
      k: the cut-off.
    """
    ranked, wanted = np.asarray(num_ranked, np.int64), np.asarray(num_wanted, np.int64)
    # None of them is among the first k: each of the k places goes to another item.
    missed = np.ones(len(ranked))
    for place in range(k):
        left = ranked - place
        missed *= np.where(left > 0, np.maximum(left - wanted, 0) / np.maximum(left, 1), 1.0)
    return float((1 - missed).mean())


def ndcg(ranks: npt.ArrayLike, k: int) -> float:
    """NDCG@k with binary gains 1 / log2(1 + rank), divided by the best the row could reach."""
    array = _ranks(ranks, f"NDCG@{k}")
    gains = np.where(_found(array, k), 1.0 / np.log2(1.0 + np.maximum(array, 1.0)), 0.0)
    best = np.cumsum(1.0 / np.log2(2.0 + np.arange(k)))
    wanted = np.minimum((array != NO_TARGET).sum(axis=1), k)
    return float((gains.sum(axis=1) / best[wanted - 1]).mean())


def reciprocal_ranks(ranks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 / (best rank of the row), 0 when nothing is found, `[n]`."""
    array = _ranks(ranks, "MRR")
    found = (array != NO_TARGET) & (array != NOT_RANKED)
    return np.where(found, 1.0 / np.maximum(array, 1.0), 0.0).max(axis=1)


def mean_reciprocal_rank(ranks: npt.ArrayLike) -> float:
    """MRR: mean of `reciprocal_ranks`."""
    return float(reciprocal_ranks(ranks).mean())


def coverage(top_ids: npt.ArrayLike, num_items: int) -> float:
    """Share of the catalogue's `num_items` in `top_ids` `[n, k]`; negative ids are ignored."""
    ids = np.asarray(top_ids).ravel()
    return float(np.unique(ids[ids >= 0]).size / num_items)


def ranking_metrics(ranks: npt.ArrayLike, ks: tuple[int, ...] = (1, 5, 10, 50)) -> dict[str, float]:
    """`hit_rate@k`, `ndcg@k` for every k, and `mrr`."""
    values: dict[str, float] = {}
    for k in ks:
        values[f"hit_rate@{k}"] = hit_rate(ranks, k)
        values[f"ndcg@{k}"] = ndcg(ranks, k)
    values["mrr"] = mean_reciprocal_rank(ranks)
    return values
