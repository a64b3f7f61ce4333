"""`m6rec data import`: files of another format become a data set folder with a drafted template.

Readers are `atomic_files` and `sequences`; another format is one more function in `FORMATS`. Events
are streamed; in memory are the tables of users and items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from m6rec_jax.data.checks import REQUIRED, Check, Column, event_checks, id_checks, value_checks
from m6rec_jax.data.columns import identifier, literal
from m6rec_jax.data.draft import (
    NOT_USED,
    drafted_template,
    positives,
    text_columns,
    title_column,
    without_taken,
)
from m6rec_jax.data.imports.atomic_files import read_atomic_files
from m6rec_jax.data.imports.lines import WIDTH
from m6rec_jax.data.imports.records import (
    ITEM,
    POSITION,
    RATING,
    TIMESTAMP,
    USER,
    Imported,
    ImportedTable,
)
from m6rec_jax.data.imports.sequences import read_sequences
from m6rec_jax.data.schema import DatasetSpec, EventsSpec, ItemsSpec, LabelSpec, TableSpec
from m6rec_jax.data.tables import Tables, columns_of
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import check_new, new_folder
from m6rec_jax.io.closest import did_you_mean

FORMATS: Mapping[str, Callable[[Path], Imported]] = {
    "recbole": read_atomic_files,
    "sequences": read_sequences,
}
FILES = {"users": "users.parquet", "items": "items.parquet", "events": "events.parquet"}


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
    with new_folder(output) as folder, Tables(source) as tables:
        tables.rows("CREATE OR REPLACE MACRO place(number) AS concat('line ', number + 1)")
        spec, notes = _write(tables, imported, folder, name, at_least)
        spec.save(folder)
        counts = [tables.rows(f"SELECT count(*) FROM {table}")[0][0] for table in FILES]
    sizes = ", ".join(f"{count:,} {table}" for count, table in zip(counts, FILES, strict=True))
    return [f"{spec.name}: {sizes} in {output}", *notes]


class _LeftOut:
    """Takes rows that are not wanted out of tables, and says what."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.lines: list[str] = []

    def leave_out(self, what: str, table: str, where: str) -> None:
        """Deletes the rows for which a condition in SQL holds."""
        query = f"SELECT count(*), min(number), any_value(file) FROM {table} WHERE {where}"
        ((count, number, file),) = self._tables.rows(query)
        if count:
            name = self._tables.files[file].name
            self.lines.append(f"{what}, left out: {count:,}, first in {name}, line {number + 1}")
            self._tables.rows(f"DELETE FROM {table} WHERE {where}")


def _write(
    tables: Tables, imported: Imported, folder: Path, name: str | None, at_least: float | None
) -> tuple[DatasetSpec, list[str]]:
    """Writes the three tables; what describes them, and lines for the user."""
    items, users = imported.items, imported.users
    notes, left = list(imported.notes), _LeftOut(tables)
    item_columns = without_taken(items.columns, of_items=True)
    user_columns = without_taken(users.columns) if users is not None else {}
    given = {**items.columns, **(users.columns if users is not None else {})}
    if taken := given.keys() - {**item_columns, **user_columns}:
        notes.append(f"{NOT_USED}: {', '.join(sorted(taken))}")
    of_items = _load_records(tables, "items", items, TableSpec(ITEM, item_columns))
    values = {
        name: [value for (value,) in tables.rows(f"SELECT {slot} FROM items ORDER BY row")]
        for slot, name, _ in of_items
    }
    texts = text_columns(item_columns, items.path, values)
    (text,) = (slot for slot, name, _ in of_items if name == texts[0])
    silent = f"{text} IS NULL"
    if item_columns[texts[0]] == "string":
        silent = f"trim(coalesce({text}, ''), E' \\t') = ''"
    left.leave_out(f"items without {texts[0]!r}", "items", silent)
    user_table = TableSpec(USER, user_columns, FILES["users"])
    if users is None:
        tables.create("users", columns_of(user_table))
    else:
        _load_records(tables, "users", users, user_table)
    of_events = _load_events(tables, imported, left)
    ((lacking, first),) = tables.rows(
        "SELECT count(DISTINCT user), min_by(user, row) FROM events ANTI JOIN users ON id = user"
    )
    if users is not None and lacking:
        notes.append(
            f"users without a row of their own: {lacking:,}, first {first!r}; they have no "
            "attributes"
        )
    tables.rows(
        """INSERT INTO users BY NAME
        SELECT (SELECT coalesce(max(row), 0) FROM users) + min(row) + 1 AS row, user AS id
        FROM events ANTI JOIN users ON id = user GROUP BY user"""
    )
    threshold = None
    if RATING in imported.events.columns:
        counts = dict(tables.rows("SELECT value, count(*) FROM events GROUP BY value"))
        threshold, reason = positives(counts, at_least)
        notes.append(reason)
    elif at_least is not None:
        raise ConfigError(f"{imported.events.path} has no ratings that a threshold could divide")
    _copy(tables, "items", of_items, folder)
    _copy(tables, "users", columns_of(user_table), folder)
    _copy(tables, "events", of_events, folder)
    provenance = {
        "format": "m6rec data import",
        "files": [imported.events.path.name, items.path.name],
    }
    if imported.order:
        provenance["times"] = (
            f"There are none. '{POSITION}' is {imported.order}, so that splits and histories keep "
            "the order; templates must not name {ago}, {weekday}, or the like"
        )
        notes.append(f"no times: {POSITION!r} is {imported.order}; the template names none")
    notes += left.lines
    when = POSITION if imported.order else TIMESTAMP
    spec = DatasetSpec(
        name=name or imported.name,
        users=user_table,
        items=ItemsSpec(ITEM, item_columns, FILES["items"], title_column(texts, values)),
        events=EventsSpec(USER, ITEM, when, None if threshold is None else RATING, FILES["events"]),
        label=LabelSpec(threshold),
        template=drafted_template(user_columns, texts, threshold, not imported.order),
        provenance={**provenance, "notes": notes},
    )
    return spec, notes


