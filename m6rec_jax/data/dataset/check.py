"""Checks a data set folder and reports every problem with its row numbers.

Nothing stops at the first problem. The tables lie in a database that spills to disk, so events may
be more than fit into memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
from m6rec_jax.io.atomic import check_new, new_folder
from m6rec_jax.text.records import Item

# In a clean folder: rows that have errors, and why.
REJECTED = "rejected.csv"
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
        if self.clean is not None:
            lines.append(f"The data set without them: {self.clean}; rejected rows: {REJECTED}")
        return "\n".join(lines)


def check_dataset(directory: str | Path, clean: str | Path | None = None) -> Report:
    """Checks schema, ids, references, times, values, encodings and what the template needs of rows.

    `clean` is a new folder, to which `write_clean` writes. Problems of the data set are reported,
    never raised.

    Raises:
      DataError: the clean folder lies in the data set, or cannot be written.
      CheckpointError: it exists, or cannot be written.
    """
    directory = Path(directory)
    report = Report(directory, clean=None if clean is None else Path(clean))
    if report.clean is not None:
        check_new(report.clean)
        if report.clean.resolve().is_relative_to(directory.resolve()):
            raise DataError(
                f"{clean} lies in the data set {directory}, which could read it as its own; name "
                "a folder outside"
            )
    try:
        spec = DatasetSpec.load(directory)
    except DataError as error:
        report.problems = [Problem("error", "schema", "", SPEC_FILE, "", 1, [], str(error))]
        report.clean = None
        return report
    report.name = spec.name
    with Tables(directory) as tables:
        for table in TABLES:
            described, paths = getattr(spec, table), []
            try:
                paths = files.table_files(directory, table, described.file)
            except DataError as error:
                path = directory / (described.file or table)
                tables.add_error("bad_file", table, path, error)
            tables.read(table, columns_of(described), paths)
        find_problems(tables, spec)
        rejected = tables.rows(
            """SELECT source, count(DISTINCT row) FROM problems
            WHERE severity = 'error' AND source <> '' GROUP BY source"""
        )
        report.num_rows = tables.num_rows
        report.num_rejected = dict.fromkeys(TABLES, 0) | dict(rejected)
        report.problems = list_problems(tables)
        if report.clean is not None:
            with new_folder(report.clean) as folder:
                write_clean(tables, spec, folder)
    return report


def find_problems(tables: Tables, spec: DatasetSpec) -> None:
    """Finds what is wrong with splits, template and rows of a data set, of which `tables` has all
    rows that could be read.
    """
    spec_file = tables.directory / SPEC_FILE
    for name in spec.splits:
        try:
            Split.parse(name, spec.splits)
        except DataError as error:
            tables.add_error("schema", "", spec_file, error, f"splits.{name}")
    needs = TemplateNeeds({}, {}, None)
    try:
        needs = TemplateNeeds.of(spec, str(spec_file))
    except ConfigError as error:
        tables.add_error("template", "", spec_file, error)
    for table, needed in (("users", needs.users), ("items", needs.items)):
        columns = tables.columns[table]
        tables.check(table, checks.row_checks(table, columns))
        tables.check(table, checks.template_checks(columns, needed))
    _reject_silent_items(tables, needs)
    for table in ("users", "items"):
        tables.check(table, checks.column_notes(table, tables.columns[table]))
    # Whoever stands in a file that could not be read may be named.
    lacking = {t for (t,) in tables.rows("SELECT source FROM problems WHERE kind = 'bad_file'")}
    references = [table for table in TABLES if table not in lacking]
    tables.check("events", checks.row_checks("events", tables.columns["events"], references))
    if spec.events.value is not None:
        values = tables.rows("SELECT DISTINCT value FROM events WHERE value IS NOT NULL")
        distinct = np.array([number for (number,) in values], np.float64)
        reason = "no entry of the template's 'outcomes' has words for this value"
        silent = distinct[needs.without_words(distinct)]
        _reject(tables, "events", "value", silent, spec.events.value, reason)
    tables.check("events", checks.event_checks(spec))


def _reject_silent_items(tables: Tables, needs: TemplateNeeds) -> None:
    """Rejects items of which a template says nothing."""
    if needs.template is None or not optional_item_templates(needs.template):
        return
    slots, names, _ = zip(*tables.columns["items"], strict=True)
    rows = tables.rows(f"SELECT row, {', '.join(slots)} FROM good_items")
    items = [Item(str(row), dict(zip(names, values, strict=True))) for row, *values in rows]
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


def list_problems(tables: Tables) -> list[Problem]:
    """The problems that were found, errors first."""
    rows = tables.rows(
        f"""SELECT severity, kind, source, name, column_name, count(*),
          coalesce(list(number ORDER BY number) FILTER (number IS NOT NULL), [])[:{_MOST_ROWS}],
          coalesce(arg_min(reason, number), any_value(reason))
        FROM (SELECT *, rowid AS place FROM problems) JOIN files USING (file)
        GROUP BY severity, kind, source, name, column_name
        ORDER BY severity, min(place), name"""
    )
    return [Problem(*row) for row in rows]


def write_clean(tables: Tables, spec: DatasetSpec, folder: Path, **changed: Any) -> None:
    """Writes the rows without errors as a data set folder, and the others to a file in it.

    Of rejected rows `REJECTED` has the declared columns as text; before them stand
    `rejected_table`, `_file`, `_row`, `_reason` and, for a line that has no columns, `_line`. The
    folder exists and is empty; its `dataset.json` is `spec` with what is `changed`. Raises
    DataError where files cannot be written.
    """
    tables.rows(
        """CREATE TABLE reasons AS SELECT source AS rejected_table, name AS rejected_file,
          number AS rejected_row, string_agg(concat_ws(': ', nullif(column_name, ''), reason),
          '; ' ORDER BY place) AS rejected_reason, any_value(line) AS rejected_line, row
        FROM (SELECT *, rowid AS place FROM problems) JOIN files USING (file)
        WHERE severity = 'error' AND row IS NOT NULL GROUP BY source, name, number, row"""
    )
    selected = [
        f"""SELECT reasons.* EXCLUDE (row){"".join(map(_text, tables.columns[table]))}
        FROM reasons LEFT JOIN {table} USING (row) WHERE rejected_table = '{table}'"""
        for table in TABLES
    ]
    try:
        tables.rows(
            f"""COPY (FROM ({" UNION ALL BY NAME ".join(selected)})
              ORDER BY rejected_table DESC, rejected_file, rejected_row)
            TO {literal(str(folder / REJECTED))} (FORMAT csv)"""
        )
        tables.write(spec, folder, **changed)
    except (OSError, duckdb.IOException) as error:
        raise DataError(f"{folder} cannot be written ({error})") from error


def _text(column: Column) -> str:
    """A column of rejected rows as text, also where its value does not fit."""
    slot, name, kind = column
    text = f"array_to_string({slot}, '|')" if kind == "list<string>" else f"{slot}::VARCHAR"
    return f", coalesce(bad_{slot}, {text}) AS {identifier(name)}"
