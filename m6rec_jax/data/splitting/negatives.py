"""Sampled negatives for shops that log what was bought but not what was shown, and their mending.

Negatives repeat as often as positives do: an item that the user had before stands beside others
that the user had, a new one beside new ones. Otherwise having had an item would tell its label.

A model that meets each negative w times on average, beside all positives, predicts odds that are
1/w of the true ones; `corrected_probability` takes that back. Of new items a few are drawn of many,
so that w is small. Of a user who had few other items these are drawn several times: then w may be
above 1, and the odds in the rows are too low.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from m6rec_jax.data.dataset.schema import DatasetSpec

# What came of candidates, where the template has no words for it.
CHOSEN, NOT_CHOSEN = "chosen", "not chosen"
# Per positive, where no event has another label.
NEGATIVES = 4


class Popularity(NamedTuple):
    """Running sums of items' weights `[epochs, items]`, from so many events on `[epochs]`."""

    schedule: np.ndarray
    cumulative: np.ndarray


def num_negatives(spec: DatasetSpec) -> int:
    """Negatives per positive: some where every event is positive, else none."""
    return NEGATIVES if spec.label.at_least is None else 0


def corrected_probability(probability: Any, sampling_rate: Any) -> Any:
    """Probability in the world where each negative counts once: p' = p / (p + (1 - p) / w).

    One w for all items of a kind: exact where negatives are drawn alike (`NegativeSampler` with
    power 0). Drawn by popularity, popular items stand for fewer negatives than w says, so that
    their odds come out too low beside those of rare ones.

    `sampling_rate` is w, how often a negative was drawn on average (`sampling_rates`), above 1
    where repeatedly. Both are numbers, or arrays of numpy or JAX that broadcast.
    """
    return probability / (probability + (1 - probability) / sampling_rate)


class NegativeSampler:
    """Draws items for a user, in proportion to (events so far + 1) ** power.

    Popularity is as of the moment of the draw; it is looked at again when 2% more events came. Each
    draw has its own random numbers, from its `key`.

    Args:
      num_items: of the items table.
      power: 0 draws all items alike, 1 by popularity.
      never: items that are never drawn, as indices in the table (held-out items).

    Attributes:
      drawn: how many new items were drawn, how many could have been, and for how many positives;
        and of items that the user had before `[2, 3]`.
    """

    def __init__(self, num_items: int, power: float, never: Collection[int] = ()) -> None:
        self._num_items = num_items
        self._power = power
        self._never = frozenset(never)
        self.drawn = np.zeros((2, 3), np.int64)

    def draw(
        self,
        cumulative: np.ndarray,
        key: str,
        positives: Sequence[int],
        seen: Collection[int],
        moment: Collection[int],
        count: int,
    ) -> list[list[int]]:
        """Draws `count` items for each positive row of a group; distinct ones, if enough are left.

        What the user acted on in the group or at its moment is no negative. A user who had few
        other items meets them several times. All items are indices in the items table.

        Args:
          cumulative: running sums of the `weights` of all items `[items]`.
          key: names the draw, such as user and time.
          positives, seen, moment: items of the group's rows, of the user's past, of the group's
            moment.
          count: items per draw. Of new items fewer where not enough are left; none where the user
            had no other item.

        Returns:
          `[positives][count]`.
        """
        digest = hashlib.blake2b(f"0:{key}".encode("utf-8", "surrogatepass")).digest()
        # As a list of numbers it would be the same seed, and take ten times as long.
        random = np.random.default_rng(np.frombuffer(digest, np.uint8).astype(np.uint32))
        had = frozenset(seen)
        acted = had.union(moment, positives)
        again = np.zeros(0, np.int64)
        if not had.isdisjoint(positives):
            again = np.asarray(sorted(had.difference(moment, positives)), np.int64)
        # No union: held-out items may be many, and are the same at every call.
        new = self._num_items - len(self._never) - len(acted - self._never)
        drawn = []
        for positive in positives:
            repeat = positive in had
            if repeat:
                drawn.append(_draw_some(random, cumulative, again, count))
            else:
                drawn.append(self._draw(random, cumulative, acted, min(count, new)))
            self.drawn[int(repeat), :2] += len(drawn[-1]), len(again) if repeat else new
        for row in asked(drawn):
            self.drawn[int(positives[row] in had), 2] += 1
        return drawn

    def weights(self, counts: np.ndarray) -> np.ndarray:
        """How likely items are drawn by their events so far `[items]`, not scaled."""
        return (counts + 1.0) ** self._power

    def _draw(
        self, random: np.random.Generator, cumulative: np.ndarray, acted: frozenset[int], count: int
    ) -> list[int]:
        """Some of all items that nobody forbids."""
        chosen: dict[int, None] = {}
        for _ in range(8):
            if len(chosen) >= count:
                break
            points = random.random(2 * count + 8) * cumulative[-1]
            for index in np.searchsorted(cumulative, points, side="right").tolist():
                if index not in acted and index not in self._never and len(chosen) < count:
                    chosen[index] = None
        if len(chosen) < count:  # the user acted on nearly everything that is popular
            left = sorted(set(range(self._num_items)).difference(acted, self._never, chosen))
            picked = random.choice(len(left), count - len(chosen), replace=False)
            chosen.update(dict.fromkeys(left[index] for index in picked))
        return list(chosen)


def _draw_some(
    random: np.random.Generator, cumulative: np.ndarray, items: np.ndarray, count: int
) -> list[int]:
    """Some of a few items, by the weights of which there are running sums; all equally often."""
    if not len(items):
        return []
    every, some = divmod(count, len(items))
    drawn: list[int] = items.tolist() * every
    if some:
        weights = cumulative[items] - np.where(items > 0, cumulative[items - 1], 0.0)
        drawn += random.choice(items, some, replace=False, p=weights / weights.sum()).tolist()
    return drawn


def asked(drawn: Sequence[Sequence[int]]) -> list[int]:
    """Which positives of a group are asked about: those with negatives; all, if none has any."""
    return [n for n, items in enumerate(drawn) if items] or list(range(len(drawn)))


def sampling_rates(drawn: np.ndarray) -> Mapping[str, float]:
    """Draws per item that could be drawn, of `NegativeSampler.drawn`, where something was drawn.

    `sampling_rate` is of new items, `repeat_sampling_rate` of those that users had before.
    """
    names = ("sampling_rate", "repeat_sampling_rate")
    return {
        name: sampled / eligible
        for name, (sampled, eligible, _) in zip(names, drawn.tolist(), strict=True)
        if sampled
    }
