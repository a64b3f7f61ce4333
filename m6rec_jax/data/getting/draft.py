"""Drafts the `dataset.json` of tables that were read: titles, positives, repeats, the template.

`m6rec data init` and `m6rec data import` both read tables into `data.dataset.tables` and then draft
what describes them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from m6rec_jax.data.dataset.checks import REPEATED
from m6rec_jax.data.dataset.schema import (
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
RESERVED = {"users": OF_REQUESTS, "items": (*OF_REQUESTS, *EVENT_FIELDS)}
# Further columns of an item that a drafted template names.
_MORE_COLUMNS = 4


class _Text(NamedTuple):
    """A column of items: its slot, rows with a value, different values, and without digits."""

    slot: str
    filled: int
    distinct: int
    words: int


def without_reserved(table: str, columns: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    """Columns (name -> type) of users or items that may be declared; notes what is left out."""
    if unused := sorted({*columns} & {*RESERVED[table]}):
        names = ", ".join(unused)
        notes.append(f"{table}: columns not used, whose names mean something else: {names}")
    return {name: kind for name, kind in columns.items() if name not in unused}


def add_users(tables: Tables) -> int:
    """Gives users a row each that events name and their table lacks; how many these are."""
    ((count,),) = tables.rows(
        """INSERT INTO users BY NAME
        SELECT user AS id, min(row) + (SELECT coalesce(max(row) + 1, 0) FROM users) AS row
        FROM good_events ANTI JOIN users ON id = user WHERE user IS NOT NULL GROUP BY user"""
    )
    tables.num_rows["users"] += count
    return int(count)


def draft(
    tables: Tables,
    name: str,
    users: TableSpec,
    items: TableSpec,
    events: EventsSpec,
    at_least: float | None,
    *,
    has_times: bool = True,
) -> tuple[DatasetSpec, list[str]]:
    """Drafts what describes the rows of a data set, and says what was decided, in lines for the
    user.

    Args:
      tables: have the rows.
      name: of the data set.
      users, items, events: their columns; `events.value` is dropped where it tells nothing.
      at_least: from which value an event is a positive; None: what divides events most evenly.
      has_times: whether `events.time` are times, not places in an order.

    Raises:
      DataError: items have no text.
      ConfigError: a threshold that divides nothing.
    """
    texts = _texts(tables, items)
    title, text = next(iter(texts.items()))
    is_title = items.columns[title] == "string" and 2 * text.distinct >= tables.num_rows["items"]
    threshold, reason = _positives(tables, events, at_least)
    query = f"""SELECT {REPEATED} FROM (SELECT DISTINCT user, item, time FROM events
      WHERE user IS NOT NULL AND item IS NOT NULL AND time IS NOT NULL)"""
    share = tables.rows(query)[0][0] or 0.0
    by = _counted_by(tables, texts) if threshold is None and has_times else ()
    spec = DatasetSpec(
        name=name,
        users=users,
        items=ItemsSpec(items.id, items.columns, items.file, title if is_title else None),
        events=events if threshold is not None else dataclasses.replace(events, value=None),
        label=LabelSpec(threshold),
        repeats=protocol_for(share),
        statistics=StatisticsSpec(by),
    )
    template = _template(spec, [*texts], _event_texts(tables, texts), has_times)
    of_repeats = f"{share:.1%} of the events are of an item that the user had before"
    decided = [reason, f'repeats: "{spec.repeats}": {of_repeats}']
    return dataclasses.replace(spec, template=template), decided


def _texts(tables: Tables, items: TableSpec) -> dict[str, _Text]:
    """Columns of items that the template renders; every item must have the first one.

    That is a title, by its name; else the column without gaps that has most different words.

    Raises:
      DataError: there is no text.
    """
    slots = {name: slot for slot, name, _ in tables.columns["items"]}
    texts = {}
    for wanted in ("string", "list<string>"):
        for name, kind in items.columns.items():
            if kind == wanted and _has_words(name):
                text = f"CAST({slots[name]} AS VARCHAR)"
                words = rf"regexp_replace({text}, '\d', '', 'g')"
                counts = f"count({text}), count(DISTINCT {text}), count(DISTINCT {words})"
                (row,) = tables.rows(f"SELECT {counts} FROM items")
                texts[name] = _Text(slots[name], *row)
    if not texts:
        raise DataError(
            f"items have no column of text (their columns: {', '.join(items.columns) or 'none'}): "
            "the model reads items as text, so it needs their titles or other words"
        )
    first = [name for word in _TEXTS for name in texts if word in name.lower()]
    if not first:
        whole = [name for name, text in texts.items() if text.filled == tables.num_rows["items"]]
        first = sorted(whole, key=lambda name: -texts[name].words)
    names = list(dict.fromkeys([*first[:1], *texts]))
    return {name: texts[name] for name in names[: 1 + _MORE_COLUMNS]}


def _event_texts(tables: Tables, texts: Mapping[str, _Text]) -> list[str]:
    """Which columns a behaviour names: the first, and those that tell items apart best.

    Columns are added until nine in ten of the items that all of them tell apart are told apart.
    """

    def told_apart(names: Collection[str]) -> int:
        slots = ", ".join(texts[name].slot for name in names)
        return int(tables.rows(f"SELECT count(DISTINCT ({slots}, 0)) FROM items")[0][0])

    names, enough = [next(iter(texts))], 0.9 * told_apart(texts)
    while told_apart(names) < enough:
        left = [name for name in texts if name not in names]
        names.append(max(left, key=lambda name: told_apart([*names, name])))
    return [name for name in texts if name in names]


def _counted_by(tables: Tables, texts: Mapping[str, _Text]) -> tuple[str, ...]:
    """The column by which a user's behaviour is counted: the finest of which items share values;
    none where every item has its own value, or most have none.
    """
    shared = {
        name: text.words
        for name, text in texts.items()
        if text.filled > tables.num_rows["items"] / 2 and 1 < text.words <= text.filled / 2
    }
    return (max(shared, key=shared.__getitem__),) if shared else ()


def _positives(
    tables: Tables, events: EventsSpec, at_least: float | None
) -> tuple[float | None, str]:
    """From which value an event is a positive (None where all are), and why."""
    if events.value is None:
        if at_least is not None:
            raise ConfigError(
                f"there is no column of ratings that --at-least {at_least:g} could divide"
            )
        return None, "no column of values: every event is a positive, negatives are sampled"
    # Each value, ascending, and how many events have at least that.
    values = tables.rows(
        """SELECT value, sum(count(*)) OVER (ORDER BY value DESC)::BIGINT
        FROM events WHERE value IS NOT NULL GROUP BY value ORDER BY value"""
    )
    if len(values) < 2:
        same = f"every rating is {values[0][0]:g}" if values else "no event has a rating"
        return None, f"{same}, so ratings are left out"
    (least, number), most = values[0], values[-1][0]
    how = "--at-least"
    if at_least is None:
        at_least = min(reversed(values[1:]), key=lambda one: abs(2 * one[1] - number))[0]
        how = "nearest to half; --at-least sets another"
    elif not least < at_least <= most:
        raise ConfigError(
            f"--at-least {at_least:g} divides nothing: ratings go from {least:g} to {most:g}"
        )
    share = next(reach for value, reach in values if value >= at_least) / number
    return at_least, (
        f"positives are ratings of at least {at_least:g}: {share:.0%} of {number:,} events ({how})"
    )


def _template(
    spec: DatasetSpec, texts: Sequence[str], event_texts: Sequence[str], has_times: bool
) -> dict[str, Any]:
    """Every item by its text; times and statistics only where there are times.

    `texts` and `event_texts` are the columns of items that a candidate and a behaviour name.
    """
    item, event = map(_listed, (texts, event_texts))
    candidate, threshold = item, spec.label.at_least
    if threshold is not None:
        event = f"[{{outcome}} ]{event}"
    if has_times:
        event += "[, {ago}]"
        liked = "[, {item_positive_percent}% of {item_count} liked it]"
        candidate += "[, top {item_popularity_rank}%]" if threshold is None else liked
        candidate += "".join(f"[, had {{user_{name}_counts}}]" for name in spec.statistics.by)
    if spec.repeats_count:
        candidate += "[, had it {user_item_times} times"
        candidate += ", last {user_item_ago}]" if has_times else "]"
    template: dict[str, Any] = {"event": event, "candidate": candidate, "item": item}
    if of_users := list(filter(_has_words, spec.users.columns)):
        clauses = [f"[, {name.replace('_', ' ')} {{{name}}}]" for name in of_users]
        template["profile"] = "user" + "".join(clauses)
    if has_times:
        template["context"] = "[{weekday} {part_of_day}]"
    if threshold is not None:
        template["outcomes"] = [{"at_least": threshold, "text": "liked"}, {"text": "disliked"}]
    return template


def _has_words(name: str) -> bool:
    """Whether a template can name a column, which may say something."""
    return is_field_name(name) and not _NO_WORDS.search(name)


def _listed(columns: Sequence[str]) -> str:
    return f"{{{columns[0]}}}" + "".join(f"[, {{{name}}}]" for name in columns[1:])
