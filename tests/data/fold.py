"""The fold: what `prepare` makes, made the slow way, event by event in the order of time.

The definition, for tests to compare with. Each group of rows is rendered when all events before it
are counted, with the classes that serving renders with.
"""

import itertools
import math
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from m6rec_jax.data.features import co_occurrence
from m6rec_jax.data.features.features import needed_only
from m6rec_jax.data.features.past_statistics import Population
from m6rec_jax.data.features.statistics import KnownUser, Statistics, Totals
from m6rec_jax.data.features.statistics_settings import StatisticsOptions, StatisticsSettings
from m6rec_jax.data.features.timeline import next_refresh, parts_of_users
from m6rec_jax.data.features.user_events import values_of
from m6rec_jax.data.features.value_factors import FIRST_FIT, ValueFactors
from m6rec_jax.data.prepare_options import template_and_options
from m6rec_jax.data.rendering.event_views import EVENT_VIEWS
from m6rec_jax.data.rendering.event_views.documents import item_document, item_in_document, sentence
from m6rec_jax.data.splitting.negatives import NegativeSampler, asked, num_negatives, sampling_rates
from m6rec_jax.data.splitting.splits import EXCLUDED, PARTS, STATISTICS_PARTS
from m6rec_jax.data.store import views
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Event
from m6rec_jax.text.writing_templates import WRITING, common_values

# ---- statistics


class FoldedStatistics:
    """Counts events one by one, in lists and dictionaries: the definition of `Statistics`."""

    def __init__(self, by=(), at_least=None, has_values=False, options=None):
        options = options or StatisticsOptions()
        self.settings = StatisticsSettings(tuple(by), at_least, has_values, options)
        self.totals = Totals()
        self.numbers, self.items = {}, []
        # Of each item: events, positive ones, sum of values, entries in windows, their squares.
        self.counts = []
        # Of each user: item, time, value and whether it is liked; item, value and difference.
        self.users, self.windows = defaultdict(list), defaultdict(list)
        self.pairs = {}
        self.factors = ValueFactors.none(options.factors if has_values else 0)
        self._rank()
        self.next_refresh, self.next_fit, self._now = 1, FIRST_FIT, None
        # What rows of a user know where they may know more than counts for everybody.
        self.of_user, self.may_resemble, self.ahead = defaultdict(list), defaultdict(list), set()

    @classmethod
    def for_dataset(cls, spec, options=None):
        made = StatisticsSettings.for_dataset(spec, options)
        return cls(made.by, made.at_least, made.has_values, made.options)

    def update(self, event, item, of_user_only=False):
        """Counts the next event, in the order of time; or only for rows of its user."""
        if of_user_only:
            self.ahead.add(event.user_id)
        self.of_user[event.user_id].append((event, item))
        known = event.user_id not in self.ahead or item.id in self.numbers
        self.may_resemble[event.user_id].append(known)
        if of_user_only:
            return
        totals, options, self._now = self.totals, self.settings.options, None
        value = 0.0 if event.value is None or math.isnan(event.value) else event.value
        # Before this event counts: its own value must not pull the mean that it is compared with.
        difference = value - (totals.value / totals.events if totals.events else 0.0)
        at_least = self.settings.at_least
        liked = at_least is None or (event.value is not None and event.value >= at_least)
        index = self.numbers.setdefault(item.id, len(self.numbers))
        if index == len(self.counts):
            self.items.append(item)
            self.counts.append([0, 0, 0.0, 0, 0.0])
        counts, user = self.counts[index], self.users[event.user_id]
        for place, amount in enumerate((1, liked, value)):
            counts[place] += amount
        is_new = all(index != other for other, *_ in user)
        user.append((index, event.time, value, liked))
        self.totals = Totals(
            totals.events + 1,
            totals.positive + liked,
            totals.value + value,
            totals.square + difference * difference,
            event.time,
            len(self.users),
        )
        if self.settings.keeps_windows and is_new:
            window = self.windows[event.user_id]
            for other, _, others in window if options.neighbours else ():
                key = min(index, other) << 32 | max(index, other)
                entry = self.pairs.setdefault(key, np.zeros(2, np.float32))
                entry += np.asarray([1, difference * others], np.float32)
            window.append((index, value, difference))
            del window[: -options.neighbour_window]
            counts[3] += 1
            counts[4] += difference * difference
        number = self.totals.events
        if number >= self.next_refresh:
            self._rank()
            self.next_refresh = next_refresh(number)
        if self.settings.has_factors and number >= self.next_fit:
            windows = self.windows.values()
            self.factors = fit_windows(
                self.factors,
                [[item for item, *_ in window] for window in windows],
                [[value for _, value, _ in window] for window in windows],
                len(self.counts),
                options.smoothing,
            )
            self.next_fit = number + max(FIRST_FIT, math.ceil(options.factor_growth * number))

    def _rank(self):
        """Ranks all items anew. At every event at first, then whenever 2% more events came."""
        counts = np.asarray(self.counts, np.float64).reshape(-1, 5)[:, :2]
        overall = self.totals.positive / max(1, self.totals.events)
        shares = self.settings.smoothed(counts[:, 1], counts[:, 0], overall)
        self.ranks = {"counts": Population.of(counts[:, 0]), "shares": Population.of(shares)}

    def now(self):
        """What is counted so far."""
        if self._now is not None:
            return self._now
        users = dict(sorted(self.users.items()))
        values = [
            (column, number, name)
            for column, field in enumerate(self.settings.by)
            for number, item in enumerate(self.items)
            for name in values_of(item, field)
        ]
        keys = sorted(self.pairs)
        pairs = np.asarray([self.pairs[key] for key in keys], np.float32).reshape(-1, 2)
        of_items = {"events": int, "positive": int, "value": float, "holders": int, "square": float}
        of_events = {"item": np.int32, "time": float, "value": float, "positive": bool}
        factors = enumerate(self.factors.item_factors.T)
        tables = {
            "items": {
                "item_id": pa.array(list(self.numbers), pa.string()),
                **_columns(of_items, self.counts),
            },
            "users": {
                "user_id": pa.array(list(users), pa.string()),
                "events": np.asarray([*map(len, users.values())], np.int64),
            },
            "user_events": _columns(of_events, [e for user in users.values() for e in user]),
            "user_values": _columns({"column": int, "item": int, "name": object}, values),
            **{kind: ranks._asdict() for kind, ranks in self.ranks.items()},
            "pairs": {
                "key": np.asarray(keys, np.int64),
                "together": pairs[:, 0],
                "products": pairs[:, 1],
            },
            "factors": {"bias": self.factors.item_bias, **{str(n): of for n, of in factors}},
        }
        totals = self.totals._replace(factors_mean=self.factors.mean)
        self._now = Statistics(self.settings, totals, {k: pa.table(v) for k, v in tables.items()})
        return self._now

    def user_ahead(self, user_id):
        """What the user's own rows know, where that is more than counts for everybody."""
        user = _UserAhead(self.now(), slice(0, 0), self.of_user[user_id])
        user.mask = np.asarray(self.may_resemble[user_id], bool)
        return user

    def save(self, path):
        self.now().save(path)


