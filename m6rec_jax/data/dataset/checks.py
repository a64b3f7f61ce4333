"""What is checked of the rows of a data set folder: each check is a row of a table, with its SQL.

The tables and their columns are those of `data.dataset.tables`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from m6rec_jax.data.dataset.columns import ID, KINDS, TIME, VALUE, literal
from m6rec_jax.data.dataset.schema import DatasetSpec
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
# The share of events with an item that the user had before.
REPEATED = "1 - count(DISTINCT (user, item)) / count(*)"
_NO_WORDS = r"[\s\p{Z}\p{Cf}\p{Cc}]*"
# Where the row `r.first` stands, of `_repeated`.
_FIRST = (
    "concat('row ', r.first.number, CASE WHEN r.first.file <> t.file THEN ' of ' || f.name END)"
)
_UNKNOWN = """concat(shown({slot}), ' is not in the {table} table', CASE
  WHEN {slot} LIKE '%.0' OR EXISTS (FROM good_{table} AS k WHERE k.id = t.{slot} || '.0')
  THEN ' (one of the two was written as a float? write ids alike)' END)"""
_DATES = "(SELECT min(time) >= 19000101 AND max(time) <= 20991231 FROM events)"
_REPEATS_NOTE = (
    "concat(format('{:.1f}%', 100 * share), ' of the events are of an item that the user had "
    'before: say in dataset.json whether rows want such items ("repeats": "count") or only new '
    """ones ("ignore"); where it says nothing, 5% are enough for "count"')"""
)


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


def row_checks(
    table: str, columns: Sequence[Column], references: Collection[str] = ()
) -> Iterator[Check]:
    """All that every row of a table must fulfil: types, ids, times and parts.

    Args:
      table: users, items or events.
      columns: declared ones.
      references: of events, which of users and items they may name: ids of `good_<table>`.
    """
    for slot, name, kind in columns:
        misfit = literal(f" {KINDS[kind].misfit}")
        yield Check("wrong_type", name, f"bad_{slot} IS NOT NULL", f"shown(bad_{slot}) || {misfit}")
        if kind in (ID, TIME, VALUE):
            where = f"{slot} IS NULL AND bad_{slot} IS NULL"
            yield Check("missing_value", name, where, "'the value is missing'")
        if slot == "id":
            reason = f"concat(shown(id), ' stands in ', {_FIRST}, ' already; ids must be unique')"
            yield Check("duplicate_id", name, "t.row > r.row", reason, _repeated(table, "id"))
        elif f"{slot}s" in references:
            is_known = f"EXISTS (FROM good_{slot}s AS known WHERE known.id = t.{slot})"
            reason = _UNKNOWN.format(slot=slot, table=f"{slot}s")
            yield Check(f"unknown_{slot}", name, f"{slot} IS NOT NULL AND NOT {is_known}", reason)
        elif slot == "time":
            reason = "concat(time::BIGINT, ' looks like a date; write it as in 2024-01-31')"
            yield Check("bad_time", name, f"time IS NOT NULL AND {_DATES}", reason)
            where = f"time NOT BETWEEN {FIRST_TIME} AND {LAST_TIME}"
            yield Check("time_out_of_range", name, where, "out_of_range(time)")
        elif slot == "part":
            where = f"bad_part IS NULL AND (part IS NULL OR part NOT IN {tuple(PART_NAMES)})"
            given = "if(part IS NULL, 'a missing value', shown(part))"
            reason = f"concat({given}, ' is none of ', {literal(', '.join(PART_NAMES))})"
            yield Check("unknown_part", name, where, reason)


def template_checks(columns: Sequence[Column], needs: Mapping[str, str]) -> Iterator[Check]:
    """Users or items without a value that a template needs (column -> name of the template)."""
    for slot, name, kind in columns:
        if (template := needs.get(name)) is not None:
            text = f"array_to_string({slot}, '')" if kind == "list<string>" else f"{slot}::VARCHAR"
            silent = f"regexp_full_match({text}, {literal(_NO_WORDS)})"
            reason = literal(f"nothing there, and template '{template}' needs {{{name}}}")
            where = f"bad_{slot} IS NULL AND coalesce({silent}, true)"
            yield Check("missing_words", name, where, reason)


def event_checks(spec: DatasetSpec) -> Iterator[Check]:
    """Events that are there twice, of those that have no other error, and what all of them say."""
    value, at_least = spec.events.value, spec.label.at_least
    key = "user, item, time" + (", value" if value is not None else "")
    reason = f"concat('the same event stands in ', {_FIRST}, ' already')"
    rows = _repeated("good_events", key)
    yield Check("duplicate_event", spec.events.user, "t.row > r.row", reason, rows)
    if spec.repeats is None:
        rows = _whole("good_events", f"{REPEATED} AS share")
        yield Check("repeats", "", "share > 0", _REPEATS_NOTE, rows, "note")
    if value is not None and at_least is not None:
        positives = f"avg((value >= {at_least!r})::INTEGER) AS positives"
        rows = _whole("good_events", f"{positives}, count(value) AS values")
        none, all_ = (literal(spec.label.only(label)) for label in (0, 1))
        reason = f"CASE positives WHEN 0 THEN {none} ELSE {all_} END"
        yield Check("one_label", value, "values > 1 AND positives IN (0, 1)", reason, rows)


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
