"""What a check of a data set folder found: kinds of problems with counts and first row numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from m6rec_jax.data.checks import KINDS


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
    count: int = 1
    rows: list[int] = field(default_factory=list)
    example: str = ""

    @property
    def severity(self) -> str:
        """'error' or 'note': errors stop reading and put rows into quarantine."""
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
        problems = [{"severity": own.severity, **asdict(own)} for own in self.problems]
        values = {**asdict(self), "ok": self.ok, "problems": problems}
        return json.dumps(values, indent=2, ensure_ascii=False, default=str)

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
