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
    wanted = np.asarray(targets)
    columns = wanted.reshape(len(wanted), -1)
    match = columns[:, :, None] == np.asarray(top_ids)[:, None]
    if not match.size:
        return np.where(wanted < 0, NO_TARGET, NOT_RANKED)
    ranks = np.where(match.any(axis=2), match.argmax(axis=2) + 1, NOT_RANKED)
    return np.where(columns < 0, NO_TARGET, ranks).reshape(wanted.shape)


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
    s, wanted = np.asarray(scores, np.float64), np.asarray(targets)
    if np.isnan(s).any():  # nothing is above such a one: it would be the best
        raise DataError(f"ranks: {int(np.isnan(s).sum())} scores are NaN")
    hidden = np.zeros(s.shape, bool) if excluded is None else np.asarray(excluded, bool)
    columns = wanted.reshape(len(wanted), -1)
    ranks = np.full(columns.shape, NO_TARGET, np.int64)
    rows, items = np.arange(len(s)), np.arange(s.shape[1])
    for column, item in enumerate(np.maximum(columns, 0).T):  # `[n, items]` bounds the memory
        score = s[rows, item][:, None]
        above = (s > score) | ((s == score) & (items < item[:, None]))
        rank = 1 + (above & ~hidden).sum(axis=1)
        ranks[:, column] = np.where(hidden[rows, item], NOT_RANKED, rank)
    return np.where(columns < 0, NO_TARGET, ranks).reshape(wanted.shape)


def _rows(ranks: npt.ArrayLike) -> Ranks:
    """Ranks as `[n, m]`, checked."""
    array = np.asarray(ranks, np.int64)
    array = array.reshape(len(array), -1) if array.size else array.reshape(0, 1)
    empty = (array == NO_TARGET).all(axis=1)
    if not len(array) or empty.any():
        raise DataError(
            f"ranking metrics: {empty.sum()} of {len(array)} rows have no wanted item; is the "
            "split empty?"
        )
    return array


def hit_rate(ranks: npt.ArrayLike, k: int) -> float:
    """HR@k: share of rows with at least one wanted item among the first k."""
    rows = _rows(ranks)
    return float(((rows != NO_TARGET) & (rows <= k)).any(axis=1).mean())


def chance_hit_rate(num_ranked: npt.ArrayLike, num_wanted: npt.ArrayLike, k: int) -> float:
    """HR@k that a random order is expected to have.

    Args:
      num_ranked: `[rows]`, how many items are ranked, the wanted ones among them.
      num_wanted: `[rows]`, how many are wanted.
      k: the cut-off.
    """
    # None of them is among the first k: each of the k places goes to another item.
    left = np.asarray(num_ranked, np.int64)[:, None] - np.arange(k)
    others = np.maximum(left - np.asarray(num_wanted, np.int64)[:, None], 0)
    missed = np.where(left > 0, others / np.maximum(left, 1), 1.0).prod(axis=1)
    return float((1 - missed).mean())


def ndcg(ranks: npt.ArrayLike, k: int) -> float:
    """NDCG@k with binary gains 1 / log2(1 + rank), divided by the best the row could reach."""
    rows = _rows(ranks)
    hits = (rows != NO_TARGET) & (rows <= k)
    gains = np.where(hits, 1.0 / np.log2(1.0 + np.maximum(rows, 1.0)), 0.0)
    best = np.cumsum(1.0 / np.log2(2.0 + np.arange(k)))
    wanted = np.minimum((rows != NO_TARGET).sum(axis=1), k)
    return float((gains.sum(axis=1) / best[wanted - 1]).mean())


def reciprocal_ranks(ranks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 / (best rank of the row), 0 when nothing is found, `[n]`."""
    rows = _rows(ranks)
    ranked = (rows != NO_TARGET) & (rows != NOT_RANKED)
    return np.where(ranked, 1.0 / np.maximum(rows, 1.0), 0.0).max(axis=1)


def coverage(top_ids: npt.ArrayLike, num_items: int) -> float:
    """Share of the catalogue's `num_items` in `top_ids` `[n, k]`; negative ids are ignored."""
    ids = np.asarray(top_ids)
    return float(np.unique(ids[ids >= 0]).size / num_items)


def ranking_metrics(ranks: npt.ArrayLike, ks: tuple[int, ...] = (1, 5, 10, 50)) -> dict[str, float]:
    """`hit_rate@k`, `ndcg@k` for every k, and `mrr`, the mean of `reciprocal_ranks`."""
    values: dict[str, float] = {}
    for k in ks:
        values |= {f"hit_rate@{k}": hit_rate(ranks, k), f"ndcg@{k}": ndcg(ranks, k)}
    return values | {"mrr": float(reciprocal_ranks(ranks).mean())}
