"""The statistics that requests are answered with: what `prepare` counted, put into words.

`Statistics` is the state after the last event: what was counted of items, and what each user did,
as arrays. Training text and served text come from the same formulas (`features`), so they cannot
drift apart.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.features import neighbours
from m6rec_jax.data.features.features import (
    Features,
    ValuesMet,
    feature_names,
    user_feature_names,
)
from m6rec_jax.data.features.neighbours import ItemSums, PairCounts
from m6rec_jax.data.features.past_statistics import PastStatistics, Population
from m6rec_jax.data.features.statistics_settings import StatisticsSettings
from m6rec_jax.data.features.timeline import Counts
from m6rec_jax.data.features.user_events import ItemValues, Ranges, UserEvents, values_of
from m6rec_jax.data.features.value_factors import ValueFactors
from m6rec_jax.data.features.windows import WindowEntries
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import replaced_folder
from m6rec_jax.text.column_text import Source
from m6rec_jax.text.records import Event, Item, Value

# Raise the number when the same events give other words, too: then text is rendered anew.
FORMAT = "m6rec-statistics-9"
DESCRIPTION = "statistics.json"
# Tables of what each user did begin so.
OF_USERS = "user"
_TABLES = ("items", "users", "user_events", "user_values", "counts", "shares", "pairs", "factors")


class Totals(NamedTuple):
    """Of all events: their number, positive ones, sum of values, sum of squared differences from
    the mean before each, time of the last one; number of users; mean value at the last fit.
    """

    events: int = 0
    positive: int = 0
    value: float = 0.0
    square: float = 0.0
    last_time: float = -math.inf
    users: int = 0
    factors_mean: float = 0.0


class Statistics:
    """The statistics of one data set; `load` reads them.

    Args:
      settings: what is counted.
      totals: of all events.
      tables: by name; items are numbered by their rows, in the order in which they came first:
        items        item_id, events, positive, value; holders and square: how often each entered a
                     user's window, and the sum of squared differences from the mean before
        users        user_id, events (how many)
        user_events  item, time, value, positive; user by user, each user's in order
        user_values  column (number in `by`), item, name; in this order
        counts, shares  value, not_higher: see `Population`, as of the last refresh
        pairs        key, together, products: see `PairCounts.to_arrays`
        factors      bias and one column for each factor, of the items of the last fit

    Attributes:
      share, mean, spread: of all events, as `Timeline` has them.
      item_ids: id -> number.
      items: columns of the table, but for the ids.
      item_values: of each column of `by`, which users' events are counted by.
      pairs, fitted: of items.
    """

    def __init__(
        self, settings: StatisticsSettings, totals: Totals, tables: Mapping[str, pa.Table]
    ) -> None:
        self.settings, self.totals, self._tables = settings, totals, tables
        events = max(1, totals.events)
        self.share, self.mean = totals.positive / events, totals.value / events
        self.spread = math.sqrt(totals.square / events) if totals.square else 1.0
        columns = {
            name: {field: tables[name][field].to_numpy() for field in tables[name].column_names}
            for name in _TABLES
        }
        self.items, users = columns["items"], columns["users"]
        self._ids: list[str] = self.items.pop("item_id").tolist()
        self.item_ids = {id_: number for number, id_ in enumerate(self._ids)}
        # Of an item that is not known nothing was counted.
        self._counts = [np.append(self.items[n], 0) for n in ("events", "positive", "value")]
        self._users = {id_: number for number, id_ in enumerate(users["user_id"].tolist())}
        self._user_start = np.cumsum([0, *users["events"]])
        self.events = columns["user_events"]
        values, names = columns["user_values"], tables["user_values"]["name"]
        self.item_values = {}
        for number, field in enumerate(settings.by):
            some = values["column"] == number
            codes = names.filter(pa.array(some)).combine_chunks().dictionary_encode()
            offsets = np.searchsorted(values["item"][some], np.arange(len(self._ids) + 1))
            self.item_values[field] = ItemValues(
                codes.dictionary.to_pylist(), offsets, codes.indices.to_numpy()
            )
        self._ranks = {kind: Population(**columns[kind]) for kind in ("counts", "shares")}
        key, *counts = columns["pairs"].values()
        self.pairs = PairCounts(len(self._ids), key, np.stack(counts, axis=1))
        bias, *factors = columns["factors"].values()
        of_items = np.reshape(factors, (len(factors), len(bias))).T
        self.fitted = ValueFactors(totals.factors_mean, bias, of_items)

    @classmethod
    def after_all(
        cls,
        past: PastStatistics,
        entries: WindowEntries | None,
        pairs: tuple[np.ndarray, np.ndarray],
        item_ids: Sequence[str],
        user_ids: Sequence[str],
    ) -> Self:
        """The statistics after the last event of a preparation.

        `entries` are those of all windows, None where none are kept; `pairs` of
        `PairCounts.to_arrays`, by numbers of items; ids are in the order of the tables.
        """
        timeline, settings = past.timeline, past.settings
        counted = np.flatnonzero(timeline.counted)
        items = np.argsort(past.item_number)[: len(np.unique(timeline.item[counted]))]
        holders = square = np.zeros(len(items), np.int64)
        if entries is not None:
            order = entries.by_place
            holders = np.bincount(entries.item, minlength=len(items))
            square = np.bincount(
                entries.item[order], entries.difference[order] ** 2, minlength=len(items)
            )
        by_user = counted[np.argsort(timeline.user[counted], kind="stable")]
        users, lengths = np.unique(timeline.user[by_user], return_counts=True)
        fitted = past.fitted.of(-1) if settings.has_factors else ValueFactors.none(0)
        totals = Totals(
            int(timeline.count[-1]),
            int(timeline.positive[-1]),
            float(timeline.total[-1]),
            float(timeline.square[-1]),
            float(timeline.time[counted[-1]]),
            len(users),
            fitted.mean,
        )
        counts = past.of_items(items, np.full(len(items), len(timeline.time)))
        values = {
            number: (past.item_values[field], past.item_values[field].ranges(items))
            for number, field in enumerate(settings.by)
        }
        names = [
            pa.array(of.names, pa.string()).take(pa.array(of.numbers[ranges.numbers]))
            for of, ranges in values.values()
        ]
        columns = [np.full(len(name), number) for number, name in enumerate(names)]
        tables = {
            "items": {
                "item_id": pa.array(item_ids, pa.string()).take(pa.array(items)),
                **counts._asdict(),
                "holders": holders,
                "square": square.astype(float),
            },
            "users": {
                "user_id": pa.array(user_ids, pa.string()).take(pa.array(users)),
                "events": lengths,
            },
            "user_events": {
                "item": past.item_number[timeline.item[by_user]].astype(np.int32),
                "time": timeline.time[by_user],
                "value": timeline.value[by_user],
                "positive": timeline.positive[by_user + 1] > timeline.positive[by_user],
            },
            "user_values": {
                "column": np.concatenate([np.zeros(0, int), *columns]),
                "item": np.concatenate(
                    [np.zeros(0, int), *(ranges.owners for _, ranges in values.values())]
                ),
                "name": pa.chunked_array(names, pa.string()),
            },
            **{kind: of._asdict() for kind, of in past.population(-1).items()},
            "pairs": {"key": pairs[0], "together": pairs[1][:, 0], "products": pairs[1][:, 1]},
            "factors": {
                "bias": fitted.item_bias,
                **{str(number): of for number, of in enumerate(fitted.item_factors.T)},
            },
        }
        return cls(settings, totals, {name: pa.table(table) for name, table in tables.items()})

    # ---- on disk

    def save(self, path: Path) -> None:
        """Writes a folder that `load` reads."""
        settings, totals = dataclasses.asdict(self.settings), self.totals._asdict()
        described = {"format": FORMAT, "settings": settings, "totals": totals}
        with replaced_folder(path) as folder:
            for name, table in self._tables.items():
                pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
            (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote; raises DataError where it is missing, damaged or of another
        format.
        """
        path = Path(path)
        try:
            described = json.loads((path / DESCRIPTION).read_text("utf-8"))
            if described["format"] != FORMAT:
                raise DataError(
                    f"{path}: format {described['format']!r}, expected {FORMAT!r}; prepare the "
                    "data set again"
                )
            tables = {name: pq.read_table(path / f"{name}.parquet") for name in _TABLES}
            settings = StatisticsSettings.from_dict(described["settings"])
            return cls(settings, Totals(**described["totals"]), tables)
        except FileNotFoundError as error:
            raise DataError(
                f"{path} holds no whole statistics ({error}); `m6rec data prepare` writes them"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(f"{path}: the statistics are damaged: {error}") from error

    # ---- one user

    def user(self, user_id: str, behaviours: Iterable[tuple[Event, Item]] = ()) -> KnownUser:
        """What is known of a user, who may be unknown, or empty, with behaviours, oldest first,
        that these statistics do not hold. Of a known user only those later than the last one
        counted are taken.
        """
        number = self._users.get(user_id)
        stored = slice(0, 0) if number is None else slice(*self._user_start[number : number + 2])
        last = self.events["time"][stored.stop - 1] if number is not None else -math.inf
        return KnownUser(self, stored, [(e, item) for e, item in behaviours if e.time > last])

    def items_had(self, user_id: str) -> set[str]:
        """Ids of the items that were counted of a user, who may be unknown."""
        return {self._ids[number] for number in self.user(user_id).item.tolist()}

    def sums(self, items: np.ndarray) -> ItemSums:
        """What pairs of items need to know of each `[n]`."""
        counts, of = self.of_items(items, items), self.items
        means = self.settings.smoothed(counts.value, counts.events, self.mean)
        return ItemSums(of["holders"][items], of["square"][items], means)

    # ---- as `past_statistics.PastStatistics` has it, at the only place there is

    def overall(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        one = np.ones(len(places))
        return one * self.share, one * self.mean, one * self.spread

    def of_items(self, items: np.ndarray, places: np.ndarray) -> Counts:
        number = np.minimum(items, len(self.item_ids))
        return Counts(*(column[number] for column in self._counts))

    def standing(self, kind: str, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self._ranks[kind].standing(numbers)

    def factors(self, places: np.ndarray) -> Iterator[tuple[ValueFactors, np.ndarray]]:
        if len(self.fitted.item_bias):
            yield self.fitted, np.arange(len(places))

    def numbers(self, items: np.ndarray) -> np.ndarray:
        return items


class KnownUser(UserEvents):
    """One user's events: those `stored` in statistics, and `later` ones: see `Statistics.user`.

    Items that the statistics do not know have numbers beyond those that they know.
    """

    def __init__(
        self, statistics: Statistics, stored: slice, later: Sequence[tuple[Event, Item]]
    ) -> None:
        self.statistics, self.later = statistics, later
        self._new: dict[object, int] = {}
        at_least = statistics.settings.at_least
        values = [math.nan if event.value is None else event.value for event, _ in later]
        columns = (
            [self.number(item) for _, item in later],
            [event.time for event, _ in later],
            values,
            [at_least is None or value >= at_least for value in values],
        )
        item, time, value, liked = (
            np.concatenate([of[stored], np.asarray(more, of.dtype)])
            for of, more in zip(statistics.events.values(), columns, strict=True)
        )
        past = np.arange(len(item))
        super().__init__(item, time, value, liked, past, np.zeros_like(past))

    def features(self, time: float | None = None) -> dict[str, Value]:
        """What is known of the user alone: see `features_of`."""
        return _at(self._as_of(time, ()).of_users(user_feature_names(self.statistics.settings)), 0)

    def features_of(
        self,
        items: Sequence[Item],
        time: float | None = None,
        names: Collection[str] | None = None,
    ) -> list[dict[str, Value]]:
        """What is known of the user and items, which may be unknown: features of each item.

        `time` is the moment, unix seconds, None for "after all events"; `names` are those that are
        wanted, and perhaps others, None: all. Raises DataError where an event at `time` or later
        was counted already, so that they would leak the future.
        """
        features = self._as_of(time, items)
        numbers = np.asarray([self.number(item) for item in items], np.int64)
        owners = np.zeros(len(items), np.int64)
        wanted = feature_names(self.statistics.settings) if names is None else names
        sources = features.of_candidates(wanted, owners, numbers, features.pairs(numbers))
        return [_at(sources, number) for number in range(len(items))]

    def _as_of(self, time: float | None, items: Sequence[Item]) -> _ServedFeatures:
        last = self.statistics.totals.last_time
        if time is not None and time <= last:
            raise DataError(
                f"statistics hold an event at {last}, so there are none as of {time}: that would "
                "leak the future"
            )
        return _ServedFeatures(self, math.nan if time is None else time, items)

    def number(self, item: Item) -> int:
        """The number of an item; a new one for each item without an id."""
        known = self.statistics.item_ids
        number = known.get(item.id)
        if number is None:
            return self._new.setdefault(item.id or object(), len(known) + len(self._new))
        return number

    def may_resemble(self) -> np.ndarray:
        """An item of which nothing else is known resembles no other."""
        return self.item < len(self.statistics.item_ids)


class _ServedFeatures(Features):
    """Features of one user, and of items that may have other values than were counted."""

    def __init__(self, user: KnownUser, time: float, items: Sequence[Item]) -> None:
        zero, number = np.zeros(1, np.int64), np.asarray([len(user.past)])
        moment = np.asarray([time])
        super().__init__(user.statistics, user, Ranges(zero, number), zero, moment, {})
        self._user, self._candidates = user, items

    def values_met(self, field: str, items: np.ndarray, owners: np.ndarray) -> ValuesMet:
        user = self._user
        values, stored = user.statistics.item_values[field], len(user.item) - len(user.later)
        ranges = values.ranges(user.item[:stored])
        numbers = values.numbers[ranges.numbers]
        events = np.bincount(numbers, minlength=len(values.names))
        positive = np.bincount(numbers, user.liked[:stored][ranges.owners], len(values.names))
        met: dict[str, tuple[int, int]] = {
            values.names[n]: (int(events[n]), int(positive[n]))
            for n in np.flatnonzero(events).tolist()
        }
        for (_, item), liked in zip(user.later, user.liked[stored:].tolist(), strict=True):
            for name in values_of(item, field):
                count, good = met.get(name, (0, 0))
                met[name] = count + 1, good + liked
        names = [(n, o) for n, i in enumerate(self._candidates) for o in values_of(i, field)]
        counts = [met.get(name, (0, 0)) for _, name in names]
        events, positive = np.asarray(counts, np.int64).reshape(-1, 2).T
        candidate = np.asarray([number for number, _ in names], np.int64)
        return ValuesMet(candidate, [name for _, name in names], events, positive)

    def pairs(self, items: np.ndarray) -> np.ndarray:
        """What pairs of items say: see `Features.of_candidates`."""
        answers = np.full((2, len(items)), np.nan)
        statistics, user = self._user.statistics, self._user
        known = items < len(statistics.item_ids)
        if not self.settings.options.neighbours or not known.any():
            return answers
        positions, windows = user.windows(self.known, self.settings.options.neighbour_window)
        window = positions[windows.numbers]
        if len(window):
            inside = user.item[window]
            answers[:, known] = neighbours.features(
                self.settings,
                statistics.pairs.get(items[known], inside),
                statistics.sums(items[known]),
                statistics.sums(inside),
                user.worth[window],
                statistics.totals.users,
                float(self.user_share[0]),
            )
        return answers


def _at(sources: Mapping[str, Source], number: int) -> dict[str, Value]:
    """The words about one of the users or candidates."""
    words: dict[str, Value] = {}
    for source in sources.values():
        words |= source.at(number)
    return words
