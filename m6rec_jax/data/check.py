"""Checks a data set folder and reports every problem with its row numbers.

Nothing stops at the first problem. Ids of users and items are held in memory. Events are streamed
twice: first a database on disk finds which are there twice, then the rows are checked.

With a quarantine file, rows with errors go there, and everything else goes into a clean folder
beside it that `Dataset.open` reads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from m6rec_jax.data import files
from m6rec_jax.data.checked_rows import (
    CheckedRows,
    as_floats,
    check_events,
    check_ids,
    check_part_names,
)
from m6rec_jax.data.key_table import KeyTable, key_table
from m6rec_jax.data.quarantine import Quarantine
from m6rec_jax.data.report import Findings, Report
from m6rec_jax.data.schema import (
    COUNT,
    IGNORE,
    SPEC_FILE,
    DatasetSpec,
    TableSpec,
    protocol_for,
)
from m6rec_jax.data.splits import Split
from m6rec_jax.data.template_needs import TemplateNeeds, items_without_text, optional_item_templates
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.text.records import Item

__all__ = ["Report", "check_dataset"]

# Bars appear only after so many seconds.
_BAR_SECONDS = 3.0


def check_dataset(
    directory: str | Path,
    quarantine: str | Path | None = None,
    *,
    max_rows: int = 10,
    batch_size: int = files.DEFAULT_BATCH_SIZE,
    progress: bool = False,
) -> Report:
    """Checks schema, ids, references, times, values and encodings of a data set folder.

    So that all of it can be rendered, rows are checked for what the template needs, too.

    Args:
      directory: the folder.
      quarantine: a .csv or .parquet file for the rejected rows: all columns of their file as text,
        before them `quarantine_table`, `_file`, `_row` and `_reason`. The other rows are written
        to the folder of the same name with "-clean" at its end, as declared in `dataset.json`.
      max_rows: row numbers kept of each kind of problem.
      batch_size: rows in memory at a time.
      progress: whether to show bars, of what takes more than some seconds.

    Raises:
      DataError: the quarantine file is neither .csv nor .parquet or cannot be written. Problems of
        the data set itself are never raised.
    """
    directory = Path(directory)
    report = Report(directory)
    findings = Findings(max_rows, directory)
    try:
        spec = DatasetSpec.load(directory)
    except DataError as error:
        findings.add("schema", "", SPEC_FILE, example=str(error))
        report.problems = findings.problems()
        return report
    report.name = spec.name
    needs = _check_declared(spec, directory, findings)
    with contextlib.ExitStack() as opened:
        store = None
        if quarantine is not None:
            store = opened.enter_context(Quarantine(Path(quarantine), spec, directory))
            report.quarantine, report.clean = store.path, store.clean
        keys = opened.enter_context(key_table())
        check = _Check(directory, spec, needs, keys, batch_size, progress, findings, report, store)
        check.table("users", spec.users, needs.users)
        check.table("items", spec.items, needs.items)
        check.events()
    report.problems = findings.problems()
    return report


def _check_declared(spec: DatasetSpec, directory: Path, findings: Findings) -> TemplateNeeds:
    """Checks what dataset.json says of splits and texts."""
    for name in spec.splits:
        try:
            Split.parse(name, spec.splits)
        except DataError as error:
            findings.add("schema", "", SPEC_FILE, f"splits.{name}", example=str(error))
    try:
        return TemplateNeeds.of(spec, str(directory / SPEC_FILE))
    except ConfigError as error:
        findings.add("template", "", SPEC_FILE, example=str(error))
        return TemplateNeeds({}, {}, None)


@dataclass(frozen=True)
class _Check:
    directory: Path
    spec: DatasetSpec
    needs: TemplateNeeds
    keys: KeyTable
    batch_size: int
    progress: bool
    findings: Findings
    report: Report
    store: Quarantine | None
    # Numbers of the good rows of users and items by id; a table that has no files is left out.
    known: dict[str, dict[str, int]] = field(default_factory=dict)

    # ---- users and items

    def table(self, table: str, spec: TableSpec, needs: Mapping[str, str]) -> None:
        """Checks users or items, and lets the ids of the good rows be known."""
        paths = self._files(table, spec.file, [spec.id], list(spec.columns))
        if paths is None:
            return
        there, filled = set[str](), set[str]()
        seen: dict[str, int] = {}
        rejected: list[str] = []
        for rows in self._batches(table, paths):
            check_ids(rows, spec.id, seen)
            rows.note_whitespace(spec.id)
            rows.note_text(spec.id)
            for name, kind in spec.columns.items():
                if name in rows.raw.batch.schema.names:
                    there.add(name)
                    values = rows.convert(name, kind)
                    if values.null_count < len(values):
                        filled.add(name)
                    rows.note_text(name)
                    if name in needs:
                        rows.require_words(name, needs[name])
            if table == "items":
                self._silent(rows)
            good = rows.good()
            for offset in np.flatnonzero(~good).tolist():
                id_ = rows.values[spec.id][offset].as_py()
                if id_ is not None and seen[id_] == rows.numbers[offset]:
                    rejected.append(id_)
            self._write(rows, good)
        for id_ in rejected:
            del seen[id_]
        self.known[table] = seen
        if self.report.num_rows[table]:
            for name in spec.columns:
                if name in there and name not in filled:
                    self.findings.add("empty_column", table, paths[0], name)

    def _silent(self, rows: CheckedRows) -> None:
        """Rejects items of which a template says nothing."""
        template, spec = self.needs.template, self.spec.items
        if template is None or not optional_item_templates(template):
            return
        there = {
            name: rows.values[name].to_pylist() for name in spec.columns if name in rows.values
        }
        items = [
            Item(str(offset), {name: values[offset] for name, values in there.items()})
            for offset in np.flatnonzero(rows.good()).tolist()
        ]
        for name, silent in items_without_text(template, items).items():
            reason = f"template '{name}' says nothing of it"
            rows.reject("missing_words", list(map(int, silent)), spec.id, reason)

    # ---- events

    def events(self) -> None:
        """Checks the events; where no users or items were read, references are not checked."""
        spec = self.spec.events
        paths = self._files("events", spec.file, list(spec.kinds), [])
        if paths is None:
            return
        any_rejected = False
        for rows in self._quiet("events", paths, list(spec.kinds)):
            times, values = self._event_columns(rows)
            # NaN would not equal itself as a key, nor would -0.0 equal 0.0.
            key = {"time": times + 0.0, "value": np.nan_to_num(values, nan=0.0) + 0.0}
            ids = {"user": rows.values[spec.user], "item": rows.values[spec.item]}
            found = pa.table({"row": rows.numbers, **ids, **key})
            self.keys.add(found.filter(pa.array(rows.good())))
            any_rejected = any_rejected or bool(rows.reasons)
        self.keys.find_repeats()
        # Ids need not be looked up again where all are known.
        again = self if any_rejected else replace(self, known={})
        latest = -math.inf
        labels: set[int] = set()
        for rows in self._batches("events", paths):
            times, values = again._event_columns(rows)
            repeats = self.keys.repeats(int(rows.numbers[0]), int(rows.numbers[-1]) + 1)
            for number, first in repeats:
                text = f"the same event stands in {rows.place(first)} already"
                offset = int(np.searchsorted(rows.numbers, number))
                rows.reject("duplicate_event", [offset], spec.user, text)
            good = rows.good()
            kept = np.flatnonzero(good)
            sequence = np.concatenate([[latest], times[kept]])
            rows.note("not_sorted", kept[sequence[1:] < sequence[:-1]], spec.time)
            latest = float(sequence[-1])
            if self.spec.label.at_least is not None:
                labels.update(np.unique(self.spec.label.labels(values[good])).tolist())
            self._write(rows, good)
        self._note_repeats(paths[0])
        if len(labels) == 1 and self.report.num_rows["events"] > 1:
            text = self.spec.label.only(*labels)
            self.findings.add("one_label", "events", paths[0], spec.value or "", example=text)

    def _note_repeats(self, file: Path) -> None:
        """Says what becomes of repeats where `dataset.json` does not."""
        share = self.keys.share_of_repeats()
        if self.spec.repeats is not None or not share:
            return
        text = (
            f'{share:.1%}; with "repeats": "{COUNT}" rows want such items, too, negatives repeat '
            f'as often, and nothing is hidden; with "{IGNORE}" only new items are wanted and '
            f'recommended. Where nothing is said it is "{protocol_for(share)}"'
        )
        self.findings.add("repeats", "events", file, example=text)

    def _event_columns(self, rows: CheckedRows) -> tuple[np.ndarray, np.ndarray]:
        """Converts a batch of events, rejecting bad rows; returns times and values `[n]`."""
        spec = self.spec.events
        check_events(rows, spec, self.known.get("users"), self.known.get("items"))
        rows.note_whitespace(spec.user)
        rows.note_whitespace(spec.item)
        times = as_floats(rows.values[spec.time])
        values = np.full(len(times), np.nan)
        if spec.value is not None:
            values = as_floats(rows.values[spec.value])
            text = "no entry of the template's 'outcomes' has words for this value"
            offsets = np.flatnonzero(self.needs.without_words(values))
            rows.reject("missing_words", offsets, spec.value, text)
        if spec.part is not None:
            check_part_names(rows, spec.part)
        return times, values

    # ---- shared

    def _files(
        self, table: str, file: str | None, required: list[str], optional: list[str]
    ) -> list[Path] | None:
        """The files of a table that can be read at all; None when there are none."""
        self.report.num_rows[table] = self.report.num_rejected[table] = 0
        try:
            paths = files.table_files(self.directory, table, file)
        except DataError as error:
            self.findings.add("missing_file", table, file or table, example=str(error))
            return None
        usable = []
        for path in paths:
            try:
                names = files.column_names(path)
            except DataError as error:
                self.findings.add("damaged_file", table, path, example=str(error))
                continue
            for column in (*required, *optional):
                if column not in names:
                    text = files.missing_column_message(path, column, names)
                    self.findings.add("missing_column", table, path, column, example=text)
            for name in names:
                if name not in (*required, *optional):
                    self.findings.add("undeclared_column", table, path, name)
            if all(column in names for column in required):
                usable.append(path)
        return usable or None

    def _quiet(
        self, table: str, paths: Sequence[Path], wanted: Sequence[str]
    ) -> Iterator[CheckedRows]:
        """The same rows, some columns of them, without a word in the report."""
        report = Report(self.directory, num_rows={table: 0}, num_rejected={table: 0})
        quiet = replace(self, findings=Findings(0, self.directory), report=report, store=None)
        return quiet._batches(table, paths, wanted)

    def _batches(
        self, table: str, paths: Sequence[Path], wanted: Sequence[str] | None = None
    ) -> Iterator[CheckedRows]:
        """Streams all rows; reports damage and rows with too many or few columns."""
        counts = self.report.num_rows
        starts: list[tuple[int, Path]] = []
        first_row = 0
        with progress_bar(
            desc=f"{'checking' if wanted is None else 'comparing'} {table}",
            unit=" rows",
            total=sum(files.num_rows(path) or 0 for path in paths) or None,
            delay=_BAR_SECONDS,
            disable=not self.progress,
        ) as bar:
            is_whole = True
            for path in paths:
                start = first_row
                try:
                    ragged = self._ragged(table)
                    for raw in files.raw_batches([path], wanted, self.batch_size, ragged):
                        counts[table] += raw.batch.num_rows
                        raw = replace(raw, first_row=start)
                        rows = CheckedRows(raw, starts, table, self.findings)
                        first_row = int(rows.numbers[-1]) + 1
                        yield rows
                        self.report.num_rejected[table] += len(rows.reasons)
                        bar.update(raw.batch.num_rows)
                except DataError as error:
                    self.findings.add("damaged_file", table, path, example=str(error))
                    is_whole = False
        if is_whole and not counts[table]:
            self.findings.add("empty_table", table, paths[0])

    def _ragged(self, table: str) -> files.RaggedRow:
        def report(path: Path, row: int, expected: int, found: int, text: str) -> None:
            reason = f"{found} columns, not {expected}: {text[:80]!r}"
            self.findings.add("ragged_row", table, path, rows=[row], example=reason)
            self.report.num_rows[table] += 1
            self.report.num_rejected[table] += 1
            if self.store is not None:
                self.store.reject_text(table, path, row, reason, text)

        return report

    def _write(self, rows: CheckedRows, good: np.ndarray) -> None:
        if self.store is None:
            return
        self.store.keep(rows.table, rows.values, good)
        reasons = {offset: "; ".join(texts) for offset, texts in sorted(rows.reasons.items())}
        self.store.reject(rows.table, rows.raw, reasons)
