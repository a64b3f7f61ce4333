"""`m6rec data init`: drafts the `dataset.json` of tables by what their columns hold.

Ids are recognised by one table's values standing in another one, times and values by their form and
name. All of it is a guess, which is said, and `m6rec data check` tells whether it fits.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m6rec_jax.data import columns, files
from m6rec_jax.data.draft import (
    NOT_USED,
    counted_by,
    drafted_event,
    drafted_template,
    positives,
    text_columns,
    title_column,
    without_taken,
)
from m6rec_jax.data.key_table import key_table
from m6rec_jax.data.schema import (
    COUNT,
    LIST_SEPARATOR,
    SPEC_FILE,
    DatasetSpec,
    EventsSpec,
    ItemsSpec,
    LabelSpec,
    StatisticsSpec,
    TableSpec,
    protocol_for,
)
from m6rec_jax.data.values import LAST_TIME, out_of_range
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import atomic_file

# Rows of a table that are looked at.
_SAMPLE = 200_000
_EVENTS = re.compile(
    r"event|interaction|rating|purchase|order|transaction|click|basket|sale"
    r"|view(?!er)|play(?!er)|(?<![a-z])log",  # not viewers, players, a catalog
    re.I,
)
_USERS = re.compile(r"user|customer|member|client|person|visitor|account|reader|household", re.I)
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


def draft_dataset(
    tables: Sequence[Path], name: str | None = None, at_least: float | None = None
) -> list[str]:
    """Writes `dataset.json` beside the tables.

    Where there is no table of users, `users.parquet` with their ids is written, too.

    Args:
      tables: of events and items, perhaps also of users; CSV or Parquet, in one folder; or that
        folder, which then has no other such files.
      name: of the data set; None: what the folder is called.
      at_least: from which value an event is a positive; None: what divides events most evenly.

    Returns:
      What was guessed, in lines for the user.

    Raises:
      DataError: the tables cannot be read, or it cannot be told which is which or where the ids,
        the times and texts of items are; or there is a `dataset.json`.
      ConfigError: a threshold that divides nothing.
    """
    if len(tables) == 1 and tables[0].is_dir():
        there = sorted(tables[0].iterdir())
        tables = [path for path in there if path.suffix.lower() in files.SUFFIXES]
    folders = {path.resolve().parent for path in tables}
    if len(folders) != 1 or len(tables) not in (2, 3) or len(set(tables)) != len(tables):
        names = ", ".join(map(str, tables)) or "no CSV or Parquet file"
        raise DataError(
            "name two or three tables of one folder (events, items and perhaps users), not "
            f"{len(tables)}: {names}"
        )
    (folder,) = folders
    if (folder / SPEC_FILE).exists():
        raise DataError(f"{folder / SPEC_FILE} is there: edit it, or remove it for a new draft")
    events, items, users = _roles([_Table.read(path) for path in tables])
    item_columns = without_taken(_kinds(items.table, items.id), of_items=True)
    unused = {*items.table.columns} - {*item_columns, items.id}
    of_items = {
        name: columns.convert(items.table.columns[name], kind)[0].to_pylist()
        for name, kind in item_columns.items()
    }
    texts = text_columns(item_columns, items.table.path, of_items)
    if users is not None:
        user = users.of
    else:
        others = (own for own in events.columns if own != items.of)
        user = next((own for own in others if _USERS.search(own)), "")
        if not user:
            raise events.error("which column is the user", "call it user_id")
    time, hint = _time(events, {user, items.of})
    taken = {user, items.of, time}
    value = _value(events, taken)
    if value is None and at_least is not None:
        raise events.error("which values --at-least divides", "call their column rating")
    threshold, told = None, "no column of values: every event is a positive, negatives are sampled"
    if value is not None:
        numbers = columns.convert(events.columns[value], columns.VALUE)[0].drop_null()
        threshold, told = positives(Counter(numbers.to_pylist()), at_least)
    num_events, share = _repeats(events.path, user, items.of, time)
    repeats = protocol_for(share)
    title = title_column(texts, of_items)
    by = counted_by(texts, of_items) if threshold is None else []
    if users is None:
        if (folder / "users.parquet").exists():
            path = folder / "users.parquet"
            raise DataError(f"{path} is there: name it with the other tables, or remove it")
        ids = list(_all_ids(events.path, user))
        with atomic_file(folder / "users.parquet") as scratch:
            pq.write_table(pa.table({user: pa.array(ids, pa.string())}), scratch)
        of_users, where = TableSpec(user, {}, "users.parquet"), f"{len(ids):,} ids, written there"
    else:
        user_columns = without_taken(_kinds(users.table, users.id))
        unused |= {*users.table.columns} - {*user_columns, users.id}
        of_users = TableSpec(users.id, user_columns, users.table.path.name)
        where = _shown(of_users)
    spec = DatasetSpec(
        name=name or folder.name,
        users=of_users,
        items=ItemsSpec(items.id, item_columns, items.table.path.name, title),
        events=EventsSpec(
            user, items.of, time, value if threshold is not None else None, events.path.name
        ),
        label=LabelSpec(threshold),
        repeats=repeats,
        template=drafted_template(
            of_users.columns,
            texts,
            threshold,
            True,
            repeats == COUNT,
            drafted_event(texts, of_items),
            by,
        ),
        statistics=StatisticsSpec(tuple(by)),
    )
    spec.save(folder)
    return [
        f"users: {of_users.file}: id {of_users.id!r}; {where}",
        f"items: {spec.items.file}: id {items.id!r}; {_shown(spec.items)}; text {texts[0]!r}; "
        + (f"title, shown to people, {title!r}" if title else "no title: their texts are shown"),
        f"events: {events.path.name}: user {user!r}, item {items.of!r}, time {time!r}"
        + (f", value {value!r}" if value else "")
        + hint,
        told,
        f'repeats: "{repeats}": {share:.1%} of the events are of an item that the user had before',
        *([f"{NOT_USED}: {', '.join(sorted(unused))}"] if unused else []),
        f"{folder / SPEC_FILE}: drafted from {num_events:,} events. Read it: remove columns "
        "that say nothing, and write the template as you would tell a person. Then: m6rec data "
        f"check {folder}",
    ]


@dataclass(frozen=True)
class _Table:
    """The first rows of a file, without columns that have no name; `is_cut` where it has more."""

    path: Path
    columns: Mapping[str, pa.Array]
    num_rows: int
    is_cut: bool

    @classmethod
    def read(cls, path: Path) -> _Table:
        if path.suffix.lower() not in files.SUFFIXES:
            files.table_files(path.parent, path.stem, path.name)  # says what is wrong
        batches, rows = list[pa.RecordBatch](), 0
        for raw in files.raw_batches([path]):
            batches.append(raw.batch)
            rows += raw.batch.num_rows
            if rows > _SAMPLE:
                break
        if not rows:
            raise DataError(f"{path} has no rows")
        table = pa.Table.from_batches(batches).slice(0, _SAMPLE).combine_chunks()
        return cls(
            path,
            {name: pa.concat_arrays(table[name].chunks) for name in table.column_names if name},
            table.num_rows,
            rows > _SAMPLE,
        )

    def error(self, what: str, mend: str) -> DataError:
        return DataError(
            f"{self.path}: it cannot be told {what} (columns: {', '.join(self.columns)}); {mend}, "
            f"or write {SPEC_FILE} by hand (docs/own_data.md)"
        )

    def filled(self, name: str, kind: str) -> pa.Array | None:
        """The cells of a column that are not empty; None where most are, or of another kind.

        What to do about empty ones is for `m6rec data check` to say.
        """
        found, bad = columns.convert(self.columns[name], kind)
        found, enough = found.drop_null(), max(1, len(found) / 2)
        is_one = len(found) >= enough and all(one.kind == "nan" for one in bad)
        return found if is_one else None

    def keys(self) -> dict[str, pa.Array]:
        """Columns whose values each row has alone."""
        found = {name: self.filled(name, columns.ID) for name in self.columns}
        return {
            name: ids
            for name, ids in found.items()
            if ids is not None and len(ids.unique()) == self.num_rows
        }


class _Linked(NamedTuple):
    """A table, its id, and the column of the events that holds such ids."""

    table: _Table
    id: str
    of: str
    likely: float


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
    _, events, found = best
    found.sort(key=lambda link: bool(_USERS.search(f"{link.table.path.stem} {link.id} {link.of}")))
    if len(found) == 1 and _USERS.search(found[0].table.path.stem):
        raise DataError(
            f"{events.path.name} and {found[0].table.path.name}: a table of items is missing"
        )
    return events, found[0], found[1] if len(found) > 1 else None


def _links(events: _Table, other: _Table) -> Iterator[_Linked]:
    """Columns of events whose values stand among the ids of another table, with how likely so."""
    for key, known in other.keys().items():
        # Of a table that is cut all ids count; a log, which is larger, is none of items or users.
        if other.is_cut and other.path.stat().st_size < events.path.stat().st_size:
            known = pa.array(list(_all_ids(other.path, key)), pa.string())
        for name in events.columns:
            ids = events.filled(name, columns.ID)
            if ids is None:
                continue
            there = pc.sum(pc.is_in(ids, value_set=known)).as_py()
            if there < len(ids) / 2:
                continue
            owner = f"{other.path.stem.rstrip('s')}_{key}"
            alike = max(
                difflib.SequenceMatcher(None, name.lower(), text.lower()).ratio()
                for text in (key, owner)
            )
            likely = there / events.num_rows + alike + 0.3 * bool(_IDS.search(key))
            yield _Linked(other, key, name, likely)


def _kinds(table: _Table, id_: str) -> dict[str, str]:
    """Types of all columns but the id."""
    return {name: _kind(values) for name, values in table.columns.items() if name != id_}


def _kind(values: pa.Array) -> str:
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return "list<string>"
    if pa.types.is_boolean(values.type):
        return "bool"
    text = columns.convert(values, "string")[0]
    # As numbers, codes such as 007 would lose their zeros.
    is_code = pc.any(pc.match_substring_regex(text, r"^0[0-9]")).as_py()
    for kind in ("bool",) if is_code else ("int", "float", "bool"):
        if not columns.convert(values, kind)[1]:
            return kind
    divided = pc.mean(pc.match_substring(text, LIST_SEPARATOR).cast(pa.float64())).as_py()
    return "list<string>" if (divided or 0) > 0.05 else "string"


def _time(events: _Table, taken: set[str]) -> tuple[str, str]:
    """The column of times, and a remark about their unit."""
    found = []
    for name in events.columns:
        seconds = events.filled(name, columns.TIME)
        if name in taken or seconds is None:
            continue
        least, most = pc.min_max(seconds)["min"].as_py(), pc.min_max(seconds)["max"].as_py()
        if least >= _LEAST_SECONDS or (least >= 0 and _TIMES.search(name)):
            empty = events.num_rows - len(seconds)
            found.append(((not _TIMES.search(name), empty), name, most))
    if not found:
        raise events.error("when things happened", "a column of times is needed, such as bought_at")
    _, name, most = min(found, key=lambda one: one[0])
    return name, f" ({out_of_range(most)})" if most > LAST_TIME else ""


def _value(events: _Table, taken: set[str]) -> str | None:
    """The column of values with the fewest empty cells, if there is one."""
    found = {}
    for name in events.columns:
        of_value = _RATINGS.search(name) or (_VALUES.search(name) and not _AMOUNTS.search(name))
        numbers = events.filled(name, columns.VALUE) if of_value and name not in taken else None
        if numbers is not None:
            found[name] = len(numbers)
    return max(found, key=found.__getitem__, default=None)


def _all_ids(path: Path, column: str) -> dict[str, None]:
    found: dict[str, None] = {}
    for raw in files.raw_batches([path], [column]):
        ids = columns.convert(raw.batch.column(column), columns.ID)[0]
        found |= dict.fromkeys(ids.drop_null().unique().to_pylist())
    return found


def _repeats(path: Path, user: str, item: str, time: str) -> tuple[int, float]:
    """How many events a table has, and the share of them with an item that the user had before."""
    kinds = {user: columns.ID, item: columns.ID, time: columns.TIME}
    num_events = 0
    with key_table() as keys:
        for raw in files.raw_batches([path], list(kinds)):
            num_events += len(raw.rows)
            key = [columns.convert(raw.batch.column(name), kind)[0] for name, kind in kinds.items()]
            events = pa.table([raw.rows, *key], names=["row", "user", "item", "time"]).drop_null()
            keys.add(events.append_column("value", pa.nulls(len(events), pa.float64())))
        keys.find_repeats()
        return num_events, keys.share_of_repeats()


def _shown(spec: TableSpec) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in spec.columns.items()) or "no attributes"