class _UserAhead(KnownUser):
    def may_resemble(self):
        return self.mask


def _columns(kinds, rows):
    columns = zip(*rows, strict=True) if rows else [()] * len(kinds)
    return {
        name: pa.array(column, pa.string()) if kind is object else np.asarray(column, kind)
        for (name, kind), column in zip(kinds.items(), columns, strict=True)
    }


def fit_windows(factors, windows, values, num_items, smoothing):
    users = np.repeat(np.arange(len(windows)), list(map(len, windows)))
    items = np.array([i for window in windows for i in window], np.int64)
    given = np.array([v for some in values for v in some], np.float64)
    return factors.fit(users, items, given, num_items, smoothing)


def as_of(update, events, queries, time_of):
    """Yields queries, in the order of time, when exactly the events before each are taken in.

    `events` are arguments of `update`, of which an `Event` is the first, in the order of time.
    After the last query those that remain are taken in.
    """
    pending = iter(events)
    following = next(pending, None)
    for query in queries:
        while following is not None and following[0].time < time_of(query):
            update(*following)
            following = next(pending, None)
        yield query
    for event in itertools.chain([following] if following else [], pending):
        update(*event)


def co_occurrence_of(users, items, num_items):
    """How near items came after others, in the order of time, `[items, items]`: the definition."""
    later, last = np.zeros((num_items, num_items), np.int64), defaultdict(list)
    for user, item in zip(users, items, strict=True):
        for distance, other in enumerate(last[user][: co_occurrence.WINDOW], 1):
            if other != item:
                later[other, item] += round(co_occurrence.ONE / distance)
        last[user].insert(0, item)
    return later


