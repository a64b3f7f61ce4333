"""`m6rec data import`: files of another format become a data set folder with a drafted template.

Readers are `atomic_files` and `sequences`; another format is one more function in `FORMATS`. Events
are streamed; in memory are the tables of users and items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from m6rec_jax.data.dataset.checks import (
    REQUIRED,
    Check,
    Column,
    event_checks,
    id_checks,
    value_checks,
)
from m6rec_jax.data.dataset.columns import ID, identifier, literal
from m6rec_jax.data.dataset.schema import EventsSpec
from m6rec_jax.data.dataset.tables import Tables, columns_of
from m6rec_jax.data.getting.draft import Records, define, describe, text_columns, write
from m6rec_jax.data.getting.imports.atomic_files import read_atomic_files
from m6rec_jax.data.getting.imports.sequences import read_sequences
from m6rec_jax.data.getting.imports.text_files import (
    ITEM,
    POSITION,
    RATING,
    TIMESTAMP,
    USER,
    WIDTH,
    Imported,
    TextTable,
)
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import check_new, new_folder
from m6rec_jax.io.closest import did_you_mean

FORMATS: Mapping[str, Callable[[Path], Imported]] = {
    "recbole": read_atomic_files,
    "sequences": read_sequences,
}
_TABLES = ("users", "items", "events")


def import_dataset(
    format_name: str,
    source: Path,
    output: Path,
    *,
    name: str | None = None,
    at_least: float | None = None,
) -> list[str]:
    """Reads `source` and writes a data set folder that `m6rec data check` accepts.

    Items without text are left out, and events with items that are left out or unknown, or that
    are there twice; all that is left out is counted. Nothing is there under `output` until all of
    it is.

    Args:
      format_name: one of `FORMATS`.
      source: a folder in that format.
      output: a new folder.
      name: of the data set; None: what the source is called.
      at_least: from which rating an event is a positive; None: the rating that divides the events
        most evenly.

    Returns:
      lines for the user: what was written, decided and left out.

    Raises:
      ConfigError: no such format, or a threshold that divides nothing.
      DataError: a file is missing or a line of it is wrong.
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
    imported = reader(source)
    order, notes = imported.order, list(imported.notes)
    with new_folder(output) as folder, Tables(source) as tables:
        tables.rows("CREATE OR REPLACE MACRO place(number) AS concat('line ', number + 1)")
        items = _load_records(tables, "items", ITEM, imported.items)
        text = text_columns(tables, items)[0]
        slot = identifier(text)
        silent = f"draft.items WHERE coalesce(trim(CAST({slot} AS VARCHAR), E' \\t'), '') = ''"
        ids = f"id IN (SELECT {ITEM} FROM {silent})"
        notes += _leave_out(tables, "items", f"items without {text!r}", ids)
        users = _load_records(tables, "users", USER, imported.users)
        events = EventsSpec(
            USER,
            ITEM,
            POSITION if order else TIMESTAMP,
            RATING if RATING in imported.events.columns else None,
            "events.parquet",
        )
        notes += _load_events(tables, imported, events)
        spec, decided = describe(
            tables, name or imported.name, users, items, events, at_least, has_times=not order
        )
        notes += decided
        provenance = {
            "format": "m6rec data import",
            "files": [imported.events.path.name, imported.items.path.name],
        }
        if order:
            provenance["times"] = (
                f"There are none. '{POSITION}' is {order}, so that splits and histories keep the "
                "order; templates must not name {ago}, {weekday}, or the like"
            )
            notes.append(f"no times: {POSITION!r} is {order}; the template names none")
        dataclasses.replace(spec, provenance=provenance | {"notes": notes}).save(folder)
        counts = [write(tables, table, folder / f"{table}.parquet") for table in _TABLES]
    sizes = ", ".join(f"{count:,} {table}" for count, table in zip(counts, _TABLES, strict=True))
    return [f"{spec.name}: {sizes} in {output}", *notes]


