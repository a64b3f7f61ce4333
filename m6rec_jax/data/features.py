"""Statistics in words (paper, section 2: "among the top 5%", "4 times"): one formula, one wording.

`Features` says what is known of users and items as of moments, in training (`bucket_features`) as
in use (`statistics`); what was counted is looked up by its subclasses. Everything asked about a
moment is answered by the events before that moment: a row's own outcome is never in its statistics
(leave-one-out statistics leak it, and a model finds that).

Names of the features (None where there is nothing to say, so that a template drops the clause):

  of the item       item_count               users' events with it: "about 250"
                    item_positive_percent    share liked, smoothed: "72"
                    item_mean_value          mean value, smoothed: "3.85"
                    item_popularity_top      "among the top 5%" by events
                    item_popularity_rank     the same finer: 4 means within the top 4%
                    item_liked_top           "among the top 5%" by smoothed share liked
                    item_liked_rank          the same finer
  of the user       user_count, user_positive_percent, user_mean_value
  of both, for each item column F of `statistics.by`
                    user_F_counts            ("4 of 6 comedy", "2 of 2 thriller"): liked of all
                    user_F_percent           smoothed share liked of these
  of both, the item itself (`StatisticsOptions.user_items`)
                    user_item_times          how often the user had it: "3"
                    user_item_ago            when last: "5 days ago"
  of both, over pairs of items (`StatisticsOptions.neighbours`, see `neighbours`)
                    user_neighbours_percent  the share the user liked of the items that are valued
                                             like this one, each by how alike they are
                    user_taste_difference    by how much the user will value it above its mean,
                                             going by the same items: "+0.20"
  of both, from what all users valued (`StatisticsOptions.factors`)
                    user_expected_value      what the user will value it, by hidden factors of
                                             items and tastes (see `value_factors`): "3.85"

Where every event is positive (a shop's purchases), there is nothing to say about shares liked:
the features about shares do not exist, user_F_counts says "4 comedy", and
`user_neighbours_times` takes the neighbours' place: how many times likelier than others those
are to act on this item who acted on what the user acted on.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from m6rec_jax.data import words
from m6rec_jax.data.statistics_state import StatisticsSettings
from m6rec_jax.text import verbalize
from m6rec_jax.text.column_text import Source
from m6rec_jax.text.records import Value

Items = TypeVar("Items")


class Counts(NamedTuple):
    """Number of events, of positive ones, and sum of their values. All `[n]`."""

    events: np.ndarray
    positive: np.ndarray
    total: np.ndarray


class ValuesMet(NamedTuple):
    """Values of items that users met before. All `[values]`.

    Attributes:
      candidate: whose value each is.
      name: of the value.
      events, positive: of the candidate's user, with items of this value; 0 where it never met it.
    """

    candidate: np.ndarray
    name: Sequence[str]
    events: np.ndarray
    positive: np.ndarray


class Features(abc.ABC, Generic[Items]):
    """What is known of users at moments, and of candidates, items that each of them is asked about.

    Args:
      settings: what the statistics count.
      share, mean, spread: of all events before each moment `[users]`: the share of positive ones,
        the mean value, and how far values lie from it.
      users: what was counted of each user.
    """

    def __init__(
        self,
        settings: StatisticsSettings,
        share: np.ndarray,
        mean: np.ndarray,
        spread: np.ndarray,
        users: Counts,
    ) -> None:
        self.settings, self.users = settings, users
        self._share, self._mean, self._spread = share, mean, spread

    @abc.abstractmethod
    def item_counts(self, items: Items, owners: np.ndarray) -> Counts:
        """What was counted of candidates; `owners` `[candidates]` says whose they are."""

    @abc.abstractmethod
    def standings(
        self, kind: str, numbers: np.ndarray, owners: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many items are not higher than numbers `[n]`, and of how many, as of a moment.

        Args:
          kind: 'counts' of events, or 'shares' liked.
          numbers: of known items.
          owners: whose moment it is `[n]`.
        """

    @abc.abstractmethod
    def times_had(self, items: Items, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How often users had candidates, and how many seconds ago, NaN where that is not known."""

    @abc.abstractmethod
    def values_met(self, field: str, items: Items, owners: np.ndarray) -> ValuesMet:
        """Of a column of `statistics.by`."""

    @abc.abstractmethod
    def expected(self, items: Items, owners: np.ndarray) -> np.ndarray:
        """What users will probably value candidates; NaN where nothing is known."""

    @functools.cached_property
    def user_share(self) -> np.ndarray:
        """The users' smoothed share of liked items `[users]`."""
        return self.settings.smoothed(self.users.positive, self.users.events, self._share)

    def of_users(self, names: Sequence[str]) -> dict[str, Source]:
        """Those of the features that are of users alone, for each user."""
        users = self.users
        known = users.events > 0
        mean = self.settings.smoothed(users.total, users.events, self._mean)
        make: Mapping[str, Callable[[str], Source]] = {
            "user_count": lambda n: words.of_distinct(n, users.events, known, verbalize.count),
            "user_positive_percent": lambda n: words.percents(n, self.user_share, known),
            "user_mean_value": lambda n: words.rounded(n, mean, self._spread, known),
        }
        return {name: make[name](name) for name in names if name in make}

    def of_candidates(
        self,
        names: Sequence[str],
        owners: np.ndarray,
        items: Items,
        pairs: tuple[np.ndarray, np.ndarray] | None,
    ) -> dict[str, Source]:
        """Features for each candidate.

        Args:
          names: which.
          owners: the user of each candidate, ascending `[candidates]`.
          items: the candidates.
          pairs: what `neighbours.features` says of them, NaN where nothing is known.
        """
        smoothed = self.settings.smoothed
        found = {
            name: Source(source.codes[owners], source.values, name)
            for name, source in self.of_users(names).items()
        }
        spread = self._spread[owners]
        count, positive, total = self.item_counts(items, owners)
        known = count > 0
        share = smoothed(positive, count, self._share[owners])
        mean = smoothed(total, count, self._mean[owners])
        make: dict[str, Callable[[str], Source]] = {
            "item_count": lambda n: words.of_distinct(n, count, known, verbalize.count),
            "item_positive_percent": lambda n: words.percents(n, share, known),
            "item_mean_value": lambda n: words.rounded(n, mean, spread, known),
        }

        def numbers(name: str, of: np.ndarray, *, signed: bool = False) -> Source:
            there = ~np.isnan(of)
            return words.rounded(name, np.where(there, of, 0.0), spread, there, signed=signed)

        standing = {
            "item_popularity": ("counts", count.astype(float)),
            "item_liked": ("shares", share),
        }
        for prefix, (kind, number) in standing.items():
            if {f"{prefix}_top", f"{prefix}_rank"}.isdisjoint(names):
                continue
            not_higher, size = np.zeros(len(known), np.int64), np.ones(len(known), np.int64)
            not_higher[known], size[known] = self.standings(kind, number[known], owners[known])
            top, rank = not_higher / size, np.minimum(100, 100 * (size - not_higher) // size + 1)
            found[f"{prefix}_top"] = words.of_distinct(
                f"{prefix}_top", top, known, verbalize.percentile
            )
            found[f"{prefix}_rank"] = words.of_distinct(f"{prefix}_rank", rank, known, int)
        if not {"user_item_times", "user_item_ago"}.isdisjoint(names):
            times, seconds = self.times_had(items, owners)
            had = times > 0
            make["user_item_times"] = lambda n: words.of_distinct(n, times, had, verbalize.count)
            make["user_item_ago"] = lambda n: words.ages(n, seconds, had & ~np.isnan(seconds))
        if pairs is not None:
            difference, felt = pairs[0], ~np.isnan(pairs[1])
            second = np.where(felt, pairs[1], 0.0)
            make["user_taste_difference"] = lambda n: numbers(n, difference, signed=True)
            make["user_neighbours_times"] = lambda n: words.of_distinct(
                n, second, felt, lambda times: f"{times:.1f}"
            )
            make["user_neighbours_percent"] = lambda n: words.percents(n, second, felt)
        make["user_expected_value"] = lambda n: numbers(n, self.expected(items, owners))
        for field in self.settings.by:
            if not {f"user_{field}_counts", f"user_{field}_percent"}.isdisjoint(names):
                met = self.values_met(field, items, owners)
                make[f"user_{field}_counts"] = functools.partial(self._counts_met, met, owners)
                make[f"user_{field}_percent"] = functools.partial(self._share_met, met, owners)
        return {**found, **{name: maker(name) for name, maker in make.items() if name in names}}

    def _share_met(self, met: ValuesMet, owners: np.ndarray, name: str) -> Source:
        size = len(owners)
        liked, count = (np.bincount(met.candidate, n, size) for n in (met.positive, met.events))
        share = self.settings.smoothed(liked, count, self.user_share[owners])
        return words.percents(name, share, count > 0)

    def _counts_met(self, met: ValuesMet, owners: np.ndarray, name: str) -> Source:
        labelled = self.settings.has_labels
        texts: list[list[str]] = [[] for _ in range(len(owners))]
        for candidate, value, n, p in zip(
            met.candidate.tolist(),
            met.name,
            met.events.tolist(),
            met.positive.tolist(),
            strict=True,
        ):
            if n:
                texts[candidate].append(f"{p} of {n} {value}" if labelled else f"{n} {value}")
        distinct: dict[tuple[str, ...], int] = {}
        codes = [distinct.setdefault(tuple(text), len(distinct)) for text in texts]
        values: list[Value] = [text or None for text in distinct]
        return Source(np.asarray(codes, np.int64), values, name)
