"""RecBole's atomic files: `NAME.inter`, `NAME.item` and perhaps `NAME.user` (Zhao et al., 2021).

Tables with tabs between fields and a header of `field:type`. What becomes of the types:

    token      a string
    token_seq  a list of strings; text where the field's name says so (`title:token_seq` is a title)
    float      a number
    float_seq  not used: numbers say nothing as text

Of `.inter`, `user_id`, `item_id`, `timestamp` and `rating` are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from m6rec_jax.data.getting.imports.text_files import (
    ITEM,
    POSITION,
    RATING,
    TIMESTAMP,
    USER,
    Imported,
    TextTable,
    column_names,
    fields,
    header,
)
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

_KINDS = {"token": "string", "token_seq": "list<string>", "float": "float", "float_seq": None}
# Fields whose words make one text, though they are declared as a sequence of tokens.
_TEXT = re.compile(r"title|name|text|descr|summary|headline|abstract|review", re.IGNORECASE)


def read_atomic_files(folder: Path) -> Imported:
    """Reads a folder with the atomic files of one data set.

    Args:
      folder: holds one `.inter` file; those beside it have its name.

    Raises:
      DataError: a file or a field is missing.
    """
    paths = sorted(folder.glob("*.inter"))
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise DataError(
            f"{folder} must hold one .inter file (found: {names}); join the parts of one data set "
            "under one header, and keep each data set in a folder of its own"
        )
    path = paths[0]
    items, users = path.with_suffix(".item"), path.with_suffix(".user")
    if not items.is_file():
        raise DataError(
            f"{items} is missing: the model reads items as text, so it needs their titles or other "
            "attributes there, under a header such as item_id:token<tab>title:token_seq"
        )
    notes: list[str] = []
    item_table = _table(items, (ITEM,), notes)
    user_table = _table(users, (USER,), notes) if users.is_file() else None
    events = _table(path, (USER, ITEM), notes)
    if unused := [name for name in events.columns if name not in (TIMESTAMP, RATING)]:
        notes.append(f"{path.name}: not used: {', '.join(unused)}")
    order = ""
    if TIMESTAMP not in events.columns:
        order, source = f"the place of an event in {path.name}", events.source
        place = f"file_row_number + 1 AS {POSITION}"
        columns = f"* REPLACE ({place})" if POSITION in source.types else f"*, {place}"
        sql = f"(SELECT {columns} FROM {source.sql})"
        source = source._replace(sql=sql, types={**source.types, POSITION: "BIGINT"})
        events = events._replace(source=source)
    return Imported(path.stem, item_table, user_table, events, order, notes)


def _table(path: Path, required: Sequence[str], notes: list[str]) -> TextTable:
    kinds = []
    for field in header(path):
        _, colon, kind = field.strip().rpartition(":")
        if not colon or kind not in _KINDS:
            hint = did_you_mean(kind, _KINDS) if colon else "; write field:type"
            raise DataError(
                f"{path}, line 1: {field[:60]!r} has none of the types {', '.join(_KINDS)}{hint}"
            )
        kinds.append(kind)
    names = column_names(path, (field.rpartition(":")[0] for field in header(path)))
    for name in required:
        if name not in names:
            raise DataError(
                f"{path}, line 1: no field {name!r} (its fields: {', '.join(names)})"
                f"{did_you_mean(name, names)}"
            )
    types = {
        name: "string" if kind == "token_seq" and _TEXT.search(name) else _KINDS[kind]
        for name, kind in zip(names, kinds, strict=True)
    }
    if unused := [name for name, kind in types.items() if kind is None]:
        notes.append(f"{path.name}: not used, as float_seq: {', '.join(unused)}")
    lists = [name for name, kind in types.items() if kind == "list<string>"]
    columns = {name: kind for name, kind in types.items() if kind and name not in required}
    return TextTable(path, fields(path, names, lists), columns, names)