def _load_records(tables: Tables, table: str, id_: str, imported: TextTable | None) -> Records:
    """Reads users or items, each of which must be there once."""
    columns = {} if imported is None else imported.columns
    # Of any name: which columns the data set has is not decided here.
    declared = [Column("id", id_, ID)]
    declared += [Column(f"c{i}", *column) for i, column in enumerate(columns.items())]
    if imported is None:
        tables.create(table, declared)
    else:
        _load(tables, table, imported, declared, [*value_checks(declared), *id_checks(table, id_)])
    define(tables, table, {name: slot for slot, name, _ in declared}, f"main.{table} ORDER BY row")
    return Records(id_, columns, f"{table}.parquet")


def _load_events(tables: Tables, imported: Imported, spec: EventsSpec) -> list[str]:
    """Reads the events of items of the table, each once, and the users of whom no table tells."""
    declared = columns_of(spec)
    checks = [one for one in value_checks(declared) if one.kind not in REQUIRED.values()]
    checks += () if imported.order else event_checks(declared, ())
    _load(tables, "events", imported.events, declared, checks)
    notes: list[str] = []
    for slot, name, _ in declared:
        notes += _leave_out(tables, "events", f"events without {name}", f"{slot} IS NULL")
    what = "events of unknown items, or of such without text"
    notes += _leave_out(tables, "events", what, "NOT EXISTS (FROM items WHERE id = item)")
    if not imported.order:  # else their places tell all events apart
        key = ", ".join(column.slot for column in declared)
        again = f"row NOT IN (SELECT min(row) FROM events GROUP BY {key})"
        notes += _leave_out(tables, "events", "events that are there twice", again)
    if not tables.rows("FROM events LIMIT 1"):
        raise DataError(
            f"{imported.events.path} has no event with an item of {imported.items.path}: are ids "
            "written alike in both?"
        )
    define(tables, "events", {n: slot for slot, n, _ in declared}, "main.events ORDER BY row, time")
    users = "FROM events ANTI JOIN users ON id = user"
    ((lacking, first),) = tables.rows(f"SELECT count(DISTINCT user), min_by(user, row) {users}")
    if imported.users is not None and lacking:
        row = f"users without a row of their own: {lacking:,}, first {first!r}"
        notes.append(f"{row}; they have no attributes")
    tables.rows(
        f"""INSERT INTO users BY NAME SELECT user AS id,
        (SELECT coalesce(max(row), 0) FROM users) + min(row) + 1 AS row {users} GROUP BY user"""
    )
    return notes


def _load(
    tables: Tables,
    table: str,
    imported: TextTable,
    declared: Sequence[Column],
    checks: Iterable[Check],
) -> None:
    """Reads a file into a table; raises DataError at the first line that is wrong."""
    if number := len(imported.names):
        what = (
            f" fields, not the {number} of line 1 ({', '.join(imported.names)}); one tab stands "
            "between two fields, and none inside of one"
        )
        declared = [*declared, Column("width", WIDTH, "int")]
        reason = f"concat(width, {literal(what)})"
        checks = [Check("ragged_row", "", f"width <> {number}", reason), *checks]
    tables.create(table, declared)
    tables.load(table, imported.path, imported.source, declared)
    if not tables.num_rows[table]:
        raise DataError(f"{imported.path} has no rows")
    tables.check(table, checks)
    if (wrong := tables.first_error(table)) is not None:
        path, number, name, reason = wrong
        column = f"column {name!r}: " if name in imported.names else ""
        raise DataError(f"{path}, line {number + 1}: {column}{reason}")


def _leave_out(tables: Tables, table: str, what: str, where: str) -> list[str]:
    """Deletes the rows for which a condition in SQL holds, and says so if there are some."""
    query = f"SELECT count(*), min(number), any_value(file) FROM {table} WHERE {where}"
    ((count, number, file),) = tables.rows(query)
    if not count:
        return []
    tables.rows(f"DELETE FROM {table} WHERE {where}")
    name = tables.files[file].name
    return [f"{what}, left out: {count:,}, first in {name}, line {number + 1}"]
