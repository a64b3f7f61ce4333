"""The fold: statistics counted event by event in the order of time, and rows rendered on the way.

The definition of what `prepare` makes, for tests to compare with. Slow, and short of cleverness.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.schema import DatasetSpec
from m6rec_jax.data.features.neighbours import PairCounts
from m6rec_jax.data.features.past_statistics import Population
from m6rec_jax.data.features.statistics import KnownUser, Statistics, Totals
from m6rec_jax.data.features.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.data.features.timeline import next_refresh
from m6rec_jax.data.features.user_events import Grouping, values_of
from m6rec_jax.data.features.value_factors import FIRST_FIT, ValueFactors
from m6rec_jax.data.rendering.event_views.documents import item_in_document, sentence
from m6rec_jax.data.splitting.negatives import NegativeSampler, asked
from m6rec_jax.data.splitting.splits import EXCLUDED, PARTS, VISIBLE_PARTS
from m6rec_jax.data.store.views import Row
from m6rec_jax.text.records import Event, Item
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.writing_templates import WRITING, common_values

Query = TypeVar("Query")


@dataclasses.dataclass(frozen=True)
class UserEvents:
    """All events of one user in the user's order (time, then position in the file), each `[n]`."""

    user: int
    rows: np.ndarray
    items: np.ndarray
    times: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Rows of one user that share a history.

    Attributes:
      group_id: counted over all users, in the order of the users table and then the user's.
      part: part code of all its rows.
      user: index in the users table.
      time: of the first row, unix seconds; statistics hold events before it.
      items, values: of the rows (NaN for no value), in the user's order.
      history_items, history_times, history_values: visible events before, oldest first.
      seen: items of all visible events before the history's end, ascending; or nothing.
      moment: items of all events at the time of the first row, where `strict`; or nothing.
    """

    group_id: int
    part: int
    user: int
    time: float
    items: list[int]
    values: list[float]
    history_items: list[int]
    history_times: list[float]
    history_values: list[float]
    seen: list[int]
    moment: list[int]


def groups_of_user(
    events: UserEvents,
    codes: np.ndarray,
    grouping: Grouping,
    first_id: int = 0,
    visible_parts: Mapping[int, tuple[int, ...]] = VISIBLE_PARTS,
) -> Iterator[Group]:
    """Groups one user's rows.

    Rows of one part that follow each other directly in the user's order go together; excluded rows
    do not count, all others separate.

    Args:
      events: all events of the user, `[n]`.
      codes: their part codes `[n]`.
      grouping: how.
      first_id: id of the first group.
      visible_parts: part of a row -> parts whose events its history may hold.
    """
    known = codes != EXCLUDED
    times, values = events.times[known], events.values[known]
    items, codes = events.items[known], codes[known]
    rows = np.full(len(codes), grouping.repeats)
    for part in () if grouping.repeats else range(len(PARTS)):
        known = np.flatnonzero(np.isin(codes, (*visible_parts[part], part)))
        first = known[np.unique(items[known], return_index=True)[1]]
        rows[first[codes[first] == part]] = True
    # Found once: a user whom many share, or a bot, has as many groups as events.
    visible = {
        part: np.flatnonzero(np.isin(codes, visible_parts[part])) for part in range(len(PARTS))
    }
    seen = {
        part: _FirstSeen.of(items, positions) if grouping.with_seen or not grouping.strict else None
        for part, positions in visible.items()
    }
    start = 0
    while start < len(codes):
        part, time = int(codes[start]), float(times[start])
        if part not in range(len(PARTS)) or not rows[start]:
            start += 1
            continue
        end = start + 1
        while end < min(len(codes), start + grouping.size) and codes[end] == part and rows[end]:
            end += 1
        cut, of_part = start, seen[part]
        moment: list[int] = []
        if grouping.strict:
            cut = int(np.searchsorted(times, time, "left"))
            if of_part is not None:
                # What came at the same moment, as in one basket, is in no history, and no negative.
                moment = items[cut : int(np.searchsorted(times, time, "right"))].tolist()
        positions = visible[part]
        last = int(np.searchsorted(positions, cut, "left"))
        history = positions[max(0, last - grouping.max_events) : last]
        had = [] if of_part is None else of_part.before(cut)
        own = set(items[start:end].tolist())
        if grouping.strict and own <= set(had) <= own | set(moment):
            start = end
            continue
        yield Group(
            group_id=first_id,
            part=part,
            user=events.user,
            time=time,
            items=items[start:end].tolist(),
            values=values[start:end].tolist(),
            history_items=items[history].tolist(),
            history_times=times[history].tolist(),
            history_values=values[history].tolist(),
            seen=had,
            moment=moment,
        )
        first_id += 1
        start = end


@dataclasses.dataclass(frozen=True, slots=True)
class _FirstSeen:
    """A user's distinct items in the order in which they came, and where: `[distinct]`."""

    items: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, items: np.ndarray, positions: np.ndarray) -> _FirstSeen:
        """Args: the user's items `[n]`, and the positions of those that may be known."""
        distinct, first = np.unique(items[positions], return_index=True)
        order = np.argsort(first)
        return cls(distinct[order], positions[first[order]])

    def before(self, cut: int) -> list[int]:
        """Items that came before a position, in ascending order."""
        return np.sort(self.items[: np.searchsorted(self.positions, cut, "left")]).tolist()


