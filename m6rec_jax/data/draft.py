"""What a drafted `dataset.json` says: which columns are text, what is a positive, the template."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.data.schema import OF_REQUESTS
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.format_strings import is_field_name
from m6rec_jax.text.templates import EVENT_FIELDS

# The text of an item, best first. Names of columns that hold no words a model could use.
_TEXTS = ("title", "name", "text", "headline", "summary", "description")
_NO_WORDS = re.compile(r"url|link|image|img|asin|isbn|(^|_)id$", re.IGNORECASE)
_DIGITS = re.compile(r"\d")
# Further columns of an item that a drafted template names.
_MORE_COLUMNS = 4
# What `without_taken` leaves out, for the user.
NOT_USED = "columns not used, whose names mean something else"


def without_taken(columns: Mapping[str, str], of_items: bool = False) -> dict[str, str]:
    """Columns of users or items, but for those whose names mean something else.

    Args:
      columns: name -> type, as in `schema.TableSpec`.
      of_items: whether they are of items, beside which templates of behaviours name `EVENT_FIELDS`.
    """
    taken = (*OF_REQUESTS, *(EVENT_FIELDS if of_items else ()))
    return {name: kind for name, kind in columns.items() if name not in taken}


def drafted_event(texts: Sequence[str], items: Mapping[str, Sequence[Any]]) -> list[str]:
    """Which columns a behaviour names: the first, and those that tell items apart best.

    Columns are added until nine in ten of the items that all of them tell apart are told apart.

    Args:
      texts: of `text_columns`.
      items: values by column, one for each item.
    """

    def told_apart(names: Sequence[str]) -> int:
        return len(set(zip(*(map(str, items[name]) for name in names), strict=True)))

    named = [texts[0]]
    while told_apart(named) < 0.9 * told_apart(texts):
        left = [name for name in texts if name not in named]
        named.append(max(left, key=lambda name: told_apart([*named, name])))
    return [name for name in texts if name in named]


def counted_by(texts: Sequence[str], items: Mapping[str, Sequence[Any]]) -> list[str]:
    """The column by which a user's behaviour is counted: the finest of which items share values.

    Args:
      texts: of `text_columns`.
      items: values by column, one for each item.

    Returns:
      one name, or none where every item has its own value, or most have none.
    """
    found: dict[str, int] = {}
    for name in texts:
        given = [str(value) for value in items[name] if value is not None]
        distinct = len({_DIGITS.sub("", value) for value in given})
        if len(given) > len(items[name]) / 2 and 1 < distinct <= len(given) / 2:
            found[name] = distinct
    return [max(found, key=found.__getitem__)] if found else []


def text_columns(
    item_columns: Mapping[str, str], item_file: Path, items: Mapping[str, Sequence[Any]]
) -> list[str]:
    """Columns of items that the template renders; every item must have the first one.

    That is a title, by its name; else the column without gaps that has most different words.

    Args:
      item_columns: name -> type, as in `schema.TableSpec`.
      item_file: for the message.
      items: values by column, one for each item.

    Raises:
      DataError: there is no text.
    """
    columns = [
        name
        for kind in ("string", "list<string>")
        for name, of in item_columns.items()
        if of == kind and is_field_name(name) and not _NO_WORDS.search(name)
    ]
    if not columns:
        raise DataError(
            f"{item_file} has no column of text (its columns: "
            f"{', '.join(item_columns) or 'none'}): the model reads items as text, so it "
            "needs their titles or other words"
        )
    named = [name for word in _TEXTS for name in columns if word in name.lower()]
    if not named:
        whole = [name for name in columns if all(items[name])]
        # Sizes and numbers are no words.
        named = sorted(whole, key=lambda name: -len({_DIGITS.sub("", str(v)) for v in items[name]}))
    return list(dict.fromkeys([*named[:1], *columns]))[: 1 + _MORE_COLUMNS]


def title_column(texts: Sequence[str], items: Mapping[str, Sequence[Any]]) -> str | None:
    """The first text, where it is of words and at least half of the items have one of their own.

    Args:
      texts: of `text_columns`.
      items: values by column, one for each item.
    """
    values = items[texts[0]]
    is_title = isinstance(values[0], str) and 2 * len(set(values)) >= len(values)
    return texts[0] if is_title else None


def positives(
    ratings: Mapping[float, int], at_least: float | None = None
) -> tuple[float | None, str]:
    """From which rating an event is a positive (None where all have the same), and why.

    Args:
      ratings: rating -> how many events have it.
      at_least: what the user wants; None: what divides the events most evenly.

    Raises:
      ConfigError: a threshold by which all events, or none, would be positives.
    """
    values = np.array(sorted(ratings))
    counts = np.array([ratings[value] for value in values.tolist()])
    if len(values) == 1:
        return None, f"every rating is {values[0]:g}, so ratings are left out"
    if at_least is not None and not values[0] < at_least <= values[-1]:
        raise ConfigError(
            f"--at-least {at_least:g} divides nothing: ratings go from {values[0]:g} to "
            f"{values[-1]:g}"
        )
    reach = counts[::-1].cumsum()[::-1]  # events whose rating is at least that value
    if at_least is None:
        uneven = np.abs(2 * reach - reach[0])
        place = int(np.flatnonzero(uneven == uneven[1:].min())[-1])
        chosen, how = float(values[place]), "nearest to half; --at-least sets another"
    else:
        place = int(np.searchsorted(values, at_least))
        chosen, how = at_least, "--at-least"
    return chosen, (
        f"positives are ratings of at least {chosen:g}: {reach[place] / reach[0]:.0%} of "
        f"{reach[0]:,} events ({how})"
    )


def drafted_template(
    user_columns: Iterable[str],
    texts: Sequence[str],
    threshold: float | None,
    has_times: bool,
    repeats_count: bool = False,
    event_texts: Sequence[str] = (),
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """A draft: every item by its text, times and statistics only where there are times.

    Args:
      user_columns: of the users table.
      texts: of `text_columns`.
      threshold: of `positives`.
      has_times: whether events have real times.
      repeats_count: whether rows want items that the user had before.
      event_texts: of `texts`, what a behaviour names; none: the first one.
      by: columns by which the user's behaviour is counted.
    """
    item, event = map(_listed, (texts, event_texts or texts[:1]))
    candidate = item
    if threshold is not None:
        event = f"[{{outcome}} ]{event}"
    if has_times:
        event += "[, {ago}]"
        liked = "[, {item_positive_percent}% of {item_count} liked it]"
        candidate += "[, top {item_popularity_rank}%]" if threshold is None else liked
        candidate += "".join(f"[, had {{user_{name}_counts}}]" for name in by)
    if repeats_count:
        candidate += "[, had it {user_item_times} times, last {user_item_ago}]"
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
