"""What is checked of the rows of a data set folder: each check is a row of a table, with its SQL.

The tables and their columns are those of `data.dataset.tables`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from m6rec_jax.data.dataset.columns import ID, KINDS, TIME, VALUE, literal
from m6rec_jax.data.dataset.values import FIRST_TIME, LAST_TIME, MISSING_WORD
from m6rec_jax.data.splitting.splits import PART_NAMES

# Notes about texts: kind, what matches, and what is said of it.
_TEXT_NOTES = (
    ("control_characters", r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}]", "has control characters"),
    # U+FFFD, or UTF-8 that was read as Latin-1 or Windows-1252 (é as Ã©, an apostrophe as â€™).
    (
        "wrong_encoding",
        r"\x{FFFD}|[\x{C2}\x{C3}][\x{80}-\x{BF}]|\x{E2}\x{20AC}",
        "was decoded with the wrong encoding",
    ),
    ("missing_as_text", MISSING_WORD, "says that a value is missing; leave the cell empty"),
)
# Rows of events without errors so far.
GOOD = "(FROM events ANTI JOIN rejected_rows USING (row))"
# The share of events with an item that the user had before.
REPEATED = "1 - count(DISTINCT (user, item)) / count(*)"
# What is missing where no time, and so on.
REQUIRED = {ID: "missing_id", TIME: "missing_time", VALUE: "missing_value"}
_NO_WORDS = r"[\s\p{Z}\p{Cf}\p{Cc}]*"


class Column(NamedTuple):
    """A declared column: what a table of `data.dataset.tables` calls it, its name, and its kind."""

    slot: str
    name: str
    kind: str


class Check(NamedTuple):
    """A kind of problem, and how to find its rows.

    Attributes:
      kind: its name in reports.
      column: that the report names.
      where: a condition in SQL.
      reason: a text in SQL: what is wrong with a row, and what to do.
      rows: what stands after FROM, with the table that is checked as `t`; "": that table alone.
      severity: 'error', which stops reading and rejects the row, or 'note'.
    """

    kind: str
    column: str
    where: str
    reason: str
    rows: str = ""
    severity: str = "error"


def row_checks(table: str, columns: Sequence[Column], references: Sequence[str]) -> list[Check]:
    """All that every row of a table must fulfil.

    Args:
      table: users, items or events.
      columns: declared ones.
      references: of events, which of users and items are looked up in `known_<table>`.
    """
    checks = [*value_checks(columns)]
    if table == "events":
        return [*checks, *event_checks(columns, references)]
    return [*checks, *id_checks(table, columns[0].name)]


def value_checks(columns: Sequence[Column]) -> Iterator[Check]:
    """Values that do not fit their types, and ids, times and values that are not there."""
    for slot, name, kind in columns:
        bad, reason = f"bad_{slot}", literal(f" {KINDS[kind].misfit}")
        where = f"{bad} IS NOT NULL"
        if kind == VALUE:
            is_nan = f"lower(trim({bad})) IN ('nan', '-nan')"
            yield Check("nan", name, is_nan, "'the value is NaN'")
            where += f" AND NOT {is_nan}"
        yield Check(KINDS[kind].problem, name, where, f"shown({bad}) || {reason}")
        if kind in REQUIRED:
            where = f"{slot} IS NULL AND {bad} IS NULL"
            yield Check(REQUIRED[kind], name, where, "'the value is missing'")


def id_checks(table: str, name: str) -> Iterator[Check]:
    """Ids of users or items that are there twice."""
    reason = f"concat(shown(t.id), ' stands in ', {_FIRST}, ' already, and ids must be unique')"
    yield Check("duplicate_id", name, "t.row > r.row", reason, _repeated(table, "id"))


def event_checks(columns: Sequence[Column], tables: Sequence[str]) -> Iterator[Check]:
    """Events with times that cannot be, or users and items that are not in `tables`."""
    names = {slot: name for slot, name, _ in columns}
    for table in tables:
        slot = table.removesuffix("s")
        is_known = f"EXISTS (FROM known_{table} AS known WHERE known.id = t.{slot})"
        reason = f"""concat(shown({slot}), ' is not in the {table} table', CASE
          WHEN {slot} LIKE '%.0' OR EXISTS (FROM known_{table} AS k WHERE k.id = t.{slot} || '.0')
          THEN ' (one of the two was written as a float? write ids alike)' END)"""
        where = f"{slot} IS NOT NULL AND NOT {is_known}"
        yield Check(f"unknown_{slot}", names[slot], where, reason)
    are_dates = "(SELECT min(time) >= 19000101 AND max(time) <= 20991231 FROM events)"
    reason = "concat(time::BIGINT, ' looks like a date; write it with dashes, as in 2024-01-31')"
    yield Check("bad_time", names["time"], f"time IS NOT NULL AND {are_dates}", reason)
    where = f"time NOT BETWEEN {FIRST_TIME} AND {LAST_TIME}"
    yield Check("time_out_of_range", names["time"], where, "out_of_range(time)")
    yield from map(part_check, (column for column in columns if column.slot == "part"))


def part_check(column: Column) -> Check:
    """Events whose column of parts says something else."""
    where = f"bad_part IS NULL AND (part IS NULL OR part NOT IN {tuple(PART_NAMES)})"
    names = literal(", ".join(PART_NAMES))
    reason = f"concat(if(part IS NULL, 'a missing value', shown(part)), ' is none of ', {names})"
    return Check("unknown_part", column.name, where, reason)


def template_checks(columns: Sequence[Column], needs: Mapping[str, str]) -> Iterator[Check]:
    """Users or items without a value that a template needs (column -> name of the template)."""
    for slot, name, kind in columns:
        if (template := needs.get(name)) is None:
            continue
        text = f"array_to_string({slot}, '')" if kind == "list<string>" else f"{slot}::VARCHAR"
        silent = f"regexp_full_match({text}, {literal(_NO_WORDS)})"
        reason = literal(f"nothing there, and template '{template}' needs {{{name}}}")
        where = f"bad_{slot} IS NULL AND coalesce({silent}, true)"
        yield Check("missing_words", name, where, reason)


def repeated_events(name: str, has_value: bool) -> Check:
    """Events that are there twice, of those that have no other error."""
    key = "user, item, time" + (", value" if has_value else "")
    reason = f"concat('the same event stands in ', {_FIRST}, ' already')"
    return Check("duplicate_event", name, "t.row > r.row", reason, _repeated(GOOD, key))


def column_notes(table: str, columns: Sequence[Column]) -> Iterator[Check]:
    """Texts, also in lists, with control characters and the like, and columns without a value."""
    for slot, name, kind in columns:
        rows = _whole(table, f"count({slot}) AS filled, count(*) AS rows")
        where, reason = "filled = 0 AND rows > 0", "'no row has a value in this column'"
        yield Check("empty_column", name, where, reason, rows, "note")
        if kind not in ("string", ID, "list<string>"):
            continue
        texts = slot if kind == "list<string>" else f"[{slot}]"
        for problem, pattern, text in _TEXT_NOTES:
            matching = f"list_filter({texts}, lambda m: regexp_matches(m, {literal(pattern)}))"
            reason = f"shown({matching}[1]) || {literal(' ' + text)}"
            yield Check(problem, name, f"len({matching}) > 0", reason, severity="note")


def repeats_note() -> Check:
    """Events with items that the user had before, where nothing says what becomes of them."""
    reason = (
        "concat(format('{:.1f}%', 100 * share), ' of the events are of an item that the user had "
        'before: say in dataset.json whether rows want such items ("repeats": "count") or only new '
        """ones ("ignore"); where it says nothing, 5% are enough for "count"')"""
    )
    return Check("repeats", "", "share > 0", reason, _whole(GOOD, f"{REPEATED} AS share"), "note")


