"""`m6rec data init`: drafts the `dataset.json` of tables by what their columns hold.

Ids are recognised by one table's values standing in another one, times and values by their form and
name. All of it is a guess, which is said, and `m6rec data check` tells whether it fits.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from m6rec_jax.data.dataset import columns, files
from m6rec_jax.data.dataset.columns import identifier, literal
from m6rec_jax.data.dataset.schema import LIST_SEPARATOR, SPEC_FILE, EventsSpec, TableSpec
from m6rec_jax.data.dataset.tables import Source, Tables, columns_of
from m6rec_jax.data.dataset.values import LAST_TIME, out_of_range
from m6rec_jax.data.getting.draft import add_users, draft, without_reserved
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file

_EVENTS = re.compile(
    r"event|interaction|rating|purchase|order|transaction|click|basket|sale"
    r"|view(?!er)|play(?!er)|(?<![a-z])log",  # not viewers, players, a catalog
    re.I,
)
_USERS = re.compile(
    r"user|customer|buyer|member|client|person|visitor|account|reader|household", re.I
)
_TIMES = re.compile(r"time|date|when|stamp|(^|_)(at|ts|on)$", re.I)
_RATINGS = re.compile(r"rating|stars", re.I)
_VALUES = re.compile(r"score|value|seconds|dwell|duration", re.I)
# What was paid, or how much was bought, says nothing of liking.
_AMOUNTS = re.compile(
    r"sale|price|amount|quantit|qty|revenue|paid|cost|discount|total|spen[dt]|order|basket|units",
    re.I,
)
_IDS = re.compile(r"id$|sku|key|code|ean", re.I)
# Unix seconds of 1973: smaller numbers are hardly times.
_LEAST_SECONDS = 1e8


def init_dataset(
    paths: Sequence[Path], name: str | None = None, at_least: float | None = None
) -> list[str]:
    """Writes `dataset.json` beside the tables, and returns what was guessed, in lines for the user.

    Where there is no table of users, `users.parquet` with their ids is written, too.

    Args:
      paths: tables of events and items, perhaps also of users; CSV or Parquet, in one folder; or
        that folder, which then has no other such files.
      name: of the data set; None: what the folder is called.
      at_least: from which value an event is a positive; None: what divides events most evenly.

    Raises:
      DataError: the tables cannot be read, or it cannot be told which is which or where the ids,
        the times and texts of items are; or there is a `dataset.json`.
      ConfigError: a threshold that divides nothing.
    """
    if len(paths) == 1 and paths[0].is_dir():
        there = sorted(paths[0].iterdir())
        paths = [path for path in there if path.suffix.lower() in files.SUFFIXES]
    folders = {path.parent for path in paths}
    if len(paths) not in (2, 3) or len(folders) != 1:
        names = ", ".join(map(str, paths)) or "none"
        raise DataError(
            "name two or three tables of one folder (events, items and perhaps users), not "
            f"{len(paths)}: {names}"
        )
    (folder,) = folders
    new_users = folder / "users.parquet"
    if (folder / SPEC_FILE).exists():
        raise DataError(f"{folder / SPEC_FILE} is there: edit it, or remove it for a new draft")
    with Tables(folder) as tables:
        events, items, users = _roles([_Table.read(tables, *one) for one in enumerate(paths)])
        if users is not None:
            user = users.of
        else:
            user = next((n for n in events.types if n != items.of and _USERS.search(n)), "")
            if not user:
                raise events.error("which column is the user", "call it user_id")
            if new_users.exists():
                raise DataError(
                    f"{new_users} is there: name it with the other tables, or remove it"
                )
        time, hint = _time(events, {user, items.of})
        value = _value(events, {user, items.of, time})
        notes: list[str] = []
        of_events = EventsSpec(user, items.of, time, value, events.path.name)
        events.load("events", of_events)
        of_items = items.load("items", notes)
        if users is not None:
            of_users, where = users.load("users", notes), ""
        else:
            of_users = TableSpec(user, {}, new_users.name)
            tables.create("users", columns_of(of_users))
            where = f"{add_users(tables):,} ids, written there"
        spec, decided = draft(
            tables, name or folder.resolve().name, of_users, of_items, of_events, at_least
        )
        if users is None:
            with atomic_file(new_users) as scratch:
                tables.write_table("users", scratch)
    spec.save(folder)
    title = spec.items.title
    return [
        f"users: {of_users.file}: id {of_users.id!r}; {where or _shown(of_users)}",
        f"items: {of_items.file}: id {items.id!r}; {_shown(of_items)}; "
        + (f"title, shown to people, {title!r}" if title else "no title: their texts are shown"),
        f"events: {events.path.name}: user {user!r}, item {items.of!r}, time {time!r}"
        + (f", value {value!r}" if value else "")
        + hint,
        *decided,
        *notes,
        f"{folder / SPEC_FILE}: drafted from {events.num_rows:,} events. Read it: remove columns "
        "that say nothing, and write the template as you would tell a person. Then: m6rec data "
        f"check {folder}",
    ]


class _Filled(NamedTuple):
    """Cells of a column that are not empty."""

    number: int
    distinct: int
    least: Any
    most: Any


@dataclass(frozen=True)
class _Table:
    """A file as the table `source.sql` of a database, with the columns that have a name."""

    tables: Tables
    path: Path
    source: Source
    num_rows: int

    @classmethod
    def read(cls, tables: Tables, place: int, path: Path) -> _Table:
        files.table_files(path.parent, path.stem, path.name)  # says where it is none
        source = tables.source(path, files.column_names(path))
        num_rows = tables.copied(f"CREATE TABLE t{place} AS SELECT * FROM {source.sql}", path)
        if not num_rows:
            raise DataError(f"{path} has no rows below the line that names the columns; add some")
        types = {name: kind for name, kind in source.types.items() if name != files.UNNAMED}
        return cls(tables, path, Source(f"t{place}", types), num_rows)

    @property
    def types(self) -> dict[str, str]:
        return dict(self.source.types)

    def error(self, what: str, mend: str) -> DataError:
        return DataError(
            f"{self.path}: it cannot be told {what} (columns: {', '.join(self.types)}); {mend}, "
            f"or write {SPEC_FILE} by hand (docs/own_data.md)"
        )

    def query(self, values: str) -> tuple[Any, ...]:
        """The one row of a query of the table."""
        return self.tables.rows(f"SELECT {values} FROM {self.source.sql}")[0]

    def value(self, name: str, kind: str) -> tuple[str, str]:
        """SQL for the values of a column as a kind, and for those that do not fit."""
        return columns.conversion(identifier(name), self.types[name], kind)

    def load(self, table: str, spec: TableSpec | EventsSpec) -> None:
        """Makes a table of a data set of it."""
        self.tables.create(table, columns_of(spec))
        self.tables.insert(table, self.path, self.source)

    def filled(self, name: str, kind: str) -> _Filled | None:
        """What is in the cells of a column; None where most are empty, or of another kind.

        What to do about empty ones is for `m6rec data check` to say.
        """
        value, bad = self.value(name, kind)
        misfits, *contents = self.query(
            f"""count(*) FILTER (({bad}) IS NOT NULL AND lower(trim({bad})) <> 'nan'),
            count({value}), count(DISTINCT {value}), min({value}), max({value})"""
        )
        filled = _Filled(*contents)
        is_one = not misfits and filled.number >= max(1, self.num_rows / 2)
        return filled if is_one else None

    def kind(self, name: str) -> str:
        """The type of a column of users or items."""
        if self.types[name].endswith("[]"):
            return "list<string>"
        if self.types[name] == "BOOLEAN":
            return "bool"
        kinds = ("int", "float", "bool")
        misfits = ", ".join(f"count({self.value(name, kind)[1]})" for kind in kinds)
        text = self.value(name, "string")[0]
        # As numbers, codes such as 007 would lose their zeros.
        is_code, divided, *counts = self.query(
            f"""bool_or(regexp_matches({text}, '^0[0-9]')),
            avg(CAST(contains({text}, {literal(LIST_SEPARATOR)}) AS INTEGER)), {misfits}"""
        )
        for kind, count in zip(kinds, counts, strict=True):
            if not count and (kind == "bool" or not is_code):
                return kind
        return "list<string>" if (divided or 0) > 0.05 else "string"


class _Linked(NamedTuple):
    """A table, its id, and the column of the events that holds such ids."""

    table: _Table
    id: str
    of: str
    likely: float

    def load(self, name: str, notes: list[str]) -> TableSpec:
        """Makes the table of users or of items of it."""
        kinds = {name: self.table.kind(name) for name in self.table.types if name != self.id}
        spec = TableSpec(self.id, without_reserved(name, kinds, notes), self.table.path.name)
        self.table.load(name, spec)
        return spec


def _roles(tables: Sequence[_Table]) -> tuple[_Table, _Linked, _Linked | None]:
    """Events, items, and users if there are some."""
    best: tuple[float, _Table, list[_Linked]] | None = None
    for events in tables:
        others = [table for table in tables if table is not events]
        for links in itertools.product(*(_links(events, table) for table in others)):
            likely = sum(link.likely for link in links) + bool(_EVENTS.search(events.path.stem))
            if len({link.of for link in links}) == len(links) and (
                best is None or likely > best[0]
            ):
                best = likely, events, list(links)
    if best is None:
        names = ", ".join(table.path.name for table in tables)
        raise DataError(
            f"{names}: no column of one holds the ids of the other ones; are ids written alike "
            "(m6rec data check says where they are not, once there is a dataset.json)?"
        )
    _, events, linked = best
    linked.sort(key=lambda link: bool(_USERS.search(f"{link.table.path.stem} {link.id} {link.of}")))
    if len(linked) == 1 and _USERS.search(linked[0].table.path.stem):
        raise DataError(
            f"{events.path.name} and {linked[0].table.path.name}: a table of items is missing"
        )
    return events, linked[0], linked[1] if len(linked) > 1 else None


def _links(events: _Table, other: _Table) -> Iterator[_Linked]:
    """Columns of events whose values stand among the ids of another table, with how likely so."""
    ids = {name: events.filled(name, columns.ID) for name in events.types}
    for key in other.types:
        keys = other.filled(key, columns.ID)
        if keys is None or keys.distinct != other.num_rows:
            continue
        of_table = f"(SELECT {other.value(key, columns.ID)[0]} FROM {other.source.sql})"
        for name, filled in ids.items():
            if filled is None:
                continue
            value, _ = events.value(name, columns.ID)
            (there,) = events.query(f"count(*) FILTER ({value} IN {of_table})")
            if there < filled.number / 2:
                continue
            alike = max(
                difflib.SequenceMatcher(None, name.lower(), text.lower()).ratio()
                for text in (key, f"{other.path.stem.rstrip('s')}_{key}")
            )
            likely = there / events.num_rows + alike + 0.3 * bool(_IDS.search(key))
            yield _Linked(other, key, name, likely)


def _time(events: _Table, taken: set[str]) -> tuple[str, str]:
    """The column of times, and a remark about their unit."""
    candidates = []
    for name in events.types:
        seconds = events.filled(name, columns.TIME)
        if name in taken or seconds is None:
            continue
        if seconds.least >= _LEAST_SECONDS or (seconds.least >= 0 and _TIMES.search(name)):
            empty = events.num_rows - seconds.number
            candidates.append(((not _TIMES.search(name), empty), name, seconds.most))
    if not candidates:
        raise events.error("when things happened", "a column of times is needed, such as bought_at")
    _, name, most = min(candidates, key=lambda one: one[0])
    return name, f" ({out_of_range(most)})" if most > LAST_TIME else ""


def _value(events: _Table, taken: set[str]) -> str | None:
    """The column of values with the fewest empty cells, if there is one."""
    candidates = {}
    for name in events.types:
        of_value = _RATINGS.search(name) or (_VALUES.search(name) and not _AMOUNTS.search(name))
        numbers = events.filled(name, columns.VALUE) if of_value and name not in taken else None
        if numbers is not None:
            candidates[name] = numbers.number
    return max(candidates, key=candidates.__getitem__, default=None)


def _shown(spec: TableSpec) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in spec.columns.items()) or "no attributes"
