"""`m6rec data import`: files of another format become a data set folder with a drafted template.

RecBole's atomic files (Zhao et al., 2021): `NAME.inter`, `NAME.item` and perhaps `NAME.user`, with
tabs between fields and a header of `field:type`. What becomes of the types:

    token      a string
    token_seq  a list of strings; text where the field's name says so (`title:token_seq` is a title)
    float      a number
    float_seq  not used: numbers say nothing as text

Plain sequences: `sequences.txt`, a line `user item item ...` for each user, oldest first, and
`items.tsv`, with a header and a line for each item: its id, then columns of text.

Rows are counted from 0, below the header. Empty lines are no rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from m6rec_jax.data.dataset.check import find_problems, list_problems, write_clean
from m6rec_jax.data.dataset.columns import identifier
from m6rec_jax.data.dataset.files import column_names
from m6rec_jax.data.dataset.schema import EventsSpec, TableSpec
from m6rec_jax.data.dataset.tables import Source, Tables, columns_of, text_rows
from m6rec_jax.data.getting.draft import add_users, draft, without_reserved
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import check_new, new_folder
from m6rec_jax.io.closest import did_you_mean

# Columns of what is imported, whatever they are called in its files.
USER, ITEM = "user_id", "item_id"
# Of events: unix seconds, or where there are none, the place of an event in an order.
TIMESTAMP, POSITION, RATING = "timestamp", "position", "rating"
_KINDS = {"token": "string", "token_seq": "list<string>", "float": "float", "float_seq": None}
# Fields whose words make one text, though they are declared as a sequence of tokens.
_TEXT = re.compile(r"title|name|text|descr|summary|headline|abstract|review", re.IGNORECASE)


class _File(NamedTuple):
    """A table in a file, as `data.dataset.tables` reads it; attribute column -> type of
    `COLUMN_TYPES`.
    """

    path: Path
    source: Source
    columns: Mapping[str, str]


class _Imported(NamedTuple):
    """A data set in another format: what its files call it, and its tables.

    Items have the column `ITEM`, users `USER`, events both and `TIMESTAMP` or `POSITION`; `order`
    is what the latter counts, "" where there are times. Users may have no file.
    """

    name: str
    items: _File
    users: _File | None
    events: _File
    order: str


def import_dataset(
    format_name: str,
    source: Path,
    output: Path,
    *,
    name: str | None = None,
    at_least: float | None = None,
) -> list[str]:
    """Reads a folder of one of `FORMATS` and writes a new data set folder that `m6rec data check`
    accepts.

    Rows in which that finds errors are left out, counted, and kept in `check.REJECTED`. Nothing is
    there under `output` until all of it is. Returns lines for the user: what was written, decided
    and left out.

    `name` None is what the source is called; `at_least` None is the rating that divides the events
    most evenly into positives and others.

    Raises:
      ConfigError: no such format, or a threshold that divides nothing.
      DataError: a file is missing or cannot be read, or no event is left.
      CheckpointError: `output` is there already, or cannot be written.
    """
    reader = FORMATS.get(format_name)
    if reader is None:
        raise ConfigError(
            f"there is no format {format_name!r}{did_you_mean(format_name, FORMATS)} "
            f"(known: {', '.join(FORMATS)})"
        )
    if not source.is_dir():
        raise DataError(f"{source} is not a folder; give the one that holds the files")
    check_new(output)
    notes: list[str] = []
    with Tables(source) as tables:
        imported = reader(source, tables, notes)
        items = _load(tables, "items", ITEM, imported.items, notes)
        users = _load(tables, "users", USER, imported.users, notes)
        time = POSITION if imported.order else TIMESTAMP
        rating = RATING if RATING in imported.events.columns else None
        events = EventsSpec(USER, ITEM, time, rating, "events.parquet")
        tables.create("events", columns_of(events))
        tables.insert("events", imported.events.path, imported.events.source)
        lacking = add_users(tables)
        if imported.users is not None and lacking:
            notes.append(f"users without a row in {imported.users.path.name}: {lacking:,}")
        spec, decided = draft(
            tables, name or imported.name, users, items, events, at_least,
            has_times=not imported.order,
        )  # fmt: skip
        find_problems(tables, spec)
        notes += [*decided, *map(str, list_problems(tables))]
        if imported.order:
            notes.append(
                f"no times: '{POSITION}' is {imported.order}, so that splits and histories keep "
                "the order; templates must not name {ago}, {weekday}, or the like"
            )
        if not tables.rows("FROM good_events LIMIT 1"):
            raise DataError("\n".join([f"{imported.events.path}: no event is left", *notes]))
        with new_folder(output) as folder:
            files = [imported.events.path.name, imported.items.path.name]
            write_clean(tables, spec, folder, provenance={"files": files, "notes": notes})
        counts = [
            f"{tables.rows(f'SELECT count(*) FROM good_{table}')[0][0]:,} {table}"
            for table in ("users", "items", "events")
        ]
    return [f"{spec.name}: {', '.join(counts)} in {output}", *notes]


def _load(tables: Tables, table: str, id_: str, file: _File | None, notes: list[str]) -> TableSpec:
    """Makes the table of users or of items; an empty one where there is no file."""
    columns = without_reserved(table, {} if file is None else file.columns, notes)
    spec = TableSpec(id_, columns, f"{table}.parquet")
    tables.create(table, columns_of(spec))
    if file is not None:
        tables.insert(table, file.path, file.source)
    return spec


def _read_atomic_files(folder: Path, tables: Tables, notes: list[str]) -> _Imported:
    paths = sorted(folder.glob("*.inter"))
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise DataError(
            f"{folder} must hold one .inter file (there: {names}); join the parts of one data set "
            "under one header, and keep each data set in a folder of its own"
        )
    path = paths[0]
    items, users = path.with_suffix(".item"), path.with_suffix(".user")
    if not items.is_file():
        raise DataError(
            f"{items} is missing: the model reads items as text, so it needs their titles or other "
            "attributes there, under a header such as item_id:token<tab>title:token_seq"
        )
    item_file = _atomic_file(items, (ITEM,), tables, notes)
    user_file = _atomic_file(users, (USER,), tables, notes) if users.is_file() else None
    events = _atomic_file(path, (USER, ITEM), tables, notes)
    if unused := [name for name in events.columns if name not in (TIMESTAMP, RATING)]:
        notes.append(f"{path.name}: not used: {', '.join(unused)}")
    order = ""
    if TIMESTAMP not in events.columns:
        order, source = f"the place of an event in {path.name}", events.source
        wanted = ", ".join(name for name in (USER, ITEM, RATING) if name in source.types)
        sql = f"(SELECT {wanted}, row_number() OVER () AS {POSITION} FROM {source.sql})"
        events = events._replace(source=Source(sql, {**source.types, POSITION: "BIGINT"}))
    return _Imported(path.stem, item_file, user_file, events, order)


def _atomic_file(path: Path, required: Sequence[str], tables: Tables, notes: list[str]) -> _File:
    types: dict[str, str | None] = {}
    for field in column_names(path):
        name, colon, kind = field.strip().rpartition(":")
        if not colon or kind not in _KINDS:
            raise DataError(
                f"{path}, line 1: {field[:60]!r} is not field:type with one of the types "
                f"{', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}"
            )
        name = _sayable(path, name, types)
        is_text = kind == "token_seq" and _TEXT.search(name)
        types[name] = "string" if is_text else _KINDS[kind]
    for name in required:
        if name not in types:
            raise DataError(
                f"{path}, line 1: no field {name!r} (its fields: {', '.join(types)})"
                f"{did_you_mean(name, types)}"
            )
    if unused := [name for name, kind in types.items() if kind is None]:
        notes.append(f"{path.name}: not used, as float_seq: {', '.join(unused)}")
    source = tables.source(path, [*types])
    lists = [name for name, kind in types.items() if kind == "list<string>"]
    if lists:
        words = ", ".join(f"{_words(identifier(name))} AS {identifier(name)}" for name in lists)
        sql = f"(SELECT * REPLACE ({words}) FROM {source.sql})"
        source = Source(sql, {**source.types, **dict.fromkeys(lists, "VARCHAR[]")})
    columns = {name: kind for name, kind in types.items() if kind and name not in required}
    return _File(path, source, columns)


def _sayable(path: Path, field: str, names: Collection[str]) -> str:
    """The name of a field as templates can say it; raises DataError where it is one of `names`."""
    name = re.sub(r"\W+", "_", field).strip("_")
    if not name or name.lower() in map(str.lower, names):
        raise DataError(f"{path}, line 1: the field {field[:60]!r} is there twice, or has no name")
    return name


def _read_sequences(folder: Path, tables: Tables, notes: list[str]) -> _Imported:
    sequences, items = folder / "sequences.txt", folder / "items.tsv"
    for path, content in (
        (sequences, "a line `user item item ...` for each user"),
        (items, "a line for each item: its id, a tab, its text. The model reads text"),
    ):
        if not path.is_file():
            there = sorted(one.name for one in folder.iterdir() if one.is_file())
            raise DataError(
                f"{folder} has no {path.name}: {content}{did_you_mean(path.name, there)} "
                f"(there: {', '.join(there[:10]) or 'nothing'})"
            )
    id_, *fields = column_names(items)
    if not fields:
        raise DataError(
            f"{items}, line 1: one field, {id_[:60]!r}; a tab and the text of the item must "
            "follow its id"
        )
    signs = r"header = false, quote = '', escape = '', delim = E'\x1f'"
    lines = text_rows(sequences, f"{signs}, columns = {{'line': 'VARCHAR'}}")
    create = f"""CREATE TABLE lines AS SELECT row_number() OVER () - 1 AS line,
      {_words("line")} AS words FROM {lines}"""
    tables.copied(create, sequences)
    if tables.rows("SELECT 1 FROM lines WHERE list_contains(words[2:], ?)", [id_]):
        raise DataError(
            f"{items}, line 1: {id_!r} is an item of {sequences.name}; name the columns in a "
            "line above, such as item_id<tab>title"
        )
    names = [ITEM]
    for field in fields:
        names.append(_sayable(items, field, names))
    # A user's lines are one sequence.
    places = f"""(SELECT *, row_number() OVER (PARTITION BY {USER} ORDER BY line, place) - 1
        AS {POSITION}
      FROM (SELECT line, words[1] AS {USER}, unnest(words[2:]) AS {ITEM},
        unnest(range(len(words) - 1)) AS place FROM lines)
      ORDER BY line, place)"""
    types = {USER: "VARCHAR", ITEM: "VARCHAR", POSITION: "BIGINT"}
    columns = dict.fromkeys(names[1:], "string")
    return _Imported(
        folder.resolve().name,
        _File(items, tables.source(items, names), columns),
        None,
        _File(sequences, Source(places, types, "line"), {}),
        "the place of an event in its user's line",
    )


def _words(text: str) -> str:
    """SQL for the words of a text, between blanks; null where there are none."""
    return f"string_split_regex(nullif(trim({text}, E' \\t'), ''), '[ \\t]+')"


FORMATS: Mapping[str, Callable[[Path, Tables, list[str]], _Imported]] = {
    "recbole": _read_atomic_files,
    "sequences": _read_sequences,
}
