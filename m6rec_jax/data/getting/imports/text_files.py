"""What the reader of a format gives, and text files of one row a line, with tabs between fields.

Rows are numbered so that line 1 is row 0. Empty lines are no rows.
"""

from __future__ import annotations

import codecs
import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from m6rec_jax.data.dataset.columns import identifier, literal
from m6rec_jax.data.dataset.tables import Source
from m6rec_jax.errors import DataError

# Columns of what is imported, whatever they are called in its files.
USER, ITEM = "user_id", "item_id"
# Of events: unix seconds, or where there are none, the place of an event in an order.
TIMESTAMP, POSITION, RATING = "timestamp", "position", "rating"
# A name that no field can have: how many fields a line has.
WIDTH = "\t"


class TextTable(NamedTuple):
    """A table in a text file.

    Attributes:
      path: the file.
      source: as `data.dataset.tables` reads it.
      columns: attribute column -> type, as in `schema.COLUMN_TYPES`.
      names: of all fields of a line; none where a line is no row.
    """

    path: Path
    source: Source
    columns: Mapping[str, str]
    names: Sequence[str] = ()


class Imported(NamedTuple):
    """Tables of a data set in another format.

    Attributes:
      name: what its files call it.
      items: with the column `ITEM`.
      users: with the column `USER`; None where users have no file.
      events: with the columns `USER`, `ITEM`, `TIMESTAMP` or `POSITION`, and perhaps `RATING`.
      order: where there are no times, what `POSITION` counts; else "".
      notes: for the user: what was not used.
    """

    name: str
    items: TextTable
    users: TextTable | None
    events: TextTable
    order: str
    notes: Sequence[str]


def header(path: Path) -> list[str]:
    """The fields of a file's first line; raises DataError where there is none, or not in UTF-8."""
    with path.open("rb") as file:
        content = file.readline().removeprefix(codecs.BOM_UTF8)
    try:
        line = content.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line 1: invalid UTF-8; save the file as UTF-8") from error
    if not line.strip():
        raise DataError(f"{path}, line 1: nothing there; the first line must name the columns")
    return line.split("\t")


def column_names(path: Path, fields: Iterable[str]) -> list[str]:
    """Names of columns that templates can say; raises DataError where one is none, or is there
    twice.
    """
    names: list[str] = []
    for field in fields:
        name = re.sub(r"\W+", "_", field.strip()).strip("_")
        if not name or name.lower() in map(str.lower, names):
            raise DataError(f"{path}, line 1: the column {name!r} is there twice, or is no name")
        names.append(name)
    return names


def words(text: str) -> str:
    """SQL for the words of a text, between blanks; null where there are none."""
    return f"string_split_regex(nullif(trim({text}, E' \\t'), ''), '[ \\t]+')"


def lines(path: Path) -> str:
    """SQL for the lines of a file, with `file_row_number`."""
    return f"""(SELECT row_number() OVER () - 1 AS file_row_number, line FROM read_csv(
        {literal(glob.escape(str(path)))}, auto_detect = false, header = false, quote = '',
        escape = '', delim = E'\\x1f', columns = {{'line': 'VARCHAR'}}, store_rejects = true,
        max_line_size = 16777216, buffer_size = 67108864))"""


def fields(path: Path, names: Sequence[str], lists: Sequence[str] = ()) -> Source:
    """A file with a header and tabs between fields; `lists` are columns of lists of words."""
    columns = {name: f"fields[{place}]" for place, name in enumerate(names, 1)}
    columns |= {name: words(columns[name]) for name in lists} | {WIDTH: "len(fields)"}
    selected = ", ".join(f"{value} AS {identifier(name)}" for name, value in columns.items())
    sql = f"""(SELECT file_row_number, {selected} FROM (
      SELECT file_row_number, string_split(line, E'\\t') AS fields FROM {lines(path)}
      WHERE trim(line, E' \\t') <> '' AND file_row_number > 0))"""
    types = dict.fromkeys(names, "VARCHAR") | dict.fromkeys(lists, "VARCHAR[]")
    return Source(sql, {**types, WIDTH: "BIGINT"}, 1)
