"""Statistics in words (paper, section 2: "among the top 5%", "4 times"): one formula, one wording.

`Features` says what is known of users and items as of moments, in training (`past_statistics`) as
in use (`statistics`). Everything said of a moment comes from the events before it: a row's own
label is never in its statistics (leave-one-out statistics leak it, and a model finds that).

A statistic is one entry of the tables at the end of this file, None where there is nothing to say,
so that a template drops the clause:

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
  of both, the item itself
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

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from m6rec_jax.data.features import words
from m6rec_jax.data.features.past_events import Counts, ItemValues, PastEvents, Ranges
from m6rec_jax.data.features.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.text import verbalize
from m6rec_jax.text.column_text import Source
from m6rec_jax.text.records import Value

if TYPE_CHECKING:
    from m6rec_jax.data.features.past_statistics import PastStatistics
    from m6rec_jax.data.features.statistics import Statistics


class ValuesMet(NamedTuple):
    """Values of candidates and how often their users met them. All `[values]`.

    Attributes:
      candidate: whose value each is.
      name: of the value.
      events, positive: of the candidate's user, with items of this value; 0 where it never met it.
    """

    candidate: np.ndarray
    name: Sequence[str]
    events: np.ndarray
    positive: np.ndarray


class Features:
    """What is known of users at moments, and of candidates that each of them is asked about.

    Args:
      everybody: what all users did.
      past: what these did.
      known: of the past, what is known of each `[users]`.
      places: of the moments in the timeline `[users]`.
      times: of the moments, unix seconds, NaN where not known `[users]`.
      item_values: of each column of `by`; of no use where `values_met` is overridden.
    """

    users: Counts
    acted: np.ndarray
    share: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    def __init__(
        self,
        everybody: PastStatistics | Statistics,
        past: PastEvents,
        known: Ranges,
        places: np.ndarray,
        times: np.ndarray,
        item_values: Mapping[str, ItemValues],
    ) -> None:
        self.everybody, self.settings = everybody, everybody.settings
        self.past, self.known, self.places, self.times = past, known, places, times
        self.users = past.counts(known)
        self.acted = self.users.events > 0
        self.share, self.mean, self.spread = everybody.overall(places)
        self._item_values = item_values

    @functools.cached_property
    def user_share(self) -> np.ndarray:
        """The users' smoothed share of liked items `[users]`."""
        return self.settings.smoothed(self.users.positive, self.users.events, self.share)

    @property
    def user_mean(self) -> np.ndarray:
        """The users' smoothed mean value `[users]`."""
        return self.settings.smoothed(self.users.value, self.users.events, self.mean)

    def of_users(self, names: Collection[str]) -> dict[str, Source]:
        """Those of the features that are of users alone, for each user."""
        there = _existing(_OF_USERS, self.settings)
        return {name: there[name](self, name) for name in names if name in there}

    def of_candidates(
        self,
        names: Collection[str],
        owners: np.ndarray,
        items: np.ndarray,
        pairs: np.ndarray | tuple[np.ndarray, np.ndarray] | None,
    ) -> dict[str, Source]:
        """Features for each candidate.

        Args:
          names: which.
          owners: the user of each candidate, ascending `[candidates]`.
          items: the candidates, as `everybody` numbers them.
          pairs: what `neighbours.features` says of them, NaN where nothing is known; None where the
            names ask for none of it.
        """
        of_users = {
            name: Source(source.codes[owners], source.values, name)
            for name, source in self.of_users(names).items()
        }
        candidates = _Candidates(self, owners, items, pairs)
        there = _of_candidates(self.settings)
        return of_users | {name: there[name](candidates, name) for name in names if name in there}

    def values_met(self, field: str, items: np.ndarray, owners: np.ndarray) -> ValuesMet:
        """Of a column of `statistics.by`."""
        values = self._item_values[field]
        ranges = values.ranges(items)
        candidate, numbers = ranges.owners, values.numbers[ranges.numbers]
        counts = self.past.values_met(values, self.known[owners[candidate]], numbers)
        return ValuesMet(candidate, [values.names[n] for n in numbers.tolist()], *counts)

    def expected(self, items: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """What users will probably value candidates; NaN where nothing is known."""
        estimates = np.full(len(items), np.nan)
        everybody, past = self.everybody, self.past
        positions, windows = past.windows(self.known)
        candidates, inside = (everybody.numbers(n) for n in (items, past.item[positions]))
        values, smoothing = past.worth[positions], self.settings.options.smoothing
        ends = np.searchsorted(owners, np.arange(len(self.places) + 1))
        fits = np.where(windows.lengths > 0, everybody.fits(self.places), -1)
        for fit in np.unique(fits[fits >= 0]).tolist():
            factors = everybody.factors(fit)
            for user in np.flatnonzero(fits == fit).tolist():
                some = slice(ends[user], ends[user + 1])
                window = slice(windows.low[user], windows.high[user])
                estimates[some] = factors.expected(
                    candidates[some], inside[window], values[window], smoothing
                )
        return estimates


class _Candidates:
    """What formulas need of candidates `[candidates]`; arguments as of `Features.of_candidates`."""

    count: Counts
    known: np.ndarray
    share: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    pairs: Any

    def __init__(self, users: Features, owners: np.ndarray, items: np.ndarray, pairs: Any) -> None:
        self.users, self.owners, self.items = users, owners, items
        self.settings, self.pairs = users.settings, pairs
        self.spread = users.spread[owners]
        self.count = users.everybody.of_items(items, users.places[owners])
        self.known = self.count.events > 0
        smoothed = self.settings.smoothed
        self.share = smoothed(self.count.positive, self.count.events, users.share[owners])
        self.mean = smoothed(self.count.value, self.count.events, users.mean[owners])
        self.met = functools.cache(lambda field: users.values_met(field, items, owners))
        self.standing = functools.cache(self._standing)

    def _standing(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """How many items are not higher than each, and of how many."""
        known, places = self.known, self.users.places[self.owners]
        of = self.share if kind == "shares" else self.count.events.astype(float)
        standing = np.ones((2, len(known)), np.int64)
        if known.any():
            standing[:, known] = self.users.everybody.standing(kind, of[known], places[known])
        return standing[0], standing[1]

    @functools.cached_property
    def had(self) -> tuple[np.ndarray, np.ndarray]:
        """How often users had candidates, and how many seconds ago, NaN where that is unknown."""
        times, last = self.users.past.times_had(self.users.known[self.owners], self.items)
        return times, self.users.times[self.owners] - last

    def top(self, name: str, kind: str) -> Source:
        not_higher, size = self.standing(kind)
        return words.of_distinct(name, not_higher / size, self.known, verbalize.percentile)

    def rank(self, name: str, kind: str) -> Source:
        not_higher, size = self.standing(kind)
        rank = np.minimum(100, 100 * (size - not_higher) // size + 1)
        return words.of_distinct(name, rank, self.known, int)

    def times_had(self, name: str) -> Source:
        return words.of_distinct(name, self.had[0], self.had[0] > 0, verbalize.count)

    def last_had(self, name: str) -> Source:
        times, seconds = self.had
        return words.ages(name, seconds, (times > 0) & ~np.isnan(seconds))

    def value(self, name: str, numbers: np.ndarray, *, signed: bool = False) -> Source:
        """Numbers in the unit of values, NaN for none."""
        there = ~np.isnan(numbers)
        return words.rounded(name, np.where(there, numbers, 0.0), self.spread, there, signed=signed)

    def neighbours(self, name: str, percent: bool) -> Source:
        there = ~np.isnan(self.pairs[1])
        numbers = np.where(there, self.pairs[1], 0.0)
        if percent:
            return words.percents(name, numbers, there)
        return words.of_distinct(name, numbers, there, lambda times: f"{times:.1f}")

    def share_met(self, name: str, field: str) -> Source:
        met, size = self.met(field), len(self.owners)
        liked, count = (np.bincount(met.candidate, n, size) for n in (met.positive, met.events))
        share = self.settings.smoothed(liked, count, self.users.user_share[self.owners])
        return words.percents(name, share, count > 0)

    def counts_met(self, name: str, field: str) -> Source:
        labelled = "labels" in self.settings.traits
        texts: list[list[str]] = [[] for _ in range(len(self.owners))]
        met = self.met(field)
        columns = (met.candidate.tolist(), met.name, met.events.tolist(), met.positive.tolist())
        for candidate, value, count, positive in zip(*columns, strict=True):
            if count:
                of = f"{positive} of {count}" if labelled else f"{count}"
                texts[candidate].append(f"{of} {value}")
        distinct: dict[tuple[str, ...], int] = {}
        codes = [distinct.setdefault(tuple(text), len(distinct)) for text in texts]
        values: list[Value] = [text or None for text in distinct]
        return Source(np.asarray(codes, np.int64), values, name)


# Name -> traits of `StatisticsSettings` that it rests on, and what it says.
_OF_USERS: Mapping[str, tuple[str, Callable[[Features, str], Source]]] = {
    "user_count": (
        "",
        lambda u, name: words.of_distinct(name, u.users.events, u.acted, verbalize.count),
    ),
    "user_positive_percent": (
        "labels",
        lambda u, name: words.percents(name, u.user_share, u.acted),
    ),
    "user_mean_value": (
        "values",
        lambda u, name: words.rounded(name, u.user_mean, u.spread, u.acted),
    ),
}
_OF_CANDIDATES: Mapping[str, tuple[str, Callable[[_Candidates, str], Source]]] = {
    "item_count": (
        "",
        lambda c, name: words.of_distinct(name, c.count.events, c.known, verbalize.count),
    ),
    "item_popularity_top": ("", lambda c, name: c.top(name, "counts")),
    "item_popularity_rank": ("", lambda c, name: c.rank(name, "counts")),
    "item_positive_percent": ("labels", lambda c, name: words.percents(name, c.share, c.known)),
    "item_liked_top": ("labels", lambda c, name: c.top(name, "shares")),
    "item_liked_rank": ("labels", lambda c, name: c.rank(name, "shares")),
    "item_mean_value": ("values", lambda c, name: words.rounded(name, c.mean, c.spread, c.known)),
    "user_item_times": ("", _Candidates.times_had),
    "user_item_ago": ("", _Candidates.last_had),
    "user_neighbours_percent": ("neighbours labels", lambda c, name: c.neighbours(name, True)),
    "user_neighbours_times": ("neighbours purchases", lambda c, name: c.neighbours(name, False)),
    "user_taste_difference": (
        "neighbours values",
        lambda c, name: c.value(name, c.pairs[0], signed=True),
    ),
    "user_expected_value": (
        "factors",
        lambda c, name: c.value(name, c.users.expected(c.items, c.owners)),
    ),
}
# For each column of `statistics.by`, whose name takes the place of the braces.
_OF_FIELDS: Mapping[str, tuple[str, Callable[[_Candidates, str, str], Source]]] = {
    "user_{}_counts": ("", _Candidates.counts_met),
    "user_{}_percent": ("labels", _Candidates.share_met),
}


def _existing(
    table: Mapping[str, tuple[str, Callable[..., Source]]], settings: StatisticsSettings
) -> dict[str, Callable[..., Source]]:
    return {
        name: make
        for name, (needs, make) in table.items()
        if settings.traits.issuperset(needs.split())
    }


def _of_candidates(settings: StatisticsSettings) -> dict[str, Callable[..., Source]]:
    sources = _existing(_OF_CANDIDATES, settings)
    for field in settings.by:
        for name, make in _existing(_OF_FIELDS, settings).items():
            sources[name.format(field)] = functools.partial(make, field=field)
    return sources


def user_feature_names(settings: StatisticsSettings) -> tuple[str, ...]:
    """Names of the features of users alone."""
    return tuple(_existing(_OF_USERS, settings))


def feature_names(settings: StatisticsSettings) -> tuple[str, ...]:
    """Names of all features: what a candidate template may ask for."""
    return (*_of_candidates(settings), *user_feature_names(settings))


def needed_only(options: StatisticsOptions, wanted: Collection[str]) -> StatisticsOptions:
    """Options without what costs most of the work or memory, unless it is wanted."""
    needs = {need for n in wanted if n in _OF_CANDIDATES for need in _OF_CANDIDATES[n][0].split()}
    return dataclasses.replace(
        options,
        neighbours=options.neighbours and "neighbours" in needs,
        factors=options.factors if "factors" in needs else 0,
    )