def _load_records(
    tables: Tables, table: str, imported: ImportedTable, spec: TableSpec
) -> list[Column]:
    """Reads users or items, each of which must be there once."""
    columns = columns_of(spec)
    _load(tables, table, imported, columns, [*value_checks(columns), *id_checks(table, spec.id)])
    if not tables.num_rows[table]:
        raise DataError(f"{imported.path} has no rows")
    return columns


def _load_events(tables: Tables, imported: Imported, left: _LeftOut) -> list[Column]:
    """Reads the events of items of the table, each once."""
    events = imported.events
    when = POSITION if imported.order else TIMESTAMP
    value = RATING if RATING in events.columns else None
    columns = columns_of(EventsSpec(USER, ITEM, when, value))
    checks = [one for one in value_checks(columns) if one.kind not in REQUIRED.values()]
    checks += imported.checks if imported.order else event_checks(columns, ())
    _load(tables, "events", events, columns, checks)
    for slot, name, _ in columns:
        left.leave_out(f"events without {name}", "events", f"{slot} IS NULL")
    unknown = "NOT EXISTS (FROM items WHERE id = item)"
    left.leave_out("events of unknown items, or of such without text", "events", unknown)
    key = ", ".join(column.slot for column in columns)
    if not imported.order:  # else their places tell all events apart
        again = f"row NOT IN (SELECT min(row) FROM events GROUP BY {key})"
        left.leave_out("events that are there twice", "events", again)
    if not tables.rows("FROM events LIMIT 1"):
        raise DataError(
            f"{events.path} has no event with an item of {imported.items.path}: are ids written "
            "alike in both?"
        )
    return columns


def _load(
    tables: Tables,
    table: str,
    imported: ImportedTable,
    columns: Sequence[Column],
    checks: Sequence[Check],
) -> None:
    """Reads a file into a table; raises DataError at the first line that is wrong."""
    if imported.names:
        columns = [*columns, Column("width", WIDTH, "int")]
        wanted = len(imported.names)
        what = (
            f" fields, not the {wanted} of line 1 ({', '.join(imported.names)}); one tab stands "
            "between two fields, and none inside of one"
        )
        reason = f"concat(width, {literal(what)})"
        checks = [Check("ragged_row", "", f"width <> {wanted}", reason), *checks]
    tables.create(table, columns)
    tables.load(table, imported.path, imported.source, columns)
    tables.check(table, checks)
    if (wrong := tables.first_error(table)) is not None:
        path, number, name, reason = wrong
        column = f"column {name!r}: " if name in imported.names else ""
        raise DataError(f"{path}, line {number + 1}: {column}{reason}")


def _copy(tables: Tables, table: str, columns: Sequence[Column], folder: Path) -> None:
    """Writes the columns of a table."""
    selected = ", ".join(f"{slot} AS {identifier(name)}" for slot, name, _ in columns)
    order = "row, time" if table == "events" else "row"
    to = f"{literal(str(folder / FILES[table]))} (FORMAT parquet, COMPRESSION zstd)"
    tables.rows(f"COPY (SELECT {selected} FROM {table} ORDER BY {order}) TO {to}")
