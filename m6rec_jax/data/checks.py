"""What is checked of the rows of a data set folder, as tables: kinds of problems, and SQL.

The tables and their columns are those of `data.tables`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from m6rec_jax.data.columns import ID, MISFITS, TIME, VALUE, literal
from m6rec_jax.data.splits import PART_NAMES
from m6rec_jax.data.values import FIRST_TIME, LAST_TIME, MISSING_WORD

KINDS: Mapping[str, tuple[str, str]] = {
    "schema": ("error", "dataset.json does not fit"),
    "missing_file": ("error", "a table's file is missing or ambiguous"),
    "damaged_file": ("error", "a file cannot be read to its end"),
    "missing_column": ("error", "a declared column is missing"),
    "empty_table": ("error", "a table has no rows"),
    "ragged_row": ("error", "row that cannot be split into the columns"),
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
    "missing_as_text": ("note", "text that says that a value is missing; leave the cell empty"),
}
_TEXT_NOTES = {
    "control_characters": r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x{9F}]",
    # U+FFFD, or UTF-8 that was read as Latin-1 or Windows-1252 (é as Ã©, an apostrophe as â€™).
    "wrong_encoding": r"\x{FFFD}|[\x{C2}\x{C3}][\x{80}-\x{BF}]|\x{E2}\x{20AC}",
    "missing_as_text": MISSING_WORD,
}
# Rows of events without errors so far.
GOOD = "(FROM events ANTI JOIN rejected_rows USING (row))"
# What is missing where no time, and so on.
REQUIRED = {ID: "missing_id", TIME: "missing_time", VALUE: "missing_value"}
_NO_WORDS = r"[\s\p{Z}\p{Cf}\p{Cc}]*"


class Column(NamedTuple):
    """A declared column: what a table of `data.tables` calls it, its name, and its kind."""

    slot: str
    name: str
    kind: str


class Check(NamedTuple):
    """A kind of problem, and how to find its rows.

    Attributes:
      kind: a key of `KINDS`.
      column: that the report names.
      where: a condition in SQL.
      reason: a text in SQL: what is wrong with a row.
      rows: what stands after FROM, with the table that is checked as `t`; "": that table alone.
    """

    kind: str
    column: str
    where: str
    reason: str = "''"
    rows: str = ""


def value_checks(columns: Sequence[Column]) -> Iterator[Check]:
    """Values that do not fit their types, and ids, times and values that are not there."""
    for slot, name, kind in columns:
        bad, (problem, reason) = f"bad_{slot}", MISFITS[kind]
        where = f"{bad} IS NOT NULL"
        if kind == VALUE:
            is_nan = f"lower(trim({bad})) IN ('nan', '-nan')"
            yield Check("nan", name, is_nan, "'the value is NaN'")
            where += f" AND NOT {is_nan}"
        yield Check(problem, name, where, f"shown({bad}) || {literal(' ' + reason)}")
        if kind in REQUIRED:
            where = f"{slot} IS NULL AND {bad} IS NULL"
            yield Check(REQUIRED[kind], name, where, "'the value is missing'")


def id_checks(table: str, name: str) -> Iterator[Check]:
    """Ids of users or items that are there twice."""
    first = "SELECT id, min_by(struct_pack(file, number), row) AS first, min(row) AS row"
    yield Check(
        "duplicate_id",
        name,
        "t.row > r.row",
        f"concat(shown(t.id), ' stands in ', {_place('r.first')}, ' already, and ids must be "
        "unique')",
        f"{table} AS t JOIN ({first} FROM {table} GROUP BY id HAVING count(*) > 1) AS r USING (id) "
        "JOIN files AS f ON f.file = r.first.file",
    )


def word_checks(columns: Sequence[Column], needs: Mapping[str, str]) -> Iterator[Check]:
    """Users or items without a value that a template needs."""
    for slot, name, kind in columns:
        if (template := needs.get(name)) is None:
            continue
        text = f"CAST({slot} AS VARCHAR)"
        if kind == "list<string>":
            text = f"array_to_string({slot}, '')"
        silent = f"regexp_full_match({text}, {literal(_NO_WORDS)})"
        reason = f"nothing there, and template '{template}' needs {{{name}}}"
        where = f"bad_{slot} IS NULL AND coalesce({silent}, true)"
        yield Check("missing_words", name, where, literal(reason))


def event_checks(columns: Sequence[Column], tables: Sequence[str]) -> Iterator[Check]:
    """Events with times that cannot be, or users and items that are not in `tables`."""
    names = {slot: name for slot, name, _ in columns}
    for table in tables:
        slot = table.removesuffix("s")
        known = f"EXISTS (FROM known_{table} AS known WHERE known.id = %s)"
        as_float = known % f"t.{slot} || '.0'"
        hint = (
            f"CASE WHEN {as_float} THEN concat(' (there it was "
            f"written as a float, ', {slot}, '.0? write ', {slot}, ' there)') "
            f"WHEN {slot} LIKE '%.0' THEN concat(' (a whole number that was written as a float? "
            f"write ', {slot}[:-3], ')') END"
        )
        yield Check(
            f"unknown_{slot}",
            names[slot],
            f"{slot} IS NOT NULL AND NOT {known % f't.{slot}'}",
            f"concat(shown({slot}), ' is not in the {table} table', {hint})",
        )
    digits = "CAST(CAST(time AS BIGINT) AS VARCHAR)"
    date = f"try_strptime({digits}, '%Y%m%d')"
    plain = "min(time) >= 19000101 AND max(time) <= 20991231 AND bool_and(time = trunc(time) AND "
    plain += f"{date} IS NOT NULL)"
    yield Check(
        "bad_time",
        names["time"],
        f"time IS NOT NULL AND (SELECT {plain} FROM events)",
        f"concat({digits}, ' looks like a date, and would be of August 1970 as unix seconds; "
        f"write ', strftime({date}, '%Y-%m-%d'))",
    )
    yield Check(
        "time_out_of_range",
        names["time"],
        f"time NOT BETWEEN {FIRST_TIME} AND {LAST_TIME}",
        "out_of_range(time)",
    )
    for column in columns:
        if column.slot == "part":
            yield part_check(column)


def part_check(column: Column) -> Check:
    """Events whose column of parts says something else."""
    return Check(
        "unknown_part",
        column.name,
        f"bad_part IS NULL AND (part IS NULL OR part NOT IN {tuple(PART_NAMES)})",
        "CASE WHEN part IS NULL THEN 'the value is missing' ELSE "
        f"concat(shown(part), ' is none of ', {literal(', '.join(PART_NAMES))}) END",
    )


def repeated_events(name: str, has_value: bool) -> Check:
    """Events that are there twice, of those that have no other error."""
    value = ", value" if has_value else ""
    return Check(
        "duplicate_event",
        name,
        "t.row > r.row",
        f"concat('the same event stands in ', {_place('r.first')}, ' already')",
        f"""{GOOD} AS t JOIN (
          SELECT user, item, time{value}, min(row) AS row,
            min_by(struct_pack(file, number), row) AS first
          FROM {GOOD} GROUP BY user, item, time{value} HAVING count(*) > 1) AS r
        USING (user, item, time{value}) JOIN files AS f ON f.file = r.first.file""",
    )


def text_notes(columns: Sequence[Column]) -> Iterator[Check]:
    """Texts, also in lists, with control characters, of a wrong encoding, and the like."""
    for slot, name, kind in columns:
        for problem, pattern in _TEXT_NOTES.items():
            if kind in ("string", ID):
                where = f"regexp_matches({slot}, {literal(pattern)})"
                yield Check(problem, name, where, f"shown({slot})")
            elif kind == "list<string>":
                members = f"list_filter({slot}, lambda m: regexp_matches(m, {literal(pattern)}))"
                yield Check(problem, name, f"len({members}) > 0", f"shown({members}[1])")


def whitespace_notes(columns: Sequence[Column]) -> Iterator[Check]:
    """Ids that begin or end with a space."""
    for slot, name, kind in columns:
        if kind == ID:
            yield Check("outer_whitespace", name, rf"regexp_matches({slot}, '^\s|\s$')")


def order_note(name: str) -> Check:
    """Events whose time lies before that of the one above."""
    rows = f"(SELECT *, time < lag(time) OVER (ORDER BY row) AS is_early FROM {GOOD}) AS t"
    return Check("not_sorted", name, "is_early", rows=rows)


def _place(first: str) -> str:
    """SQL for where the row of a struct of file and number stands, beside `t` and `files AS f`."""
    return (
        f"concat(place({first}.number), CASE WHEN {first}.file <> t.file "
        "THEN concat(' of ', f.name) END)"
    )
