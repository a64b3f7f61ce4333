"""`m6rec data show`: rows of prepared data as a model reads them, and items that read the same."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from m6rec_jax.data.prepared import Catalogue
from m6rec_jax.data.views import COLUMNS, text_columns

# How many rows are read for lengths; how many texts of a list are shown.
SAMPLE = 1_000
_MOST_TEXTS = 8


def show_rows(
    view: str, rows: Iterable[Mapping[str, Any]], shown: int, count: Callable[[str], int] | None
) -> Iterator[str]:
    """The first rows of a view, then lengths of the texts of a sample.

    Args:
      view: of `views.COLUMNS`.
      rows: of the view; `SAMPLE` of them are read.
      shown: how many are shown.
      count: tokens of a text; None: without a vocabulary.
    """
    names = text_columns(view)
    lengths: dict[str, list[int]] = {name: [] for name in names}
    for number, row in enumerate(itertools.islice(rows, SAMPLE)):
        if number < shown:
            others = (
                f"{name} {_plain(row[name], kind)}"
                for name, (kind, _) in COLUMNS[view].items()
                if name not in names
            )
            yield f"{view}, row {number}: {', '.join(others)}"
        for name in names:
            texts = [row[name]] if isinstance(row[name], str) else row[name]
            tokens = [count(text) for text in texts] if count else []
            lengths[name].append(sum(tokens))
            if number < shown:
                total = f", {sum(tokens)} tokens" if count else ""
                yield f"  {name}: {len(texts)}{total}" if len(texts) != 1 else f"  {name}{total}"
                for place, text in enumerate(texts[:_MOST_TEXTS]):
                    yield f"    {f'{tokens[place]:4}  ' if count else ''}{text}"
                if len(texts) > _MOST_TEXTS:
                    yield f"    ... {len(texts) - _MOST_TEXTS} more"
    for name, numbers in lengths.items():
        if count and numbers:
            middle, most = np.percentile(numbers, [50, 95])
            yield (
                f"{view}: {name} has {middle:.0f} tokens in the middle, {most:.0f} in 95% of "
                f"{len(numbers):,} rows, at most {max(numbers)}"
            )


def show_catalogue(catalogue: Catalogue, shown: int) -> Iterator[str]:
    """Texts that several items share."""
    sharing: dict[str, list[str]] = {}
    for item, text in zip(catalogue.items, catalogue.texts, strict=True):
        sharing.setdefault(text, []).append(item.id)
    shared = {text: ids for text, ids in sharing.items() if len(ids) > 1}
    if shared:
        yield (
            f"catalogue: {sum(map(len, shared.values())):,} of {len(catalogue.items):,} items "
            f"share {len(shared):,} texts, so their scores tie and one of them is recommended: say "
            "more of them in the template's 'item' and 'candidate'"
        )
    for text, ids in sorted(shared.items(), key=lambda pair: -len(pair[1]))[:shown]:
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        yield f"    {text!r}: {', '.join(ids[:3])}{more}"


def _plain(value: Any, kind: str) -> str:
    if kind == "time":
        return datetime.datetime.fromtimestamp(float(value), datetime.UTC).isoformat()
    text = str(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 60 else text[:57] + "..."
