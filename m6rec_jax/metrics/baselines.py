"""What any model must beat: popularity and smoothed means, fitted to the training part.

They need no model and no text; reports and results tables show them beside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from m6rec_jax.errors import DataError
from m6rec_jax.metrics import classification, ranking

SMOOTHING = 5.0
# Those of `MeanBaselines.scoring_metrics`.
MEAN_BASELINES = ("popularity", "item_mean", "user_mean", "user_and_item_mean")


@dataclass(frozen=True, slots=True)
class UserItemCounts:
    """How often users acted on items. Make it with `fit`.

    Attributes:
      pairs: int64 `[pairs]`, `user << 32 | item`, ascending.
      counts: int64 `[pairs]`.
    """

    pairs: np.ndarray
    counts: np.ndarray

    @classmethod
    def fit(cls, users: np.ndarray, items: np.ndarray) -> UserItemCounts:
        """Counts events: their users and items, indices in both tables `[n]`."""
        return cls(*np.unique(users.astype(np.int64) << 32 | items, return_counts=True))

    def of(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Events of users with items `[n]`."""
        pairs = users.astype(np.int64) << 32 | items
        first, end = (np.searchsorted(self.pairs, pairs, side=side) for side in ("left", "right"))
        return np.where(end > first, np.append(self.counts, 0)[first], 0)

    def of_user(self, user: int) -> tuple[np.ndarray, np.ndarray]:
        """Items of a user, and how often it acted on each."""
        rows = slice(*np.searchsorted(self.pairs, [user << 32, (user + 1) << 32]).tolist())
        return self.pairs[rows] & 0xFFFFFFFF, self.counts[rows]


@dataclass(frozen=True, slots=True)
class MeanBaselines:
    """Popularity of items, and mean labels of users and items. Make it with `fit`.

    Attributes:
      global_mean: share of label 1 among all events.
      item_counts: int64 `[items]`, events of each item.
      item_means, user_means: float64 `[items]`, `[users]`, mean labels, drawn towards the global
        mean as `SMOOTHING` further events of that mean would.
      own_counts: events of each user with each item, where repeats count; None elsewhere.
    """

    global_mean: float
    item_counts: np.ndarray
    item_means: np.ndarray
    user_means: np.ndarray
    own_counts: UserItemCounts | None = None

    @classmethod
    def fit(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        labels: np.ndarray,
        num_users: int,
        num_items: int,
    ) -> MeanBaselines:
        """Counts the training part.

        Args:
          users, items: int `[n]`, indices into the users and items tables.
          labels: int `[n]`, 0 or 1.
          num_users, num_items: of the tables.

        Raises:
          DataError: no events.
        """
        if not len(labels):
            raise DataError("baselines: the training part is empty")
        mean = float(labels.mean())

        def means(indices: np.ndarray, size: int) -> np.ndarray:
            sums = np.bincount(indices, weights=labels, minlength=size)
            counts = np.bincount(indices, minlength=size)
            return (sums + SMOOTHING * mean) / (counts + SMOOTHING)

        item_counts = np.bincount(items, minlength=num_items)
        return cls(mean, item_counts, means(items, num_items), means(users, num_users))

    def scores(self, users: np.ndarray, items: np.ndarray) -> dict[str, np.ndarray]:
        """What each baseline says of users and items, `[n]` each.

        Returns:
          Of `MEAN_BASELINES` and, where repeats count, `user_item_times`: how often the user had
          the item, equal ones by popularity. All are probabilities but this one and popularity,
          how many training events an item has.
        """
        of_user, of_item = self.user_means[users], self.item_means[items]
        scores = {
            "popularity": self.item_counts[items].astype(np.float64),
            "item_mean": of_item,
            "user_mean": of_user,
            "user_and_item_mean": np.clip(of_user + of_item - self.global_mean, 0.01, 0.99),
        }
        if self.own_counts is not None:
            times = self.own_counts.of(users, items)
            scores["user_item_times"] = times + _below_one(self.item_counts)[items]
        return scores

    def scoring_metrics(
        self, users: np.ndarray, items: np.ndarray, labels: np.ndarray
    ) -> dict[str, dict[str, float]]:
        """Metrics of every baseline on other events, named as those of scoring.

        Returns:
          Of all of `scores`; what is no probability has no log loss. There is no AUC of one label.
        """
        metrics = {}
        for name, score in self.scores(users, items).items():
            metrics[name], _ = classification.ordering_metrics(users, labels, score)
            if name not in ("popularity", "user_item_times"):
                metrics[name]["log_loss"] = classification.log_loss(labels, score)
        return metrics


def _below_one(item_counts: np.ndarray) -> np.ndarray:
    """Numbers in the order of the counts, all below 1."""
    return item_counts / (1.0 + item_counts.max(initial=0))


def popularity_ranks(
    item_counts: np.ndarray,
    targets: np.ndarray,
    excluded: Sequence[np.ndarray],
    preferred: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
) -> np.ndarray:
    """Ranks of wanted items when items are ordered by popularity, seen ones left out.

    Args:
      item_counts: training events of each item `[items]`.
      targets: int `[n, m]`, -1 is padding.
      excluded: items that are left out, by row; no wanted ones.
      preferred: a row to items that come before all others, and scores above 0 that order them;
        popularity decides between equals.

    Returns:
      int64 `[n, m]`, for `metrics.ranking`.
    """
    popularity = _below_one(item_counts)
    ranks = np.zeros(targets.shape, np.int64)
    step = max(1, 20_000_000 // max(len(popularity), 1))
    for start in range(0, len(targets), step):
        block = targets[start : start + step]
        hidden = np.zeros((len(block), len(popularity)), bool)
        scores = np.tile(popularity, (len(block), 1))
        for i in range(len(block)):
            hidden[i, excluded[start + i]] = True
            if preferred is not None:
                items, values = preferred(start + i)
                # Popularity stays below what tells apart scores that are equal but for rounding.
                scores[i, items] = 1 + values + 1e-9 * popularity[items]
        ranks[start : start + step] = ranking.ranks_by_score(scores, block, hidden)
    return ranks
