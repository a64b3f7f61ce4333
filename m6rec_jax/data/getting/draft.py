"""Drafts a `dataset.json`: which columns are text, what is a positive, the template.

What `m6rec data init` recognised in tables, and what `m6rec data import` read, stand as the tables
`users`, `items` and `events` in the schema `draft` of a database, with the names of their columns.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m6rec_jax.data.dataset.columns import identifier, literal
from m6rec_jax.data.dataset.schema import (
    COUNT,
    OF_REQUESTS,
    DatasetSpec,
    EventsSpec,
    ItemsSpec,
    LabelSpec,
    StatisticsSpec,
    TableSpec,
    protocol_for,
)
from m6rec_jax.data.dataset.tables import Tables
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.format_strings import is_field_name
from m6rec_jax.text.templates import EVENT_FIELDS

# The text of an item, best first. Names of columns that hold no words a model could use.
_TEXTS = ("title", "name", "text", "headline", "summary", "description")
_NO_WORDS = re.compile(r"url|link|image|img|asin|isbn|(^|_)id$", re.IGNORECASE)
# What templates of behaviours name beside columns of items, and requests beside both.
_TAKEN = (*OF_REQUESTS, *EVENT_FIELDS)
# Further columns of an item that a drafted template names.
_MORE_COLUMNS = 4


class Records(NamedTuple):
    """A table of users or items: its id, all other columns (name -> type), and its file."""

    id: str
    columns: Mapping[str, str]
    file: str


def define(database: Tables, table: str, columns: Mapping[str, str], rows: str) -> None:
    """Makes a table of the draft: names and SQL of its columns, and what stands after FROM."""
    selected = ", ".join(f"{value} AS {identifier(name)}" for name, value in columns.items())
    database.rows("CREATE SCHEMA IF NOT EXISTS draft")
    database.rows(f"CREATE VIEW draft.{table} AS SELECT {selected} FROM {rows}")


def write(database: Tables, table: str, path: Path) -> int:
    """Writes a table of the draft to a Parquet file; how many rows it has."""
    to = f"{literal(str(path))} (FORMAT parquet, COMPRESSION zstd)"
    ((count,),) = database.rows(f"COPY (FROM draft.{table}) TO {to}")
    return int(count)


def describe(
    database: Tables,
    name: str,
    users: Records,
    items: Records,
    events: EventsSpec,
    at_least: float | None,
    *,
    has_times: bool = True,
) -> tuple[DatasetSpec, list[str]]:
    """Drafts what describes the tables of the draft.

    Args:
      database: has them.
      name: of the data set.
      users, items, events: their columns; `events.value` is dropped where it tells nothing.
      at_least: from which value an event is a positive; None: what divides events most evenly.
      has_times: whether `events.time` are times, not places in an order.

    Returns:
      The description, and what was decided, in lines for the user.

    Raises:
      DataError: items have no text.
      ConfigError: a threshold that divides nothing.
    """
    # Columns whose names mean something else in requests or templates are not used.
    user_columns = {name: kind for name, kind in users.columns.items() if name not in OF_REQUESTS}
    item_columns = {name: kind for name, kind in items.columns.items() if name not in _TAKEN}
    unused = {*users.columns, *items.columns} - {*user_columns, *item_columns}
    texts = text_columns(database, items)
    counts = {name: _counts(database, name) for name in texts}
    threshold, reason = (
        None,
        "no column of values: every event is a positive, negatives are sampled",
    )
    if events.value is not None:
        value = identifier(events.value)
        query = f"SELECT {value}, count(*) FROM draft.events WHERE {value} IS NOT NULL GROUP BY 1"
        threshold, reason = _positives(dict(database.rows(query)), at_least)
    elif at_least is not None:
        raise ConfigError(
            f"there is no column of ratings that --at-least {at_least:g} could divide"
        )
    share = _repeats(database, events)
    repeats = protocol_for(share)
    by = _counted_by(texts, counts) if threshold is None and has_times else []
    text = counts[texts[0]]
    is_title = item_columns[texts[0]] == "string" and 2 * text.distinct >= text.rows
    spec = DatasetSpec(
        name=name,
        users=TableSpec(users.id, user_columns, users.file),
        items=ItemsSpec(items.id, item_columns, items.file, texts[0] if is_title else None),
        events=events if threshold is not None else dataclasses.replace(events, value=None),
        label=LabelSpec(threshold),
        repeats=repeats,
        template=_template(
            user_columns,
            texts,
            _event_columns(database, texts),
            threshold,
            has_times,
            repeats == COUNT,
            by,
        ),
        statistics=StatisticsSpec(tuple(by)),
    )
    lines = [
        reason,
        f'repeats: "{repeats}": {share:.1%} of the events are of an item that the user had before',
    ]
    if unused:
        names = ", ".join(sorted(unused))
        lines.append(f"columns not used, whose names mean something else: {names}")
    return spec, lines


class _Counts(NamedTuple):
    """Items, those with a value of a column, different values, and without their digits."""

    rows: int
    filled: int
    distinct: int
    words: int


def _counts(database: Tables, column: str) -> _Counts:
    text = f"CAST({identifier(column)} AS VARCHAR)"
    # Sizes and numbers are no words.
    words = rf"regexp_replace({text}, '\d', '', 'g')"
    query = f"SELECT count(*), count({text}), count(DISTINCT {text}), count(DISTINCT {words})"
    return _Counts(*database.rows(f"{query} FROM draft.items")[0])


def text_columns(database: Tables, items: Records) -> list[str]:
    """Columns of items that the template renders; every item must have the first one.

    That is a title, by its name; else the column without gaps that has most different words.

    Raises:
      DataError: there is no text.
    """
    columns = [
        name
        for wanted in ("string", "list<string>")
        for name, kind in items.columns.items()
        if kind == wanted
        and is_field_name(name)
        and not _NO_WORDS.search(name)
        and name not in _TAKEN
    ]
    if not columns:
        raise DataError(
            f"items have no column of text (their columns: {', '.join(items.columns) or 'none'}): "
            "the model reads items as text, so it needs their titles or other words"
        )
    first = [name for word in _TEXTS for name in columns if word in name.lower()]
    if not first:
        counts = {name: _counts(database, name) for name in columns}
        whole = [name for name in columns if counts[name].filled == counts[name].rows]
        first = sorted(whole, key=lambda name: -counts[name].words)
    return list(dict.fromkeys([*first[:1], *columns]))[: 1 + _MORE_COLUMNS]


def _event_columns(database: Tables, texts: Sequence[str]) -> list[str]:
    """Which columns a behaviour names: the first, and those that tell items apart best.

    Columns are added until nine in ten of the items that all of them tell apart are told apart.
    """

    def told_apart(names: Sequence[str]) -> int:
        values = ", ".join(map(identifier, names))
        return int(database.rows(f"SELECT count(DISTINCT ({values}, 0)) FROM draft.items")[0][0])

    columns, enough = [texts[0]], 0.9 * told_apart(texts)
    while told_apart(columns) < enough:
        left = [name for name in texts if name not in columns]
        columns.append(max(left, key=lambda name: told_apart([*columns, name])))
    return [name for name in texts if name in columns]


def _counted_by(texts: Sequence[str], counts: Mapping[str, _Counts]) -> list[str]:
    """The column by which a user's behaviour is counted: the finest of which items share values;
    none where every item has its own value, or most have none.
    """
    shared = {
        name: counts[name].words
        for name in texts
        if counts[name].filled > counts[name].rows / 2
        and 1 < counts[name].words <= counts[name].filled / 2
    }
    return [max(shared, key=shared.__getitem__)] if shared else []


def _positives(ratings: Mapping[float, int], at_least: float | None) -> tuple[float | None, str]:
    """From which rating an event is a positive (None where all have the same), and why."""
    values = np.array(sorted(ratings))
    if len(values) == 1:
        return None, f"every rating is {values[0]:g}, so ratings are left out"
    if at_least is not None and not values[0] < at_least <= values[-1]:
        raise ConfigError(
            f"--at-least {at_least:g} divides nothing: ratings go from {values[0]:g} to "
            f"{values[-1]:g}"
        )
    counts = np.array([ratings[value] for value in values.tolist()])
    reach = counts[::-1].cumsum()[::-1]  # events whose rating is at least that value
    how = "--at-least"
    if at_least is None:
        uneven = np.abs(2 * reach - reach[0])
        at_least = float(values[np.flatnonzero(uneven == uneven[1:].min())[-1]])
        how = "nearest to half; --at-least sets another"
    share = reach[np.searchsorted(values, at_least)] / reach[0]
    return at_least, (
        f"positives are ratings of at least {at_least:g}: {share:.0%} of {reach[0]:,} events "
        f"({how})"
    )


def _repeats(database: Tables, events: EventsSpec) -> float:
    """The share of events with an item that the user had before, each event once."""
    user, item, time = map(identifier, (events.user, events.item, events.time))
    ((share,),) = database.rows(
        f"""SELECT 1 - count(DISTINCT ({user}, {item})) / count(*)
        FROM (SELECT DISTINCT {user}, {item}, {time} FROM draft.events)
        WHERE {user} IS NOT NULL AND {item} IS NOT NULL AND {time} IS NOT NULL"""
    )
    return share or 0.0


def _template(
    user_columns: Mapping[str, str],
    texts: Sequence[str],
    event_texts: Sequence[str],
    threshold: float | None,
    has_times: bool,
    repeats_count: bool,
    by: Sequence[str],
) -> dict[str, Any]:
    """Every item by its text; times and statistics only where there are times.

    Args:
      user_columns: of the users table.
      texts, event_texts: columns of items that a candidate and a behaviour name.
      threshold: of positives; None: every event is one.
      has_times: whether events have real times.
      repeats_count: whether rows want items that the user had before.
      by: columns by which the user's behaviour is counted.
    """
    item, event = map(_listed, (texts, event_texts))
    candidate = item
    if threshold is not None:
        event = f"[{{outcome}} ]{event}"
    if has_times:
        event += "[, {ago}]"
        liked = "[, {item_positive_percent}% of {item_count} liked it]"
        candidate += "[, top {item_popularity_rank}%]" if threshold is None else liked
        candidate += "".join(f"[, had {{user_{name}_counts}}]" for name in by)
    if repeats_count:
        candidate += "[, had it {user_item_times} times"
        candidate += ", last {user_item_ago}]" if has_times else "]"
    template: dict[str, Any] = {"event": event, "candidate": candidate, "item": item}
    about = [name for name in user_columns if is_field_name(name) and not _NO_WORDS.search(name)]
    if about:
        clauses = [f"[, {name.replace('_', ' ')} {{{name}}}]" for name in about]
        template["profile"] = "user" + "".join(clauses)
    if has_times:
        template["context"] = "[{weekday} {part_of_day}]"
    if threshold is not None:
        template["outcomes"] = [{"at_least": threshold, "text": "liked"}, {"text": "disliked"}]
    return template


def _listed(columns: Sequence[str]) -> str:
    return f"{{{columns[0]}}}" + "".join(f"[, {{{name}}}]" for name in columns[1:])