class RowRenderer:
    """Rows of the views, as of the moment the statistics stand at.

    Args:
      dataset: an open data set.
      template: its checked template.
      statistics: as of the moment of the group that is rendered.
      sampler: draws negatives; None for data with logged outcomes.
      negatives: negatives per positive row.
    """

    def __init__(
        self,
        dataset: Dataset,
        template: DatasetTemplate,
        statistics: FoldedStatistics,
        sampler: NegativeSampler | None = None,
        negatives: int = 0,
    ) -> None:
        self._users, self._items = dataset.user_records, dataset.item_records
        self._items_by_id: Mapping[str, Item] = {item.id: item for item in self._items}
        self._template, self._label = template, dataset.spec.label
        self._statistics = statistics
        self._sampler, self._negatives = sampler, negatives
        self._common = {
            kind: common_values(self._items, entry.shared)
            for kind, entry in template.writing.items()
        }

    def row(self, view: str, group: Group) -> Row | None:
        """The row of `view` that a group becomes, None where it becomes none.

        Groups have one event where the view is one of `writing_templates.WRITING`.
        """
        if view in WRITING:
            return self.writing_row(view, group)
        return {
            "groups": self.scoring_row,
            "next_items": self.next_items_row,
            "documents": self.behaviour_document,
        }[view](group)

    def scoring_row(self, group: Group) -> Row:
        """A row of the view 'groups'. Sampled negatives stand after the positive they go with."""
        items, values = group.items, group.values
        labels = self._label.labels(np.asarray(values)).tolist()
        if self._sampler is not None:
            items, values, labels = self._with_negatives(group)
        return {
            **self._of_user(group),
            "candidates": self._candidates(group, items),
            "item_indices": items,
            "labels": labels,
            "ratings": values,
        }

    def next_items_row(self, group: Group) -> Row:
        """A row of the view 'next_items'; the text of an item is the same for all users."""
        return {
            **self._of_user(group),
            "items": [self._template.item(self._items[index]) for index in group.items],
            "item_indices": group.items,
        }

    def behaviour_document(self, group: Group) -> Row:
        """A document: the history, and what the user did next, each with its outcome in words."""
        candidates = [item_in_document(self._template, self._items[index]) for index in group.items]
        texts = [
            sentence(sentence(candidate) + " " + self._template.outcome(value))
            for candidate, value in zip(candidates, group.values, strict=True)
        ]
        return {"kind": "behaviour", "source": self._history(group), "target": " ".join(texts)}

    def writing_row(self, kind: str, group: Group) -> Row | None:
        """A text about an item that the user liked, from what stood in the history before.

        Returns:
          None where the user did not like it, or the template has nothing to say.
        """
        (index,), (value,) = group.items, group.values
        if not self._label.is_positive(value):
            return None
        template, item = self._template.writing[kind], self._items[index]
        liked = [
            past
            for past, worth in zip(group.history_items, group.history_values, strict=True)
            if self._label.is_positive(worth)
        ]
        written = template.written(item, [self._items[past] for past in liked], self._common[kind])
        if written is None:
            return None
        user_id = self._users[group.user].id
        return {
            "text_id": f"{user_id}/{item.id}",
            "text_index": group.group_id,
            "user_id": user_id,
            "item_indices": [index],
            "seen_indices": [],
            "liked_indices": liked,
            "source": template.source(self._history(group), item),
            "prefix": template.render_prefix(item),
            "target": written.text,
            "features": list(written.features),
        }

    def _of_user(self, group: Group) -> Row:
        return {
            "user_id": self._users[group.user].id,
            "user_index": group.user,
            "time": group.time,
            "history": self._history(group),
        }

    def _history(self, group: Group) -> list[str]:
        user = self._users[group.user]
        events = [
            Event(user.id, self._items[item].id, time, value)
            for item, time, value in zip(
                group.history_items, group.history_times, group.history_values, strict=True
            )
        ]
        features = self._known(group).features(group.time)
        return self._template.history_segments(
            user, events, self._items_by_id, group.time, features
        )

    def _candidates(self, group: Group, indices: Sequence[int]) -> list[str]:
        items = [self._items[index] for index in indices]
        found = self._known(group).features_of(items, group.time)
        return list(map(self._template.candidate, items, found))

    def _known(self, group: Group) -> KnownUser:
        """What is known of a group's user."""
        return self._statistics.now().user(self._users[group.user].id)

    def _with_negatives(self, group: Group) -> tuple[list[int], list[float], list[int]]:
        assert self._sampler is not None
        drawn = self._sampler.sample(
            self._statistics,
            key=f"{self._users[group.user].id}:{group.time}:{self._items[group.items[0]].id}",
            positives=group.items,
            seen=group.seen,
            moment=group.moment,
            count=self._negatives,
        )
        items: list[int] = []
        values: list[float] = []
        labels: list[int] = []
        for row in asked(drawn):
            items += [group.items[row], *drawn[row]]
            values += [group.values[row]] + [math.nan] * len(drawn[row])
            labels += [1] + [0] * len(drawn[row])
        return items, values, labels


