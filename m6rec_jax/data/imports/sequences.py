"""Plain sequences: `sequences.txt`, a line `user item item ...` per user, and `items.tsv`.

A line holds the items of a user, oldest first, separated by blanks. `items.tsv` has a line per
item: its id, then columns of text, separated by tabs. A first line is taken for a header where it
begins with a name of ids, such as `item_id` or `isbn`, which is in no sequence.
"""

from __future__ import annotations

import re
from pathlib import Path

from m6rec_jax.data.checks import Check
from m6rec_jax.data.imports.lines import fields, first_line, lines, words
from m6rec_jax.data.imports.records import ITEM, POSITION, USER, Imported, ImportedTable
from m6rec_jax.data.tables import Source
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

SEQUENCES, ITEMS = "sequences.txt", "items.tsv"
_NAMES_OF_IDS = frozenset(("item", "itemid", "iid", "movieid", "productid"))
# As a word of its own: `squid` is an item.
_ENDS_LIKE_AN_ID = re.compile(
    r"(^|[\W_])(id|sku|isbn([\W_]?\d+)?|asin|ean|gtin)$|[a-z]I[dD]$", re.ASCII
)

# A line must hold all that a user did.
_USER_ONCE = Check(
    "duplicate_id",
    USER,
    "t.number > r.first",
    "concat('user ', shown(t.user), ' is on line ', r.first + 1, ' already; join the two lines, "
    "oldest item first')",
    "events AS t JOIN (SELECT user, min(number) AS first FROM events GROUP BY user) AS r "
    "USING (user)",
)


def read_sequences(folder: Path) -> Imported:
    """Reads a folder with both files.

    Args:
      folder: holds them.

    Raises:
      DataError: a file is missing, or the first line of the items is no row.
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
    note = f"{path.name}: {'a header' if header else 'no header'}; columns {', '.join(names)}"
    kinds = dict.fromkeys(names[1:], "string")
    places = f"""(SELECT file_row_number, words[1] AS {USER}, unnest(words[2:]) AS {ITEM},
        unnest(range(len(words) - 1)) AS {POSITION}
      FROM (SELECT file_row_number, {words("line")} AS words FROM {lines(sequences)}))"""
    types = {USER: "VARCHAR", ITEM: "VARCHAR", POSITION: "BIGINT"}
    return Imported(
        folder.resolve().name,
        ImportedTable(path, fields(path, names, header=header), names, kinds),
        None,
        ImportedTable(sequences, Source(places, types, 1), (), {}),
        "the place of an event in its user's line",
        [note],
        [_USER_ONCE],
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
        if plain.lower() in (*map(str.lower, found), ITEM):
            raise DataError(f"{path}, line 1: two columns are called {plain!r}; rename one")
        found.append(plain)
    return found
