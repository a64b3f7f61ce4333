"""`m6rec data show`: rows of prepared data as a model reads them, and items that read the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from m6rec_jax.data.store.prepared import Catalogue
from m6rec_jax.data.store.views import text_columns

# How many rows are read for lengths; how many texts of a list are shown.
SAMPLE = 1_000
_MOST_TEXTS = 8


def show_rows(
    view: str, rows: Iterable[Mapping[str, Any]], shown: int, count: Callable[[str], int] | None
) -> Iterator[str]:
    """The first rows of a view, then lengths of the texts of a sample.

    `SAMPLE` of the rows are read, some `shown`; `count` counts tokens of a text, None: no
    vocabulary.
    """
    lengths: dict[str, list[int]] = {name: [] for name in text_columns(view)}
    for number, row in enumerate(itertools.islice(rows, SAMPLE)):
        if number < shown:
            values = (f"{name} {row[name]}" for name in row if name not in lengths)
            yield f"{view}, row {number}: {', '.join(values)}"
        for name, totals in lengths.items():
            texts = [row[name]] if isinstance(row[name], str) else row[name]
            tokens = [count(text) for text in texts] if count else [0] * len(texts)
            totals.append(sum(tokens))
            if number < shown:
                yield f"  {name}: {len(texts)} texts" + f", {sum(tokens)} tokens" * bool(count)
                for length, text in list(zip(tokens, texts, strict=True))[:_MOST_TEXTS]:
                    yield f"    {f'{length:4}  ' if count else ''}{text}"
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
        yield f"    {text!r}: {len(ids)} items, such as {', '.join(ids[:3])}"