# ---- groups


class Happening(NamedTuple):
    """An event, with indices in the tables and the code of its part."""

    user: int
    item: int
    time: float
    value: float
    part: int


class Group(NamedTuple):
    """Rows of one user that share a history; items that the user had, also at that moment."""

    rows: list[Happening]
    history: list[Happening]
    had: set[int]
    moment: set[int]


def groups_of_user(events, how, visible_parts):
    """Groups one user's events, in the user's order, of which none is excluded.

    Rows of one part that follow each other directly go together; all other events separate.
    """

    def is_row(place):
        *_, part = event = events[place]
        if part not in range(len(PARTS)):
            return False
        known = (*visible_parts[part], part)
        earlier = (e for e in events[:place] if e.part in known)
        return how.repeats or all(e.item != event.item for e in earlier)

    start, rows = 0, [is_row(place) for place in range(len(events))]
    while start < len(events):
        first, end = events[start], start + 1
        if not rows[start]:
            start = end
            continue
        most = min(len(events), start + how.size)
        while end < most and rows[end] and events[end].part == first.part:
            end += 1
        known = [e for e in events[:start] if e.part in visible_parts[first.part]]
        if how.strict:
            known = [e for e in known if e.time < first.time]
        had = {e.item for e in known}
        own = {e.item for e in events[start:end]}
        moment = {e.item for e in events if e.time == first.time}
        if not (how.with_seen and own <= had <= own | moment):
            yield Group(events[start:end], known[-how.max_events :], had, moment)
        start = end


# ---- rows


class Folded(NamedTuple):
    """Rows of a view by part, rates of negatives, statistics and co-occurrence after all events."""

    rows: dict[str, list[dict[str, Any]]]
    rates: dict[str, float]
    statistics: FoldedStatistics
    later: np.ndarray


