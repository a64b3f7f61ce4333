"""Checks a data set folder and reports every problem with its row numbers.

Nothing stops at the first problem. The tables lie in a database that spills to disk, so events may
be more than fit into memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from m6rec_jax.data.dataset import checks, files
from m6rec_jax.data.dataset.checks import Check, Column
from m6rec_jax.data.dataset.columns import identifier, literal
from m6rec_jax.data.dataset.schema import SPEC_FILE, TABLES, DatasetSpec
from m6rec_jax.data.dataset.tables import Tables, columns_of
from m6rec_jax.data.rendering.template_needs import (
    TemplateNeeds,
    items_without_text,
    optional_item_templates,
)
from m6rec_jax.data.splitting.splits import Split
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.atomic import atomic_file, check_new, new_folder
from m6rec_jax.text.records import Item

# Row numbers that are kept of each kind of problem.
_MOST_ROWS = 10


@dataclass(frozen=True, slots=True)
class Problem:
    """One kind of problem in one file and column: of `count` rows, or of the whole file."""

    severity: str  # 'error' or 'note': errors stop reading and reject rows
    kind: str
    table: str  # users, items or events; "" for dataset.json
    file: str  # relative to the folder
    column: str
    count: int
    rows: list[int]  # the first of their numbers, from 0, ascending
    example: str  # what is wrong with the first, and what to do

    def __str__(self) -> str:
        where = self.file + (f", column {self.column!r}" if self.column else "")
        if self.rows:
            more = ", ..." if self.count > len(self.rows) else ""
            where += f", {self.count:,} rows ({', '.join(map(str, self.rows))}{more})"
        return f"{self.severity}: {where}: {self.kind.replace('_', ' ')}: {self.example}"


@dataclass(slots=True)
class Report:
    """The result of `check_dataset`: rows by table, errors and then notes, and what was written."""

    directory: Path
    name: str = ""
    num_rows: dict[str, int] = field(default_factory=dict)
    num_rejected: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    quarantine: Path | None = None
    clean: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether there are no errors (notes may be)."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_json(self) -> str:
        """A JSON object: the attributes, and `ok`."""
        values = {**asdict(self), "ok": self.ok}
        return json.dumps(values, indent=2, ensure_ascii=False, default=str)

    def render(self) -> str:
        """The report as lines of text."""
        counts = ", ".join(f"{count:,} {table}" for table, count in self.num_rows.items())
        lines = [f"{self.name or self.directory}: {counts or 'nothing could be read'}"]
        lines += map(str, self.problems)
        if self.ok:
            lines.append("No errors.")
        elif rejected := sum(self.num_rejected.values()):
            apart = ", ".join(f"{n:,} of {table}" for table, n in self.num_rejected.items() if n)
            lines.append(f"{rejected:,} rows have errors ({apart}). Rows are counted from 0.")
        if self.quarantine is not None:
            lines.append(f"Rejected rows: {self.quarantine}")
            lines.append(f"The data set without them: {self.clean}")
        return "\n".join(lines)


def check_dataset(directory: str | Path, quarantine: str | Path | None = None) -> Report:
    """Checks schema, ids, references, times, values and encodings of a data set folder.

    So that all of it can be rendered, rows are checked for what the template needs, too.

    Args:
      directory: the folder.
      quarantine: a .csv or .parquet file outside the folder for the rejected rows: their declared
        columns as text, before them `quarantine_table`, `_file`, `_row` and `_reason`, and
        `quarantine_text` for a line that has no columns. The other rows are written to
        `clean_folder`, which must be new.

    Raises:
      DataError: the quarantine file is neither .csv nor .parquet, lies in the data set or cannot be
        written. Problems of the data set itself are never raised.
      CheckpointError: the clean folder exists, or cannot be written.
    """
    directory = Path(directory)
    report = Report(directory)
    if quarantine is not None:
        _check_quarantine(Path(quarantine), directory)
    try:
        spec = DatasetSpec.load(directory)
    except DataError as error:
        report.problems = [Problem("error", "schema", "", SPEC_FILE, "", 1, [], str(error))]
        return report
    report.name = spec.name
    with Tables(directory) as tables:
        _check_tables(tables, spec)
        report.num_rows = tables.num_rows
        rejected = dict(tables.rows("SELECT source, count(*) FROM rejected GROUP BY source"))
        report.num_rejected = {table: rejected.get(table, 0) for table in tables.num_rows}
        problems = tables.rows(
            f"""SELECT severity, kind, source, name, column_name, count(*),
              coalesce(list(number ORDER BY number) FILTER (number IS NOT NULL), [])[:{_MOST_ROWS}],
              coalesce(arg_min(reason, number), any_value(reason))
            FROM (SELECT *, rowid AS place FROM problems) JOIN files USING (file)
            GROUP BY severity, kind, source, name, column_name
            ORDER BY severity, min(place), name"""
        )
        report.problems = [Problem(*row) for row in problems]
        if quarantine is not None:
            report.quarantine = Path(quarantine)
            report.clean = clean_folder(report.quarantine)
            try:
                _write_rejected(tables, spec, report.quarantine)
                with new_folder(report.clean) as folder:
                    tables.write(spec, folder)
            except (OSError, duckdb.IOException) as error:
                raise DataError(
                    f"{quarantine} or {report.clean}: cannot be written ({error})"
                ) from error
    return report


def _check_tables(tables: Tables, spec: DatasetSpec) -> None:
    """Reads the tables as far as they can be read, and finds all problems."""

    def add(kind: str, table: str, file: Path | str, column: str, reason: object) -> None:
        """Adds an error of a whole file or column."""
        values = [
            table,
            tables.add_file(tables.directory / file),
            kind,
            column,
            "error",
            str(reason),
        ]
        names = "source, file, kind, column_name, severity, reason"
        tables.rows(f"INSERT INTO problems ({names}) VALUES (?, ?, ?, ?, ?, ?)", values)

    for name in spec.splits:
        try:
            Split.parse(name, spec.splits)
        except DataError as error:
            add("schema", "", SPEC_FILE, f"splits.{name}", error)
    needs = TemplateNeeds({}, {}, None)
    try:
        needs = TemplateNeeds.of(spec, str(tables.directory / SPEC_FILE))
    except ConfigError as error:
        add("template", "", SPEC_FILE, "", error)
    references: list[str] = []
    for table in TABLES:
        described = getattr(spec, table)
        columns = columns_of(described)
        tables.create(table, columns)
        try:
            paths = files.table_files(tables.directory, table, described.file)
        except DataError as error:
            add("missing_file", table, described.file or table, "", error)
            continue
        is_whole = True
        for path in paths:
            try:
                tables.read(table, path, columns)
            except DataError as error:
                add("bad_file", table, path, "", error)
                is_whole = False
        if is_whole and not tables.num_rows[table]:
            add("empty_table", table, paths[0], "", "there are no rows")
        tables.check(table, checks.row_checks(table, columns, references))
        if table == "events":
            _check_events(tables, spec, needs)
            continue
        of_table = needs.users if table == "users" else needs.items
        tables.check(table, checks.template_checks(columns, of_table))
        if table == "items":
            _reject_silent_items(tables, columns, needs)
        tables.check(table, checks.column_notes(table, columns))
        tables.rows(
            f"""CREATE TABLE known_{table} AS SELECT id FROM {table} ANTI JOIN (
              FROM rejected WHERE source = '{table}') USING (row) WHERE id IS NOT NULL"""
        )
        if is_whole:
            references.append(table)


def _check_events(tables: Tables, spec: DatasetSpec, needs: TemplateNeeds) -> None:
    """Checks of events beside those of every row."""
    value, at_least = spec.events.value, spec.label.at_least
    if value is not None:
        values = tables.rows("SELECT DISTINCT value FROM events WHERE value IS NOT NULL")
        distinct = np.array([number for (number,) in values], np.float64)
        reason = "no entry of the template's 'outcomes' has words for this value"
        silent = distinct[needs.without_words(distinct)]
        _reject(tables, "events", "value", silent, value, reason)
    tables.check("events", [checks.repeated_events(spec.events.user, value is not None)])
    if spec.repeats is None:
        tables.check("events", [checks.repeats_note()])
    if value is not None and at_least is not None:
        reasons = [spec.label.only(label) for label in (0, 1)]
        tables.check("events", [checks.label_check(value, at_least, reasons)])


def _reject_silent_items(tables: Tables, columns: list[Column], needs: TemplateNeeds) -> None:
    """Rejects items of which a template says nothing."""
    if needs.template is None or not optional_item_templates(needs.template):
        return
    names, slots = [column.name for column in columns], ", ".join(c.slot for c in columns)
    rejected = "(FROM rejected WHERE source = 'items')"
    good = tables.rows(f"SELECT row, {slots} FROM items ANTI JOIN {rejected} USING (row)")
    items = [Item(str(row), dict(zip(names, values, strict=True))) for row, *values in good]
    for template, silent in items_without_text(needs.template, items).items():
        reason = f"template '{template}' says nothing of it"
        _reject(tables, "items", "row", np.array(silent, np.int64), names[0], reason)


def _reject(
    tables: Tables, table: str, slot: str, values: np.ndarray, column: str, reason: str
) -> None:
    """Rejects the rows of a table whose slot has one of some values."""
    tables.database.register("silent", pa.table({"x": values}))
    where = f"{slot} IN (SELECT x FROM silent)"
    tables.check(table, [Check("missing_words", column, where, literal(reason))])


def clean_folder(path: Path) -> Path:
    """Where the rows without errors go when the others go to a file."""
    return path.with_name(f"{path.stem}-clean")


def _check_quarantine(path: Path, directory: Path) -> None:
    if path.suffix.lower() not in files.SUFFIXES:
        raise DataError(f"{path} must end in .csv or .parquet: rejected rows are written to it")
    if path.resolve().is_relative_to(directory.resolve()):
        raise DataError(
            f"{path} may not lie in the data set {directory}, which could read it; name a file in "
            "another folder"
        )
    check_new(clean_folder(path))


def _write_rejected(tables: Tables, spec: DatasetSpec, path: Path) -> None:
    """Writes the rejected rows of all tables to one file; its columns are those of all tables."""
    tables.rows(
        """CREATE TABLE reasons AS SELECT source AS quarantine_table, name AS quarantine_file,
          number AS quarantine_row, string_agg(concat_ws(': ', nullif(column_name, ''), reason),
          '; ' ORDER BY place) AS quarantine_reason, any_value(line) AS quarantine_text, row
        FROM (SELECT *, rowid AS place FROM problems) JOIN files USING (file)
        WHERE severity = 'error' AND row IS NOT NULL GROUP BY source, name, number, row"""
    )
    selected = [
        f"""SELECT reasons.* EXCLUDE (row){"".join(map(_text, columns_of(getattr(spec, table))))}
        FROM reasons LEFT JOIN {table} USING (row) WHERE quarantine_table = '{table}'"""
        for table in TABLES
    ]
    order = "quarantine_table DESC, quarantine_file, quarantine_row"
    with atomic_file(path) as scratch:
        tables.rows(
            f"""COPY (FROM ({" UNION ALL BY NAME ".join(selected)}) ORDER BY {order})
            TO {literal(str(scratch))} (FORMAT {path.suffix[1:]})"""
        )


def _text(column: Column) -> str:
    """A column of rejected rows as text, also where its value does not fit."""
    slot, name, kind = column
    text = f"array_to_string({slot}, '|')" if kind == "list<string>" else f"{slot}::VARCHAR"
    return f", coalesce(bad_{slot}, {text}) AS {identifier(name)}"
