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

from m6rec_jax.data.features.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.data.features.timeline import Counts
from m6rec_jax.data.features.user_events import ItemValues, Ranges, UserEvents
from m6rec_jax.text import verbalize
from m6rec_jax.text.column_text import Source, classes
from m6rec_jax.text.records import Value

if TYPE_CHECKING:
    from m6rec_jax.data.features.past_statistics import PastStatistics
    from m6rec_jax.data.features.statistics import Statistics


class Wording(NamedTuple):
    """What is said of numbers: the text of a number and the spread of values beside it; and of
    numbers and spreads `[n]` what their texts depend on, so that each text is made once.
    """

    text: Callable[[float, float], Value]
    alike: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]] = lambda n, _: (n,)

    def source(self, name: str, numbers: np.ndarray, spreads: np.ndarray) -> Source:
        """The texts of numbers `[n]`, none where they are NaN."""
        there = np.flatnonzero(~np.isnan(numbers))
        numbers_there, spreads = numbers[there], spreads[there]
        alike = self.alike(numbers_there, spreads)
        first, classes_there = classes(*(np.unique(of, return_inverse=True)[1] for of in alike))
        codes = np.zeros(len(numbers), np.int64)
        codes[there] = classes_there + 1
        chosen = zip(numbers_there[first].tolist(), spreads[first].tolist(), strict=True)
        return Source(codes, [None, *(self.text(*one) for one in chosen)], name)


