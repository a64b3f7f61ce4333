"""A shop whose buyers come back for what they had, by probabilities that are known.

So the best possible scorer is known, too: by what odds a candidate of a row is the one that was
bought, of all that the protocol could have put there.
"""

from __future__ import annotations

import dataclasses

import numpy as np

DAY = 86_400.0
NEGATIVES = 4
TEMPLATE = {
    "event": "{title}, {ago}",
    "candidate": "{title}[, sold {item_count} times]"
    "[, had {user_item_times} times, last {user_item_ago}]",
    "item": "{title}",
}


@dataclasses.dataclass(frozen=True)
class RepeatShop:
    """Every buyer buys one thing a day.

    With a probability of its own it is one that the buyer had before, by the square of how often,
    and half as likely with every five days since; else a new one, every fifth thing six times as
    likely as the others.

    Attributes:
      items: bought by each user, day by day `[users, days]`.
      popularity: of the items `[items]`, adds up to 1.
    """

    items: np.ndarray
    popularity: np.ndarray

    @classmethod
    def made(cls, num_users: int, num_items: int, num_days: int, seed: int = 0) -> RepeatShop:
        """Draws a shop; all users have items left that they never had."""
        random = np.random.default_rng(seed)
        popularity = np.where(np.arange(num_items) % 5, 1.0, 6.0)
        popularity /= popularity.sum()
        shop = cls(np.zeros((num_users, num_days), np.int64), popularity)
        again = 0.1 + 0.8 * random.beta(2, 2, num_users)
        for user in range(num_users):
            for day in range(num_days):
                repeats, new = shop.probabilities(user, day)
                chances = repeats if day and random.random() < again[user] else new
                shop.items[user, day] = random.choice(num_items, p=chances)
        return shop

    @property
    def events(self) -> list[tuple[int, int, float, float]]:
        """User, item, time, no value."""
        return [
            (user, item, DAY * day + user, 1.0)
            for user, own in enumerate(self.items.tolist())
            for day, item in enumerate(own)
        ]

    def probabilities(self, user: int, day: int) -> tuple[np.ndarray, np.ndarray]:
        """What the user buys on a day if it is a repeat, and if it is new `[items]` both."""
        weights = np.zeros(len(self.popularity))
        past = self.items[user, :day]
        times = np.bincount(past, minlength=len(weights))
        last = np.zeros(len(weights))
        last[past] = np.arange(day)  # of several the last one stays
        had = times > 0
        weights[had] = times[had] ** 2 * 0.5 ** ((day - last[had]) / 5)
        new = np.where(had, 0.0, self.popularity)
        return weights / max(weights.sum(), 1e-300), new / new.sum()

    def best_scores(self, user: int, day: int, items: np.ndarray) -> np.ndarray:
        """Odds that candidates `[n]` are what was bought.

        Args:
          user, day: of the row.
          items: of a positive and `NEGATIVES` sampled negatives, drawn all alike.
        """
        odds = np.zeros(len(items))
        for chances in self.probabilities(user, day):
            could_be = chances > 0
            drawn = min(1.0, NEGATIVES / max(1, could_be.sum() - 1))
            own = chances[items]
            odds += own / ((1 - own) * drawn + 1e-12)
        return odds