class ViewFold:
    """Renders views of an open data set under one assignment of its events to parts."""

    def __init__(self, dataset, assignment, options, statistics_options=None):
        self.dataset, self.assignment, self.options = dataset, assignment, options
        self.template, self.statistics_options = template_and_options(dataset, statistics_options)
        self.users, self.items = dataset.user_records, dataset.item_records
        columns = ("user_index", "item_index", "time", "value")
        rows = dataset.events().to_pylist()
        self.events = [
            Happening(
                *(math.nan if row[name] is None else row[name] for name in columns),
                int(assignment.codes[row["row"]]),
            )
            for row in sorted(rows, key=lambda row: (row["time"], row["row"]))
        ]
        self.events = [event for event in self.events if event.part != EXCLUDED]
        self.visible_parts = assignment.split.visible_parts

    def counted(self):
        """What statistics may hold, in the order of time: arguments of `update`."""
        of_users = parts_of_users(self.visible_parts)
        for event in self.events:
            if event.part in STATISTICS_PARTS + of_users:
                yield self._event(event), self.items[event.item], event.part in of_users

    def statistics(self, of_history=False):
        """Statistics that hold no event yet; with `of_history` only those of a history."""
        options = self.statistics_options
        if of_history:
            options = needed_only(options, self.template.profile_template.fields)
        return FoldedStatistics.for_dataset(self.dataset.spec, options)

    def render(self, view):
        statistics = self.statistics(view in WRITING)
        rows = defaultdict(list)
        if view == "documents":
            for item, held in zip(self.items, self.assignment.held_out, strict=True):
                if not held:
                    document = item_document(self.template, item)
                    rows["train"].append({"kind": "item", "source": [], "target": document})
        how, by_user = EVENT_VIEWS[view].grouping(self.dataset.spec, self.options), {}
        for event in self.events:
            by_user.setdefault(event.user, []).append(event)
        groups = [
            group
            for _, events in sorted(by_user.items())
            for group in groups_of_user(events, how, self.visible_parts)
        ]
        groups.sort(key=lambda group: group.rows[0].time)
        never = self.assignment.held_out.nonzero()[0].tolist()
        sampler = NegativeSampler(len(self.items), self.options.negative_power, never)
        self._next_weighing = -1
        make = {
            "groups": lambda *of: self._scoring_row(*of, statistics, sampler),
            "next_items": self._next_items_row,
            "documents": self._document,
        }.get(view, lambda *of: self._writing_row(view, *of))
        for group in as_of(statistics.update, self.counted(), groups, lambda g: g.rows[0].time):
            if (row := make(group, self._known(group, statistics))) is not None:
                rows[PARTS[group.rows[0].part]].append(row)
        if not rows:
            raise DataError(f"no row for the view {view!r}")
        schema = views.schema(view)  # ratings are written in 32 bits
        made = {part: pa.Table.from_pylist(of, schema).to_pylist() for part, of in rows.items()}
        counted = [event for event in self.events if event.part in STATISTICS_PARTS]
        pairs = [e.user for e in counted], [e.item for e in counted]
        later = co_occurrence_of(*pairs, len(self.items))
        return Folded(made, dict(sampling_rates(sampler.drawn)), statistics, later)

    def _event(self, event):
        users, items = self.users, self.items
        return Event(users[event.user].id, items[event.item].id, event.time, event.value)

    def _known(self, group, statistics):
        """What is known of a group's user."""
        user_id = self.users[group.rows[0].user].id
        if set(self.visible_parts[group.rows[0].part]) <= set(STATISTICS_PARTS):
            return statistics.now().user(user_id)
        return statistics.user_ahead(user_id)

    def _history(self, group, known):
        first, items = group.rows[0], {item.id: item for item in self.items}
        events = [*map(self._event, group.history)]
        features = known.features(first.time)
        user = self.users[first.user]
        return self.template.history_segments(user, events, items, first.time, features)

    def _of_user(self, group, known):
        first = group.rows[0]
        return {
            "user_id": self.users[first.user].id,
            "user_index": first.user,
            "time": first.time,
            "history": self._history(group, known),
        }

    def _scoring_row(self, group, known, statistics, sampler):
        """Sampled negatives stand after the positive they go with."""
        first, label = group.rows[0], self.dataset.spec.label
        candidates = [(e.item, e.value, int(label.is_positive(e.value))) for e in group.rows]
        if negatives := num_negatives(self.dataset.spec):
            if statistics.totals.events >= self._next_weighing:
                numbers = statistics.numbers
                counts = [
                    statistics.counts[numbers[item.id]][0] if item.id in numbers else 0
                    for item in self.items
                ]
                self._weights = np.cumsum(sampler.weights(np.asarray(counts, float)))
                self._next_weighing = next_refresh(statistics.totals.events)
            drawn = sampler.draw(
                self._weights,
                f"{self.users[first.user].id}:{first.time}:{self.items[first.item].id}",
                [event.item for event in group.rows],
                group.had,
                group.moment,
                negatives,
            )
            candidates = [
                candidate
                for row in asked(drawn)
                for candidate in (candidates[row], *((item, math.nan, 0) for item in drawn[row]))
            ]
        items, values, labels = map(list, zip(*candidates, strict=True))
        records = [self.items[item] for item in items]
        features = known.features_of(records, first.time)
        return {
            **self._of_user(group, known),
            "candidates": [*map(self.template.candidate, records, features)],
            "item_indices": items,
            "labels": labels,
            "ratings": values,
        }

    def _next_items_row(self, group, known):
        items = [event.item for event in group.rows]
        texts = [self.template.item(self.items[item]) for item in items]
        return {**self._of_user(group, known), "items": texts, "item_indices": items}

    def _document(self, group, known):
        """The history, and what the user did next, each with its outcome in words."""
        target = " ".join(
            sentence(
                sentence(item_in_document(self.template, self.items[event.item]))
                + " "
                + self.template.outcome(event.value)
            )
            for event in group.rows
        )
        return {"kind": "behaviour", "source": self._history(group, known), "target": target}

    def _writing_row(self, kind, group, known):
        """A text about an item that the user liked, from what stood in the history before."""
        (event,), is_positive = group.rows, self.dataset.spec.label.is_positive
        template, item = self.template.writing[kind], self.items[event.item]
        liked = [past.item for past in group.history if is_positive(past.value)]
        common = common_values(self.items, template.shared)
        written = template.written(item, [self.items[past] for past in liked], common)
        if not is_positive(event.value) or written is None:
            return None
        user_id = self.users[event.user].id
        return {
            "text_id": f"{user_id}/{item.id}",
            "text_index": 0,  # a row of a table, which the fold has not
            "user_id": user_id,
            "item_indices": [event.item],
            "seen_indices": [],
            "liked_indices": liked,
            "source": template.source(self._history(group, known), item),
            "prefix": template.render_prefix(item),
            "target": written.text,
            "features": list(written.features),
        }