def _steps(numbers: np.ndarray, spreads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `verbalize.rounded`: how fine its steps are, and how many of them each number has."""
    exponents = np.maximum(np.rint(np.log10(spreads)), -9).astype(np.int64)
    return exponents, np.rint(numbers / _STEPS[exponents + 9])


# Of exponents from -9 on. NumPy may round powers otherwise than Python.
_STEPS = np.asarray([10.0 ** (exponent - 1) / 2 for exponent in range(-9, 310)])

COUNT = Wording(lambda number, _: verbalize.count(number))
WHOLE = Wording(lambda number, _: int(number))
TOP = Wording(lambda rank, _: verbalize.percentile(rank))
TIMES = Wording(lambda number, _: f"{number:.1f}")
AGO = Wording(lambda number, _: verbalize.ago(number), lambda n, _: (verbalize.age_classes(n),))
PERCENT = Wording(
    # Rounding may put the mean of ones above one.
    lambda share, _: verbalize.percent(min(1.0, max(0.0, share))),
    lambda n, _: (np.floor(np.round(n * 100, 9) + 0.5),),
)
VALUE = Wording(verbalize.rounded, _steps)
DIFFERENCE = Wording(functools.partial(verbalize.rounded, signed=True), _steps)


class ValuesMet(NamedTuple):
    """Values of candidates `[values]`: whose each is, its name, and how many events, and positive
    ones, the candidate's user had with items of this value.
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

    def __init__(
        self,
        everybody: PastStatistics | Statistics,
        past: UserEvents,
        known: Ranges,
        places: np.ndarray,
        times: np.ndarray,
        item_values: Mapping[str, ItemValues],
    ) -> None:
        self.everybody, self.settings = everybody, everybody.settings
        self.past, self.known, self.places, self.times = past, known, places, times
        self.count: Counts = past.counts(known)
        self.share, self.mean, self.spread = everybody.overall(places)
        self._item_values = item_values

    @functools.cached_property
    def user_share(self) -> np.ndarray:
        """The users' smoothed share of liked items `[users]`."""
        return self.settings.smoothed(self.count.positive, self.count.events, self.share)

    @property
    def user_mean(self) -> np.ndarray:
        """The users' smoothed mean value `[users]`."""
        return self.settings.smoothed(self.count.value, self.count.events, self.mean)

    def if_acted(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of users who acted, NaN for others `[users]`."""
        return np.where(self.count.events > 0, numbers, np.nan)

    def of_users(self, names: Collection[str]) -> dict[str, Source]:
        """Those of the features that are of users alone, for each user."""
        return {
            name: wording.source(name, self.if_acted(numbers(self)), self.spread)
            for name, (numbers, wording) in _existing(_OF_USERS, self.settings).items()
            if name in names
        }

    def of_candidates(
        self,
        names: Collection[str],
        owners: np.ndarray,
        items: np.ndarray,
        pairs: np.ndarray | tuple[np.ndarray, np.ndarray] | None,
    ) -> dict[str, Source]:
        """Those of the features `names`, for each candidate.

        `owners` are the users of candidates, ascending, `items` the candidates as `everybody`
        numbers them, `[candidates]` each; `pairs` what `neighbours.features` says of them, NaN
        where nothing is known, None where the names ask for none of it.
        """
        sources = {
            name: Source(source.codes[owners], source.values, name)
            for name, source in self.of_users(names).items()
        }
        candidates = _Candidates(self, owners, items, pairs)
        for name, (numbers, wording) in _of_candidates(self.settings).items():
            if name in names:
                sources[name] = wording.source(name, numbers(candidates), candidates.spread)
        for field in self.settings.by:
            if (name := _VALUES_MET.format(field)) in names:
                sources[name] = candidates.values_met(name, field)
        return sources

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
        everybody, options = self.everybody, self.settings.options
        positions, windows = self.past.windows(self.known, options.neighbour_window)
        candidates, inside = (everybody.numbers(n) for n in (items, self.past.item[positions]))
        values = self.past.worth[positions]
        ends = np.searchsorted(owners, np.arange(len(self.places) + 1))
        for factors, users in everybody.factors(self.places):
            for user in users[windows.lengths[users] > 0].tolist():
                some = slice(ends[user], ends[user + 1])
                window = slice(windows.low[user], windows.high[user])
                estimates[some] = factors.expected(
                    candidates[some], inside[window], values[window], options.smoothing
                )
        return estimates


class _Candidates:
    """What formulas need of candidates `[candidates]`; arguments as of `Features.of_candidates`."""

    def __init__(self, users: Features, owners: np.ndarray, items: np.ndarray, pairs: Any) -> None:
        self.users, self.owners, self.items, self.pairs = users, owners, items, pairs
        self.spread = users.spread[owners]
        self.count: Counts = users.everybody.of_items(items, users.places[owners])
        self.known = self.count.events > 0
        smoothed = users.settings.smoothed
        self.share = smoothed(self.count.positive, self.count.events, users.share[owners])
        self.mean = smoothed(self.count.value, self.count.events, users.mean[owners])
        self.met = functools.cache(lambda field: users.values_met(field, items, owners))
        self.standing = functools.cache(self._standing)

    def if_known(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of items that somebody acted on, NaN for others."""
        return np.where(self.known, numbers, np.nan)

    def _standing(self, kind: str) -> np.ndarray:
        """How many items are not higher than each, and of how many `[2, candidates]`."""
        known, places = self.known, self.users.places[self.owners]
        of = self.share if kind == "shares" else self.count.events.astype(float)
        standing = np.ones((2, len(known)), np.int64)
        if known.any():
            standing[:, known] = self.users.everybody.standing(kind, of[known], places[known])
        return standing

    def top(self, kind: str) -> np.ndarray:
        not_higher, size = self.standing(kind)
        return self.if_known(not_higher / size)

    def rank(self, kind: str) -> np.ndarray:
        not_higher, size = self.standing(kind)
        return self.if_known(np.minimum(100, 100 * (size - not_higher) // size + 1))

    @functools.cached_property
    def had(self) -> np.ndarray:
        """How often users had candidates, and how many seconds ago, NaN for never `[2, n]`."""
        times, last = self.users.past.times_had(self.users.known[self.owners], self.items)
        ago = self.users.times[self.owners] - last
        return np.where(times > 0, np.stack([times, ago]), np.nan)

    def share_met(self, field: str) -> np.ndarray:
        met, size = self.met(field), len(self.owners)
        liked, count = (np.bincount(met.candidate, n, size) for n in (met.positive, met.events))
        share = self.users.settings.smoothed(liked, count, self.users.user_share[self.owners])
        return np.where(count > 0, share, np.nan)

    def values_met(self, name: str, field: str) -> Source:
        labelled = "labels" in self.users.settings.traits
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


# Name -> traits of `StatisticsSettings` that it rests on, its numbers, NaN for none, and wording.
_Table = Mapping[str, tuple[str, Callable[..., np.ndarray], Wording]]
_Formulas = dict[str, tuple[Callable[..., np.ndarray], Wording]]
_OF_USERS: _Table = {
    "user_count": ("", lambda u: u.count.events, COUNT),
    "user_positive_percent": ("labels", lambda u: u.user_share, PERCENT),
    "user_mean_value": ("values", lambda u: u.user_mean, VALUE),
}
_OF_CANDIDATES: _Table = {
    "item_count": ("", lambda c: c.if_known(c.count.events), COUNT),
    "item_popularity_top": ("", lambda c: c.top("counts"), TOP),
    "item_popularity_rank": ("", lambda c: c.rank("counts"), WHOLE),
    "item_positive_percent": ("labels", lambda c: c.if_known(c.share), PERCENT),
    "item_liked_top": ("labels", lambda c: c.top("shares"), TOP),
    "item_liked_rank": ("labels", lambda c: c.rank("shares"), WHOLE),
    "item_mean_value": ("values", lambda c: c.if_known(c.mean), VALUE),
    "user_item_times": ("", lambda c: c.had[0], COUNT),
    "user_item_ago": ("", lambda c: c.had[1], AGO),
    "user_neighbours_percent": ("neighbours labels", lambda c: c.pairs[1], PERCENT),
    "user_neighbours_times": ("neighbours purchases", lambda c: c.pairs[1], TIMES),
    "user_taste_difference": ("neighbours values", lambda c: c.pairs[0], DIFFERENCE),
    "user_expected_value": ("factors", lambda c: c.users.expected(c.items, c.owners), VALUE),
    # For each column of `statistics.by`, whose name takes the place of the braces.
    "user_{}_percent": ("labels", lambda c, field: c.share_met(field), PERCENT),
}
_VALUES_MET = "user_{}_counts"


def _existing(table: _Table, settings: StatisticsSettings) -> _Formulas:
    return {
        name: (numbers, wording)
        for name, (needs, numbers, wording) in table.items()
        if settings.traits.issuperset(needs.split())
    }


def _of_candidates(settings: StatisticsSettings) -> _Formulas:
    return {
        name.format(field): (functools.partial(numbers, field=field) if field else numbers, wording)
        for name, (numbers, wording) in _existing(_OF_CANDIDATES, settings).items()
        for field in (settings.by if "{}" in name else ("",))
    }


def user_feature_names(settings: StatisticsSettings) -> tuple[str, ...]:
    """Names of the features of users alone."""
    return tuple(_existing(_OF_USERS, settings))


def feature_names(settings: StatisticsSettings) -> tuple[str, ...]:
    """Names of all features: what a candidate template may ask for."""
    met = map(_VALUES_MET.format, settings.by)
    return (*_of_candidates(settings), *met, *user_feature_names(settings))


def needed_only(options: StatisticsOptions, wanted: Collection[str]) -> StatisticsOptions:
    """Options without what costs most of the work or memory, unless it is wanted."""
    needs = {need for n in wanted if n in _OF_CANDIDATES for need in _OF_CANDIDATES[n][0].split()}
    return dataclasses.replace(
        options,
        neighbours=options.neighbours and "neighbours" in needs,
        factors=options.factors if "factors" in needs else 0,
    )
