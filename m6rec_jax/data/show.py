"""`m6rec data show`: rows of prepared data as a model reads them, and what is odd about them."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from m6rec_jax.data.prepared import Catalogue
from m6rec_jax.data.values import MISSING_WORD
from m6rec_jax.data.views import COLUMNS, text_columns
from m6rec_jax.text.records import Item

# How many rows are read for lengths and odd values; how many texts of a list are shown.
SAMPLE = 1_000
_MOST_TEXTS = 8
_MISSING = re.compile(MISSING_WORD)
# The same where a template has put values together; in prose "none" is a word like others.
_MISSING_PART = re.compile(r"(?<![\w'])(nan|NaN|NaT|<NA>|None|null|NULL)(?![\w'])")

Count = Callable[[str], int]


def show_rows(
    view: str,
    rows: Iterable[Mapping[str, Any]],
    shown: int,
    count: Count | None,
    items: Iterable[Item] = (),
) -> Iterator[str]:
    """The first rows of a view, then lengths of the texts of a sample.

    Args:
      view: of `views.COLUMNS`.
      rows: of the view; `SAMPLE` of them are read.
      shown: how many are shown.
      count: tokens of a text; None: without a vocabulary.
      items: of the catalogue: a title such as "And Then There Were None" says nothing of a gap.
    """
    titles = _values_with_missing_words(items)
    kinds, texts = COLUMNS[view], text_columns(view)
    lengths: dict[str, list[int]] = {name: [] for name in texts}
    missing = 0
    for number, row in enumerate(itertools.islice(rows, SAMPLE)):
        found = {name: _list(row[name]) for name in texts}
        tokens = {
            name: [count(text) if count else 0 for text in own] for name, own in found.items()
        }
        missing += any(_has_gap(text, titles) for own in found.values() for text in own)
        for name in texts:
            lengths[name].append(sum(tokens[name]))
        if number < shown:
            others = (f"{n} {_plain(row[n], kinds[n][0])}" for n in kinds if n not in texts)
            yield f"{view}, row {number}: {', '.join(others)}"
            for name in texts:
                yield from _show_texts(name, found[name], tokens[name] if count else None)
    if count:
        for name, own in lengths.items():
            if own:
                middle, most = np.percentile(own, [50, 95])
                yield (
                    f"{view}: {name} has {middle:.0f} tokens in the middle, {most:.0f} in 95% of "
                    f"{len(own):,} rows, at most {max(own)}"
                )
    if missing:
        yield (
            f"{view}: {missing:,} of {len(lengths[texts[0]]):,} rows say 'nan', 'None' or 'null': "
            "cells of the tables that hold such a word ought to be empty"
        )


def _values_with_missing_words(items: Iterable[Item]) -> set[str]:
    """Values that have such a word, and more than that."""
    values = (own for item in items for value in item.attributes.values() for own in _list(value))
    texts = (own for own in values if isinstance(own, str) and _MISSING_PART.search(own))
    return {text for text in texts if not _MISSING.match(text)}


def _has_gap(text: str, titles: Collection[str]) -> bool:
    if not _MISSING_PART.search(text):
        return False
    for title in titles:
        text = text.replace(title, "")
    return _MISSING_PART.search(text) is not None


def _show_texts(name: str, texts: Sequence[str], tokens: Sequence[int] | None) -> Iterator[str]:
    total = "" if tokens is None else f", {sum(tokens)} tokens"
    yield f"  {name}: {len(texts)}{total}" if len(texts) != 1 else f"  {name}{total}"
    for place, text in enumerate(texts[:_MOST_TEXTS]):
        yield f"    {'' if tokens is None else f'{tokens[place]:4}  '}{text}"
    if len(texts) > _MOST_TEXTS:
        yield f"    ... {len(texts) - _MOST_TEXTS} more"


def show_catalogue(catalogue: Catalogue, shown: int) -> Iterator[str]:
    """Texts that several items share, and attributes that hold a word for what is missing."""
    sharing: dict[str, list[str]] = {}
    for item, text in zip(catalogue.items, catalogue.texts, strict=True):
        sharing.setdefault(text, []).append(item.id)
    shared = sorted((ids for ids in sharing.values() if len(ids) > 1), key=len, reverse=True)
    if shared:
        yield (
            f"catalogue: {sum(map(len, shared)):,} of {len(catalogue.items):,} items share "
            f"{len(shared):,} texts, so their scores tie and one of them is recommended: say "
            "more of them in the template's 'item' and 'candidate'"
        )
        texts = {ids[0]: text for text, ids in sharing.items()}
        for ids in shared[:shown]:
            more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
            yield f"    {texts[ids[0]]!r}: {', '.join(ids[:3])}{more}"
    odd: dict[str, list[str]] = {}
    for item in catalogue.items:
        for name, value in item.attributes.items():
            if any(_MISSING.match(own) for own in _list(value) if isinstance(own, str)):
                odd.setdefault(name, []).append(item.id)
    for name, ids in odd.items():
        yield (
            f"catalogue: {name!r} of {len(ids):,} items, first {ids[0]}, is a word for what is "
            "missing, such as nan: leave the cell empty"
        )


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(value: Any, kind: str) -> str:
    if kind == "time":
        return datetime.datetime.fromtimestamp(float(value), datetime.UTC).isoformat()
    text = str(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else text[:57] + "..."
