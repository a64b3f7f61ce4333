"""Checks a data set folder and reports every problem with its row numbers.

Nothing stops at the first problem. The tables lie in a database that spills to disk, so events may
be more than fit into memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from m6rec_jax.data import checks, files
from m6rec_jax.data.columns import literal
from m6rec_jax.data.quarantine import Quarantine
from m6rec_jax.data.report import Problem, Report
from m6rec_jax.data.schema import (
    COUNT,
    IGNORE,
    SPEC_FILE,
    DatasetSpec,
    EventsSpec,
    TableSpec,
    protocol_for,
)
from m6rec_jax.data.splits import Split
from m6rec_jax.data.tables import Tables, columns_of
from m6rec_jax.data.template_needs import TemplateNeeds, items_without_text, optional_item_templates
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.records import Item

__all__ = ["Report", "check_dataset"]


def check_dataset(
    directory: str | Path,
    quarantine: str | Path | None = None,
    *,
    max_rows: int = 10,
) -> Report:
    """Checks schema, ids, references, times, values and encodings of a data set folder.

    So that all of it can be rendered, rows are checked for what the template needs, too.

    Args:
      directory: the folder.
      quarantine: a .csv or .parquet file outside the folder for the rejected rows: all columns of
        their file as text, before them `quarantine_table`, `_file`, `_row` and `_reason`. The other
        rows are written to the folder of the same name with "-clean" at its end, as declared in
        `dataset.json`.
      max_rows: row numbers kept of each kind of problem.

    Raises:
      DataError: the quarantine file is neither .csv nor .parquet or cannot be written. Problems of
        the data set itself are never raised.
    """
    directory = Path(directory)
    report = Report(directory)
    try:
        spec = DatasetSpec.load(directory)
    except DataError as error:
        report.problems.append(Problem("schema", "", SPEC_FILE, example=str(error)))
        return report
    report.name = spec.name
    store = None if quarantine is None else Quarantine(Path(quarantine), spec, directory)
    with Tables(directory) as tables:
        check = _Check(tables, spec, report.problems)
        for table in ("users", "items", "events"):
            check.table(table, getattr(spec, table))
        report.num_rows = tables.num_rows
        rejected = dict(tables.rows("SELECT source, count(*) FROM rejected GROUP BY source"))
        report.num_rejected = {table: rejected.get(table, 0) for table in tables.num_rows}
        problems = tables.rows(
            f"""SELECT kind, source, name, column_name, count(*),
              list_sort(list(number ORDER BY number)[:{max_rows}]), min_by(reason, number)
            FROM problems JOIN files USING (file)
            GROUP BY kind, source, name, column_name ORDER BY min(place), name"""
        )
        report.problems += [Problem(*row) for row in problems]
        if store is not None:
            store.write(tables)
            report.quarantine, report.clean = store.path, store.clean
    report.problems.sort(key=lambda problem: problem.severity != "error")
    return report


class _Check:
    """Reads and checks the tables of a folder, one after the other.

    Args:
      tables: empty.
      spec: of the data set.
      problems: to which those of whole files and columns are added; those of rows are in `tables`.
    """

    def __init__(self, tables: Tables, spec: DatasetSpec, problems: list[Problem]) -> None:
        self.tables, self.spec, self.problems = tables, spec, problems
        self.needs = TemplateNeeds({}, {}, None)
        # Tables whose rows events may name.
        self.read: list[str] = []
        for name in spec.splits:
            try:
                Split.parse(name, spec.splits)
            except DataError as error:
                self._add("schema", "", SPEC_FILE, f"splits.{name}", error)
        try:
            self.needs = TemplateNeeds.of(spec, str(tables.directory / SPEC_FILE))
        except ConfigError as error:
            self._add("template", "", SPEC_FILE, "", error)

    def _add(
        self, kind: str, table: str, file: Path | str, column: str = "", example: object = ""
    ) -> None:
        """Adds a problem of a whole file or column."""
        name = self.tables.name(file) if isinstance(file, Path) else file
        self.problems.append(Problem(kind, table, name, column, example=str(example)))

    def table(self, table: str, spec: TableSpec | EventsSpec) -> None:
        """Reads a table as far as it can be read, and checks its rows."""
        tables, columns = self.tables, columns_of(spec)
        tables.create(table, columns)
        names = self._usable(table, spec.file, columns)
        is_whole = bool(names)
        for path, of_file in names.items():
            try:
                tables.load(table, path, tables.source(path, of_file), columns)
            except DataError as error:
                self._add("damaged_file", table, path, "", error)
                is_whole = False
        if is_whole and not tables.num_rows[table]:
            self._add("empty_table", table, next(iter(names)))
        tables.check(table, checks.value_checks(columns))
        if not names:
            return
        first = next(iter(names))
        if isinstance(spec, EventsSpec):
            self._events(spec, columns, first)
            return
        there = {name for of_file in names.values() for name in of_file}
        self._records(table, spec, [column for column in columns if column.name in there], first)
        tables.rows(
            f"""CREATE TABLE known_{table} AS SELECT id FROM {table} ANTI JOIN (
              FROM rejected WHERE source = '{table}') USING (row) WHERE id IS NOT NULL"""
        )
        self.read.append(table)

    def _usable(
        self, table: str, file: str | None, columns: list[checks.Column]
    ) -> dict[Path, list[str]]:
        """The files of a table that can be read at all, and the names of their columns."""
        try:
            paths = files.table_files(self.tables.directory, table, file)
        except DataError as error:
            self._add("missing_file", table, file or table, "", error)
            return {}
        wanted, usable = [column.name for column in columns], {}
        for path in paths:
            try:
                names = files.column_names(path)
            except DataError as error:
                self._add("damaged_file", table, path, "", error)
                continue
            for name in wanted:
                if name not in names:
                    text = files.missing_column_message(path, name, names)
                    self._add("missing_column", table, path, name, text)
            for name in names:
                if name not in wanted:
                    self._add("undeclared_column", table, path, name)
            required = wanted if table == "events" else wanted[:1]
            if all(name in names for name in required):
                usable[path] = names
        return usable

    def _records(
        self,
        table: str,
        spec: TableSpec,
        columns: list[checks.Column],
        first: Path,
    ) -> None:
        """Checks users or items, of files the first of which is given."""
        tables = self.tables
        needs = self.needs.users if table == "users" else self.needs.items
        tables.check(table, checks.id_checks(table, spec.id))
        tables.check(table, checks.word_checks(columns, needs))
        if table == "items":
            self._silent(columns)
        tables.check(table, checks.text_notes(columns))
        tables.check(table, checks.whitespace_notes(columns))
        if not tables.num_rows[table]:
            return
        for slot, name, _ in columns[1:]:
            ((count,),) = tables.rows(f"SELECT count({slot}) FROM {table}")
            if not count:
                self._add("empty_column", table, first, name)

    def _silent(self, columns: list[checks.Column]) -> None:
        """Rejects items of which a template says nothing."""
        template = self.needs.template
        if template is None or not optional_item_templates(template):
            return
        names = [name for _, name, _ in columns]
        slots = ", ".join(slot for slot, *_ in columns)
        good = self.tables.rows(
            f"""SELECT row, {slots} FROM items
            ANTI JOIN (FROM rejected WHERE source = 'items') USING (row)"""
        )
        items = [Item(str(row), dict(zip(names, values, strict=True))) for row, *values in good]
        for name, silent in items_without_text(template, items).items():
            rows = pa.table({"row": pa.array(map(int, silent), pa.int64())})
            self.tables.database.register("silent", rows)
            reason = literal(f"template '{name}' says nothing of it")
            where = "row IN (SELECT row FROM silent)"
            self.tables.check(
                "items", [checks.Check("missing_words", self.spec.items.id, where, reason)]
            )

    def _events(self, spec: EventsSpec, columns: list[checks.Column], first: Path) -> None:
        """Checks the events; where no users or items were read, references are not checked."""
        tables = self.tables
        tables.check("events", checks.event_checks(columns, self.read))
        if spec.value is not None:
            self._outcomes(spec.value)
        tables.check("events", [checks.repeated_events(spec.user, spec.value is not None)])
        tables.check("events", checks.whitespace_notes(columns))
        tables.check("events", [checks.order_note(spec.time)])
        if not tables.num_rows["events"]:
            return
        self._repeats(first)
        threshold = self.spec.label.at_least
        if threshold is not None:
            query = f"SELECT DISTINCT value >= {threshold!r} FROM {checks.GOOD}"
            labels = [int(label) for (label,) in tables.rows(query)]
            if len(labels) == 1 and tables.num_rows["events"] > 1:
                text = self.spec.label.only(*labels)
                self._add("one_label", "events", first, spec.value or "", text)

    def _outcomes(self, column: str) -> None:
        """Rejects events for whose value the template has no words."""
        values = self.tables.rows("SELECT DISTINCT value FROM events WHERE value IS NOT NULL")
        distinct = np.array([value for (value,) in values], np.float64)
        silent = pa.table({"value": distinct[self.needs.without_words(distinct)]})
        self.tables.database.register("silent", silent)
        reason = "'no entry of the template''s ''outcomes'' has words for this value'"
        where = "value IN (SELECT value FROM silent)"
        self.tables.check("events", [checks.Check("missing_words", column, where, reason)])

    def _repeats(self, file: Path) -> None:
        """Says what becomes of repeats where `dataset.json` does not."""
        ((share,),) = self.tables.rows(
            f"SELECT 1 - count(DISTINCT (user, item)) / count(*) FROM {checks.GOOD}"
        )
        if self.spec.repeats is not None or not share:
            return
        text = (
            f'{share:.1%}; with "repeats": "{COUNT}" rows want such items, too, negatives repeat '
            f'as often, and nothing is hidden; with "{IGNORE}" only new items are wanted and '
            f'recommended. Where nothing is said it is "{protocol_for(share)}"'
        )
        self._add("repeats", "events", file, "", text)
