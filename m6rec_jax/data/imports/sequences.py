"""Plain sequences: `sequences.txt`, a line `user item item ...` per user, and `items.tsv`.

A line holds the items of a user, oldest first, separated by blanks. `items.tsv` has a line per
item: its id, then columns of text, separated by tabs. A first line is taken for a header where it
begins with a name of ids, such as `item_id` or `isbn`, which is in no sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data.imports.lines import (
    Lines,
    Report,
    first_line,
    line_batches,
    read_table,
    split_words,
)
from m6rec_jax.data.imports.records import ITEM, LINE, POSITION, USER, Imported
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

SEQUENCES, ITEMS = "sequences.txt", "items.tsv"
_NAMES_OF_IDS = frozenset(("item", "itemid", "iid", "movieid", "productid"))
# As a word of its own: `squid` is an item.
_ENDS_LIKE_AN_ID = re.compile(
    r"(^|[\W_])(id|sku|isbn([\W_]?\d+)?|asin|ean|gtin)$|[a-z]I[dD]$", re.ASCII
)


def read_sequences(folder: Path, report: Report) -> Imported:
    """Reads a folder with both files.

    Args:
      folder: holds them.
      report: collects what is left out.

    Raises:
      DataError: a file is missing, or a line of it is not as this module's docstring says.
    """
    sequences = _file(folder, SEQUENCES, "a line `user item item ...` for each user")
    path = _file(
        folder, ITEMS, "a line for each item: its id, a tab, its text. The model reads text"
    )
    first = first_line(path).split("\t")
    header = _is_name_of_ids(first[0]) and not _is_in_a_sequence(first[0], sequences)
    if len(first) < 2:
        raise DataError(
            f"{path}, line 1: one field, {first[0][:60]!r}; a tab and the text of the item must "
            "follow its id"
        )
    names = [ITEM, *_column_names(path, first[1:] if header else [""] * (len(first) - 1))]
    report.notes.append(
        f"{path.name}: {'a header' if header else 'no header'}; columns {', '.join(names)}"
    )
    kinds = dict.fromkeys(names[1:], "string")
    items = read_table(path, report, names, kinds, ITEM, header=header)
    return Imported(
        name=folder.resolve().name,
        item_file=path,
        event_file=sequences,
        items=items,
        item_columns=kinds,
        users=None,
        user_columns={},
        events=_events(sequences, report),
        has_times=False,
        has_ratings=False,
        order="the place of an event in its user's line",
    )


def _is_name_of_ids(text: str) -> bool:
    text = re.sub(r"^\W+|\W+$", "", text)
    plain = re.sub(r"[\W_]", "", text.lower())
    return plain in _NAMES_OF_IDS or any(map(_ENDS_LIKE_AN_ID.search, (text, text.lower())))


def _is_in_a_sequence(item: str, sequences: Path) -> bool:
    with sequences.open(encoding="utf-8", errors="replace") as lines:
        return any(item in line and item in line.split()[1:] for line in lines)


def _file(folder: Path, name: str, content: str) -> Path:
    if not (folder / name).is_file():
        there = sorted(path.name for path in folder.iterdir() if path.is_file())
        raise DataError(
            f"{folder} has no {name}: {content}{did_you_mean(name, there)} "
            f"(there: {', '.join(there[:10]) or 'nothing'})"
        )
    return folder / name


def _column_names(path: Path, names: list[str]) -> list[str]:
    """Names that templates can say; columns without one are `text`, `text_2`, ..."""
    found: list[str] = []
    for place, name in enumerate(names):
        plain = re.sub(r"\W+", "_", name.strip()).strip("_")
        plain = plain or ("text" if place == 0 else f"text_{place + 1}")
        if plain in (*found, ITEM, LINE):
            raise DataError(f"{path}, line 1: two columns are called {plain!r}; rename one")
        found.append(plain)
    return found


def _events(path: Path, report: Report) -> Iterator[pa.RecordBatch]:
    known: dict[str, int] = {}
    for lines in line_batches(path, report):
        rows = split_words(lines.texts)
        lengths = pc.list_value_length(rows).to_numpy()
        ends = np.cumsum(lengths)
        starts = ends - lengths
        words = rows.flatten()
        users = words.take(pa.array(starts))
        _check_users(lines, users, known)
        report.count("users without items", path, lines.numbers[lengths == 1])
        position = np.arange(len(words)) - np.repeat(starts, lengths)
        of_items = pa.array(position > 0)
        batch = {
            USER: users.take(pa.array(np.repeat(np.arange(len(users)), lengths))),
            ITEM: words,
            POSITION: pa.array(position - 1.0),
            LINE: pa.array(np.repeat(lines.numbers, lengths)),
        }
        yield pa.RecordBatch.from_pydict(batch).filter(of_items)


def _check_users(lines: Lines, users: pa.Array, known: dict[str, int]) -> None:
    for offset, user in enumerate(users.to_pylist()):
        if user in known:
            raise lines.error(
                offset,
                f"user {user!r} is on line {known[user]} already; join the two lines, oldest item "
                "first",
            )
        known[user] = int(lines.numbers[offset])
