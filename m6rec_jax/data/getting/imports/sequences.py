"""Plain sequences: `sequences.txt`, a line `user item item ...` per user, and `items.tsv`.

A line holds the items of a user, oldest first, separated by blanks. `items.tsv` has a header and a
line per item: its id, then columns of text, separated by tabs.
"""

from __future__ import annotations

from pathlib import Path

from m6rec_jax.data.dataset.tables import Source
from m6rec_jax.data.getting.imports.text_files import (
    ITEM,
    POSITION,
    USER,
    Imported,
    TextTable,
    column_names,
    fields,
    header,
    lines,
    words,
)
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

SEQUENCES, ITEMS = "sequences.txt", "items.tsv"


def read_sequences(folder: Path) -> Imported:
    """Reads a folder with both files.

    Raises:
      DataError: a file is missing, or the items have no header.
    """
    sequences = _file(folder, SEQUENCES, "a line `user item item ...` for each user")
    path = _file(
        folder, ITEMS, "a line for each item: its id, a tab, its text. The model reads text"
    )
    first = header(path)
    if len(first) < 2:
        raise DataError(
            f"{path}, line 1: one field, {first[0][:60]!r}; a tab and the text of the item must "
            "follow its id"
        )
    with sequences.open(encoding="utf-8", errors="replace") as file:
        if any(first[0] in line and first[0] in line.split()[1:] for line in file):
            raise DataError(
                f"{path}, line 1: {first[0]!r} is an item of {SEQUENCES}; name the columns in a "
                "line above, such as item_id<tab>title"
            )
    names = column_names(path, [ITEM, *first[1:]])
    # A user's lines are one sequence.
    places = f"""(SELECT file_row_number, {USER}, {ITEM}, row_number() OVER (
        PARTITION BY {USER} ORDER BY file_row_number, place) - 1 AS {POSITION}
      FROM (SELECT file_row_number, words[1] AS {USER}, unnest(words[2:]) AS {ITEM},
          unnest(range(len(words) - 1)) AS place
        FROM (SELECT file_row_number, {words("line")} AS words FROM {lines(sequences)})))"""
    types = {USER: "VARCHAR", ITEM: "VARCHAR", POSITION: "BIGINT"}
    return Imported(
        folder.resolve().name,
        TextTable(path, fields(path, names), dict.fromkeys(names[1:], "string"), names),
        None,
        TextTable(sequences, Source(places, types, 1), {}),
        "the place of an event in its user's line",
        [],
    )


def _file(folder: Path, name: str, content: str) -> Path:
    if not (folder / name).is_file():
        there = sorted(path.name for path in folder.iterdir() if path.is_file())
        raise DataError(
            f"{folder} has no {name}: {content}{did_you_mean(name, there)} "
            f"(there: {', '.join(there[:10]) or 'nothing'})"
        )
    return folder / name