def label_check(name: str, at_least: float, reasons: Sequence[str]) -> Check:
    """Events that all are negatives, or positives; `reasons` has what to say of either."""
    positives = f"avg((value >= {at_least!r})::INTEGER) AS positives"
    rows = _whole(GOOD, f"{positives}, count(value) AS values")
    reason = f"CASE positives WHEN 0 THEN {literal(reasons[0])} ELSE {literal(reasons[1])} END"
    return Check("one_label", name, "values > 1 AND positives IN (0, 1)", reason, rows)


# SQL for where the row `r.first` stands, of `_repeated`.
_FIRST = """concat(place(r.first.number), CASE WHEN r.first.file <> t.file
  THEN concat(' of ', f.name) END)"""


def _repeated(table: str, key: str) -> str:
    """Rows `t` of a table that share a key, with the first of them as `r`, in the file `f`."""
    return f"""{table} AS t JOIN (
      SELECT {key}, min(row) AS row, min_by(struct_pack(file, number), row) AS first
      FROM {table} GROUP BY {key} HAVING count(*) > 1) AS r
    USING ({key}) JOIN files AS f ON f.file = r.first.file"""


def _whole(table: str, aggregates: str) -> str:
    """One row about a table: its problems have no row, and reject none."""
    return f"""(SELECT NULL AS row, min(file) AS file, NULL AS number, {aggregates}
      FROM {table}) AS t"""