_OF_ITEMS = {"events": int, "positive": int, "value": float, "holders": int, "square": float}
_OF_EVENTS = {"item": np.int32, "time": float, "value": float, "positive": bool}
_OF_VALUES = {"column": int, "item": int, "name": object}


def _columns(kinds: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    columns = zip(*rows, strict=True) if rows else [()] * len(kinds)
    return {
        name: pa.array(column, pa.string()) if kind is object else np.asarray(column, kind)
        for (name, kind), column in zip(kinds.items(), columns, strict=True)
    }


class FoldedStatistics:
    """Counts events one by one, in lists and dictionaries: the definition of `Statistics`."""

    def __init__(
        self,
        by: Sequence[str] = (),
        at_least: float | None = None,
        has_values: bool = False,
        options: StatisticsOptions | None = None,
    ) -> None:
        self.settings = StatisticsSettings(
            tuple(by), at_least, has_values, options or StatisticsOptions()
        )
        self.totals = Totals()
        self.numbers: dict[str, int] = {}
        self._items: list[Item] = []
        # Of each item: events, positive ones, sum of values, entries in windows, their squares.
        self.counts: list[list[Any]] = []
        self.users: dict[str, list[tuple[int, float, float, bool]]] = {}
        # Of each user: items, values and differences from the mean.
        self._windows: dict[str, list[tuple[int, float, float]]] = {}
        self._pairs = PairsByEvent()
        self._ranks = self._ranked()
        self._next_refresh = 1
        self._factors = ValueFactors.none(self.settings.options.factors if has_values else 0)
        self._next_fit = FIRST_FIT
        self._now: Statistics | None = None

    @classmethod
    def for_dataset(cls, spec: DatasetSpec, options: StatisticsOptions | None = None) -> Self:
        settings = StatisticsSettings.for_dataset(spec, options)
        return cls(settings.by, settings.at_least, settings.has_values, settings.options)

    def update(self, event: Event, item: Item) -> None:
        """Counts the next event, in the order of time."""
        totals, settings = self.totals, self.settings
        self._now = None
        value = 0.0 if event.value is None or math.isnan(event.value) else event.value
        # Before this event counts: its own value must not pull the mean that it is compared with.
        difference = value - (totals.value / totals.events if totals.events else 0.0)
        liked = settings.at_least is None or (
            event.value is not None and event.value >= settings.at_least
        )
        index = self.numbers.setdefault(item.id, len(self.numbers))
        if index == len(self.counts):
            self._items.append(item)
            self.counts.append([0, 0, 0.0, 0, 0.0])
        counts, user = self.counts[index], self.users.setdefault(event.user_id, [])
        for place, amount in enumerate((1, liked, value)):
            counts[place] += amount
        user.append((index, event.time, value, liked))
        self.totals = Totals(
            totals.events + 1,
            totals.positive + liked,
            totals.value + value,
            totals.square + difference * difference,
            event.time,
            len(self.users),
        )
        window = self._windows.setdefault(event.user_id, [])
        if settings.keeps_windows and all(index != other for other, *_ in user[:-1]):
            if settings.options.neighbours and window:
                others, _, differences = zip(*window, strict=True)
                self._pairs.add(index, others, difference * np.asarray(differences))
            window.append((index, value, difference))
            del window[: -settings.options.neighbour_window]
            counts[3] += 1
            counts[4] += difference * difference
        if self.totals.events >= self._next_refresh:
            self._ranks = self._ranked()
            self._next_refresh = next_refresh(self.totals.events)
        if settings.has_factors and self.totals.events >= self._next_fit:
            self._fit_factors()

    def _ranked(self) -> dict[str, Population]:
        """Ranks all items anew. At every event at first, then whenever 2% more events came."""
        counts = np.asarray(self.counts, np.float64).reshape(-1, 5)[:, :2]
        overall = self.totals.positive / self.totals.events if self.totals.events else 0.0
        shares = self.settings.smoothed(counts[:, 1], counts[:, 0], overall)
        return {"counts": Population.of(counts[:, 0]), "shares": Population.of(shares)}

    def _fit_factors(self) -> None:
        windows = self._windows.values()
        self._factors = fit_windows(
            self._factors,
            [[item for item, *_ in window] for window in windows],
            [[value for _, value, _ in window] for window in windows],
            len(self.counts),
            self.settings.options.smoothing,
        )
        growth = self.settings.options.factor_growth
        count = self.totals.events
        self._next_fit = count + max(FIRST_FIT, math.ceil(growth * count))

    def now(self) -> Statistics:
        """What is counted so far."""
        if self._now is None:
            users = dict(sorted(self.users.items()))
            events = [event for user in users.values() for event in user]
            values = [
                (column, item, name)
                for column, field in enumerate(self.settings.by)
                for item, of in enumerate(self._items)
                for name in values_of(of, field)
            ]
            keys, counts = self._pairs.to_arrays()
            ids, rows = list(self.numbers), self.counts
            factors = self._factors.item_factors.T
            tables = {
                "items": {"item_id": pa.array(ids, pa.string()), **_columns(_OF_ITEMS, rows)},
                "users": {
                    "user_id": pa.array(list(users), pa.string()),
                    "events": np.asarray([*map(len, users.values())], np.int64),
                },
                "user_events": _columns(_OF_EVENTS, events),
                "user_values": _columns(_OF_VALUES, values),
                **{kind: ranks._asdict() for kind, ranks in self._ranks.items()},
                "pairs": {"key": keys, "together": counts[:, 0], "products": counts[:, 1]},
                "factors": {
                    "bias": self._factors.item_bias,
                    **{str(number): of for number, of in enumerate(factors)},
                },
            }
            totals = self.totals._replace(factors_mean=self._factors.mean)
            self._now = Statistics(
                self.settings, totals, {k: pa.table(v) for k, v in tables.items()}
            )
            self._now.pairs = self._pairs
        return self._now

    def save(self, path: Path) -> None:
        self.now().save(path)


class PairsByEvent(PairCounts):
    """`PairCounts` in a dictionary, pair by pair: the definition."""

    def __init__(self) -> None:
        self._of_pairs: dict[int, np.ndarray] = {}

    def add(self, index: int, others: Sequence[int], products: np.ndarray) -> None:
        for other, product in zip(others, products.tolist(), strict=True):
            key = min(index, other) << 32 | max(index, other)
            entry = self._of_pairs.setdefault(key, np.zeros(2, np.float32))
            entry += np.asarray([1, product], np.float32)

    def get(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        found = np.zeros((2, len(rows), len(columns)), np.float32)
        for row, one in enumerate(rows.tolist()):
            for column, other in enumerate(columns.tolist()):
                key = min(one, other) << 32 | max(one, other)
                found[:, row, column] = self._of_pairs.get(key, 0.0)
        return found

    def to_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        keys = sorted(self._of_pairs)
        counts = np.asarray([self._of_pairs[key] for key in keys], np.float32)
        return np.asarray(keys, np.int64), counts.reshape(-1, 2)


def fit_windows(
    factors: ValueFactors,
    windows: Sequence[Sequence[int]],
    values: Sequence[Sequence[float]],
    num_items: int,
    smoothing: float,
) -> ValueFactors:
    users = np.repeat(np.arange(len(windows)), list(map(len, windows)))
    items = np.array([i for window in windows for i in window], np.int64)
    given = np.array([v for some in values for v in some], np.float64)
    return factors.fit(users, items, given, num_items, smoothing)


def as_of(
    update: Callable[[Event, Item], None],
    events: Iterable[tuple[Event, Item]],
    queries: Iterable[Query],
    time_of: Callable[[Query], float],
) -> Iterator[Query]:
    """Folds `events` into statistics, stopping at each query's moment.

    While a query is given out, the statistics hold exactly the events before its time. After the
    last query they take in the events that remain.

    Args:
      update: takes the next event, as `Statistics.update`.
      events: in the order of time, with their items.
      queries: in the order of time; infinity means "after all events".
      time_of: the time of a query.

    Yields:
      the queries.
    """
    pending = iter(events)
    following = next(pending, None)
    for query in queries:
        time = time_of(query)
        while following is not None and following[0].time < time:
            update(*following)
            following = next(pending, None)
        yield query
    for event in itertools.chain([following] if following else [], pending):
        update(*event)


class FoldedSampler(NegativeSampler):
    """Draws by statistics that grow: popularity is looked at again when 2% more events came."""

    def __init__(self, item_ids: Sequence[str], *args: Any, **options: Any) -> None:
        super().__init__(len(item_ids), *args, **options)
        self._places = {item_id: index for index, item_id in enumerate(item_ids)}
        self._next_refresh = -1

    def sample(
        self,
        statistics: FoldedStatistics,
        key: str,
        positives: Sequence[int],
        seen: Collection[int],
        moment: Collection[int],
        count: int,
    ) -> list[list[int]]:
        """`draw`, by how popular items are as the statistics stand."""
        if statistics.totals.events >= self._next_refresh:
            self._refresh(statistics)
        return self.draw(self._cumulative, key, positives, seen, moment, count)

    def _refresh(self, statistics: FoldedStatistics) -> None:
        counts = np.zeros(len(self._places))
        for item_id, index in statistics.numbers.items():
            counts[self._places[item_id]] = statistics.counts[index][0]
        self._cumulative = np.cumsum(self.weights(counts))
        self._next_refresh = next_refresh(statistics.totals.events)
