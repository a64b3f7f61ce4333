"""What a check of a data set folder found: kinds of problems with counts and first row numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Severity = Literal["error", "note"]

KINDS: Mapping[str, tuple[Severity, str]] = {
    "schema": ("error", "dataset.json does not fit"),
    "missing_file": ("error", "a table's file is missing or ambiguous"),
    "damaged_file": ("error", "a file cannot be read to its end"),
    "missing_column": ("error", "a declared column is missing"),
    "empty_table": ("error", "a table has no rows"),
    "ragged_row": ("error", "wrong number of columns"),
    "missing_id": ("error", "no id"),
    "missing_time": ("error", "no time"),
    "missing_value": ("error", "no value"),
    "invalid_utf8": ("error", "invalid UTF-8"),
    "wrong_type": ("error", "value of another type than declared"),
    "template": ("error", "the template of dataset.json does not fit"),
    "missing_words": ("error", "no value that the template has words for, and it needs one"),
    "bad_list": ("error", "list that cannot be read"),
    "bad_time": ("error", "time that cannot be read"),
    "nan": ("error", "value is not a number"),
    "time_out_of_range": ("error", "time before 1970 or after 2100"),
    "duplicate_id": ("error", "id stands in an earlier row already"),
    "duplicate_event": ("error", "same user, item, time and value as an earlier row"),
    "unknown_user": ("error", "user is not in the users table"),
    "unknown_item": ("error", "item is not in the items table"),
    "unknown_part": ("error", "part is none of train, validation, test and context"),
    "one_label": ("error", "all events have the same label"),
    "repeats": ("note", "events with an item that the user had before, of which nothing is said"),
    "not_sorted": ("note", "time lies before that of the row above (no harm: reading sorts)"),
    "control_characters": ("note", "control characters in text"),
    "wrong_encoding": ("note", "text that was decoded with the wrong encoding"),
    "outer_whitespace": ("note", "id begins or ends with a space"),
    "undeclared_column": ("note", "column of the file that dataset.json does not declare"),
    "empty_column": ("note", "declared column without a single value"),
    "rows_in_value": ("note", "value that holds whole rows; a double quote may lack its end"),
    "missing_as_text": ("note", "text that says that a value is missing; leave the cell empty"),
}


@dataclass(slots=True)
class Problem:
    """One kind of problem in one file (and column).

    Attributes:
      kind: a key of `KINDS`.
      table: users, items or events; "" for dataset.json.
      file: the file, relative to the folder.
      column: the column, or "".
      count: rows concerned (1 for a problem of the whole file).
      rows: the first of their numbers, from 0, ascending.
      example: what was found in the first.
    """

    kind: str
    table: str
    file: str
    column: str = ""
    count: int = 0
    rows: list[int] = field(default_factory=list)
    example: str = ""

    @property
    def severity(self) -> Severity:
        """Errors stop reading and put rows into quarantine; notes do neither."""
        return KINDS[self.kind][0]

    @property
    def title(self) -> str:
        """Where it is, and what kind of problem."""
        place = self.file + (f", column {self.column!r}" if self.column else "")
        return f"{place}: {KINDS[self.kind][1]}"


@dataclass(slots=True)
class Report:
    """The result of `check_dataset`.

    Attributes:
      directory: the folder.
      name: name of the data set, "" when dataset.json cannot be read.
      num_rows: rows of each table.
      num_rejected: rows of each table with at least one error.
      problems: errors first, in the order of the tables.
      quarantine: the file rejected rows were written to.
      clean: the folder the other rows were written to.
    """

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

    def of_kind(self, kind: str) -> Sequence[Problem]:
        """The problems of one kind."""
        return [problem for problem in self.problems if problem.kind == kind]

    def to_json(self) -> str:
        """A JSON object: the attributes, `ok`, and `severity` of each problem."""
        values = {
            "directory": str(self.directory),
            "name": self.name,
            "ok": self.ok,
            "num_rows": self.num_rows,
            "num_rejected": self.num_rejected,
            "problems": [
                {"severity": problem.severity, **asdict(problem)} for problem in self.problems
            ],
            "quarantine": None if self.quarantine is None else str(self.quarantine),
            "clean": None if self.clean is None else str(self.clean),
        }
        return json.dumps(values, indent=2, ensure_ascii=False)

    def render(self) -> str:
        """The report as lines of text."""
        counts = ", ".join(f"{count:,} {table}" for table, count in self.num_rows.items())
        lines = [f"{self.name or self.directory}: {counts or 'nothing could be read'}"]
        for problem in self.problems:
            head = f"{problem.severity}: {problem.title}"
            if problem.rows:
                more = ", ..." if problem.count > len(problem.rows) else ""
                word = "row" if problem.count == 1 else "rows"
                rows = ", ".join(map(str, problem.rows))
                head += f": {problem.count:,} {word} ({rows}{more})"
            lines.append(head)
            if problem.example:
                first = "" if not problem.rows or problem.count == 1 else "first: "
                lines.append(f"    {first}{problem.example}")
        rejected = sum(self.num_rejected.values())
        if self.ok:
            lines.append("No errors.")
        elif rejected:
            parts = ", ".join(f"{n:,} of {table}" for table, n in self.num_rejected.items() if n)
            lines.append(f"{rejected:,} rows have errors ({parts}). Rows are counted from 0.")
        if self.quarantine is not None:
            lines.append(f"Rejected rows: {self.quarantine}")
        if self.clean is not None:
            lines.append(f"The data set without them: {self.clean}")
        return "\n".join(lines)


class Findings:
    """Collects problems while tables stream by."""

    def __init__(self, max_rows: int, directory: Path) -> None:
        self.max_rows, self.directory = max_rows, directory
        self._found: dict[tuple[str, str, str, str], Problem] = {}

    def add(
        self,
        kind: str,
        table: str,
        file: str | Path,
        column: str = "",
        *,
        rows: Sequence[int] = (),
        example: str = "",
    ) -> None:
        """Counts rows (given in ascending order) of one kind; without rows, the file itself."""
        file = self.name_of(file)
        key = (kind, table, file, column)
        problem = self._found.get(key)
        if problem is None:
            problem = self._found[key] = Problem(kind, table, file, column, example=example)
        problem.count += len(rows) or 1
        problem.rows.extend(int(row) for row in rows[: self.max_rows - len(problem.rows)])

    def name_of(self, file: str | Path) -> str:
        """What a file is called: files of several folders may share a name."""
        return os.path.relpath(file, self.directory) if isinstance(file, Path) else file

    def problems(self) -> list[Problem]:
        """Everything found, errors first, then in the order in which it was met."""
        return sorted(self._found.values(), key=lambda problem: problem.severity != "error")
