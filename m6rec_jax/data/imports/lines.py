"""Text files of one row a line, tabs between fields and no quotes, as `data.tables` reads them.

Rows are numbered so that line 1 is row 0. Empty lines are no rows.
"""

from __future__ import annotations

import codecs
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

from m6rec_jax.data.columns import identifier, literal
from m6rec_jax.data.tables import Source
from m6rec_jax.errors import DataError

# A name that no field can have: how many fields a line has.
WIDTH = "\t"
# What separates the words of a line or a list.
_BLANKS = r"'[ \t]+'"


def first_line(path: Path) -> str:
    """The first line of a file; raises DataError where there is none, or it is not UTF-8."""
    with path.open("rb") as file:
        content = file.readline().removeprefix(codecs.BOM_UTF8)
    try:
        line = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line 1: invalid UTF-8; save the file as UTF-8") from error
    if not line.strip():
        raise DataError(f"{path}, line 1: nothing there; the file must begin with its first row")
    return line.rstrip("\r\n")


def words(text: str) -> str:
    """SQL for the words of a text; null where there are none."""
    trimmed = f"nullif(trim({text}, E' \\t'), '')"
    return f"string_split_regex({trimmed}, {_BLANKS})"


def lines(path: Path) -> str:
    """The lines of a file that are not empty, with `file_row_number`, in SQL."""
    return f"""(SELECT row_number() OVER () - 1 AS file_row_number, line FROM read_csv(
        {literal(glob.escape(str(path)))}, auto_detect = false, header = false, quote = '',
        escape = '', delim = E'\\x1f', columns = {{'line': 'VARCHAR'}}, store_rejects = true,
        max_line_size = 16777216, buffer_size = 67108864))"""


def fields(path: Path, names: Sequence[str], *, header: bool, lists: Sequence[str] = ()) -> Source:
    """A file with tabs between fields.

    Args:
      path: the file.
      names: of its columns.
      header: whether the first line is one, and no row.
      lists: columns that hold lists of words.
    """
    columns = {name: f"fields[{place}]" for place, name in enumerate(names, 1)}
    columns |= {name: words(columns[name]) for name in lists}
    columns[WIDTH] = "len(fields)"
    selected = ", ".join(f"{value} AS {identifier(name)}" for name, value in columns.items())
    sql = f"""(SELECT file_row_number, {selected} FROM (
      SELECT file_row_number, string_split(line, E'\\t') AS fields FROM {lines(path)}
      WHERE trim(line, E' \\t') <> '' AND file_row_number >= {int(header)}))"""
    types: Mapping[str, str] = dict.fromkeys(names, "VARCHAR") | dict.fromkeys(lists, "VARCHAR[]")
    return Source(sql, {**types, WIDTH: "BIGINT"}, 1)
