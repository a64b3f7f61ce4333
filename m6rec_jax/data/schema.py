"""The declared schema of a data set folder: `dataset.json` and its dataclasses.

A data set is a folder with three tables, `users`, `items` and `events`, and one `dataset.json`:

    {
      "name": "corner-shop",
      "users":  {"id": "user_id", "columns": {"age": "int", "city": "string"}},
      "items":  {"id": "item_id", "columns": {"title": "string", "tags": "list<string>"}},
      "events": {"user": "user_id", "item": "item_id", "time": "timestamp", "value": "rating"},
      "label":  {"at_least": 4}
    }

Optional keys: `description`, `licence`, `provenance` (where the rows came from, free form),
`repeats` ("count" or "ignore": whether rows want items that the user had before), `statistics`
(`{"by": [item columns]}`), `template` and `splits` (read by `text.templates` and `data.splits`),
`title` in `items` (the column that people call an item by), and `file` in each table (a file
name, or a pattern such as `events-*.parquet`; without it `users.parquet` or `users.csv` is looked
for, and so on).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

SPEC_FILE = "dataset.json"
COLUMN_TYPES = ("string", "int", "float", "bool", "list<string>")
# Beyond these types: an id, a time in unix seconds, the value of an event.
ID, TIME, VALUE = "id", "time", "value"
LIST_SEPARATOR = "|"
# What beside attributes requests say of a user or an item.
OF_REQUESTS = ("id", "statistics")
# Whether rows may want an item that the user had before.
COUNT, IGNORE = "count", "ignore"
# From this share of the events on they may, where nothing is said.
_LEAST_REPEATS = 0.05


def protocol_for(share: float) -> str:
    """'count' or 'ignore', by the share of events with an item that the user had before."""
    return COUNT if share >= _LEAST_REPEATS else IGNORE


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table with one row per user or item.

    Attributes:
      id: the column that identifies the row.
      columns: attribute column -> type, one of `COLUMN_TYPES`; columns of the file that are not
        named here are ignored.
      file: file name or pattern inside the folder; None looks for `<table>.parquet` or
        `<table>.csv`.
    """

    id: str
    columns: Mapping[str, str]
    file: str | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """The columns that the file must have, the id first, and what is in each."""
        return {self.id: ID, **self.columns}


@dataclass(frozen=True, slots=True)
class ItemsSpec(TableSpec):
    """The table of items.

    Attributes:
      title: the column that is shown to people and searched; None: `title` where there is one, else
        the item's text.
    """

    title: str | None = None

    @property
    def title_column(self) -> str | None:
        """The column that holds titles; None where none does."""
        return self.title or ("title" if self.columns.get("title") == "string" else None)


@dataclass(frozen=True, slots=True)
class EventsSpec:
    """The table of behaviours: column names of user, item, time and (optionally) value and part.

    `part` names each event's part, for the split 'by_column'.
    """

    user: str
    item: str
    time: str
    value: str | None = None
    file: str | None = None
    part: str | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """The columns that the file must have, and what is in each."""
        kinds = {self.user: ID, self.item: ID, self.time: TIME}
        if self.value is not None:
            kinds[self.value] = VALUE
        if self.part is not None:
            kinds[self.part] = "string"
        return kinds


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """Which events are positive: those whose value is `at_least` this; None means all of them."""

    at_least: float | None = None

    def is_positive(self, value: float | None) -> bool:
        """Whether one event with this value counts as positive."""
        return self.at_least is None or (value is not None and value >= self.at_least)

    def labels(self, values: np.ndarray) -> np.ndarray:
        """Labels 0 or 1 `[n]` int64 of the event values `[n]` (NaN: no value)."""
        if self.at_least is None:
            return np.ones(len(values), np.int64)
        return (np.asarray(values, np.float64) >= self.at_least).astype(np.int64)

    def only(self, label: int) -> str:
        """What to say where all events have this label."""
        which = "positive" if label else "negative"
        return (
            f"every value is {which} with label.at_least = {self.at_least:g}, so a scorer learns "
            "nothing; set another, or leave `label` out where every event is a positive, such as a "
            "purchase: negatives are then sampled"
        )


@dataclass(frozen=True, slots=True)
class StatisticsSpec:
    """Item columns by which a user's behaviour is counted (genre, director, ...)."""

    by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """The parsed `dataset.json`. See the module's docstring for its keys."""

    name: str
    users: TableSpec
    items: ItemsSpec
    events: EventsSpec
    label: LabelSpec = LabelSpec()
    repeats: str | None = None
    statistics: StatisticsSpec = StatisticsSpec()
    template: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    licence: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def repeats_count(self) -> bool:
        """Whether rows want items that the user had before, and nothing is hidden from users."""
        return self.repeats == COUNT

    @classmethod
    def load(cls, directory: str | Path) -> DatasetSpec:
        """Reads `directory/dataset.json`; raises DataError as `from_dict` does."""
        path = Path(directory) / SPEC_FILE
        return cls.from_dict(load_json(path), str(path))

    @classmethod
    def from_dict(cls, raw: Any, source: str = SPEC_FILE) -> DatasetSpec:
        """Checks and parses the object of `dataset.json`; `source` is named in errors.

        Raises:
          DataError: an unknown or missing key, a wrong type, a column type that does not exist,
            a statistic over a column that is not declared, or repeats that are neither counted nor
            ignored.
        """
        top = Section(raw, source, "")
        users = _table(top.section("users"), TableSpec)
        items = _table(top.section("items"), ItemsSpec)
        events = top.section("events").read(EventsSpec)
        columns = (events.user, events.item, events.time, events.value, events.part)
        names = [name for name in columns if name is not None]
        if twice := {name for name in names if names.count(name) > 1}:
            raise DataError(f"{source}: 'events' names the column {min(twice)!r} twice")
        return top.read(
            cls,
            users=users,
            items=items,
            events=events,
            label=_label(top, events),
            repeats=_repeats(top),
            statistics=_statistics(top, items),
        )

    def to_dict(self) -> dict[str, Any]:
        """The object that `from_dict` parses back into an equal spec."""
        raw: dict[str, Any] = {"name": self.name}
        if self.description:
            raw["description"] = self.description
        if self.licence:
            raw["licence"] = self.licence
        for key, table in (("users", self.users), ("items", self.items)):
            entry: dict[str, Any] = {} if table.file is None else {"file": table.file}
            raw[key] = entry | {"id": table.id, "columns": dict(table.columns)}
        if self.items.title is not None:
            raw["items"]["title"] = self.items.title
        names = ("file", "user", "item", "time", "value", "part")
        values = {name: getattr(self.events, name) for name in names}
        raw["events"] = {name: value for name, value in values.items() if value is not None}
        if self.label.at_least is not None:
            raw["label"] = {"at_least": self.label.at_least}
        if self.repeats is not None:
            raw["repeats"] = self.repeats
        if self.statistics.by:
            raw["statistics"] = {"by": list(self.statistics.by)}
        for name in ("template", "splits", "provenance"):
            if getattr(self, name):
                raw[name] = dict(getattr(self, name))
        return raw

    def of_rows(self) -> dict[str, Any]:
        """What rows depend on: not where tables lie, what is said of them, and other splits."""
        raw = self.to_dict()
        for name in ("name", "description", "licence", "provenance", "splits"):
            raw.pop(name, None)
        raw["items"].pop("title", None)
        for table in ("users", "items", "events"):
            raw[table].pop("file", None)
        return raw

    def save(self, directory: str | Path) -> None:
        """Writes `directory/dataset.json`."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (Path(directory) / SPEC_FILE).write_text(text + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Reads the JSON file that describes a folder.

    Raises:
      DataError: the folder or the file is missing, or the file is not JSON in UTF-8.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path.parent} is not a folder: a data set is a folder with {path.name}")
    if not path.is_file():
        raise DataError(f"{path} does not exist: every data set folder declares its tables there")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; save it as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from error
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise DataError(f"{path}: not JSON that can be read ({error})") from error


_KIND_NAMES = {str: "a string", dict: "an object", list: "a list", bool: "true or false"}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return _KIND_NAMES.get(type(value), f"the number {value!r}")


_Spec = TypeVar("_Spec")


class Section:
    """One JSON object being read: every key is asked for once, what is left over is unknown.

    Args:
      raw: the parsed value.
      source: the file, for messages.
      path: where in the file the object stands, "" for the whole.

    Raises:
      DataError: the value is no object; by the methods, a key that is missing, unknown or wrong.
    """

    def __init__(self, raw: Any, source: str, path: str) -> None:
        self.source, self.path = source, path
        if not isinstance(raw, dict):
            where = f"{source}: {path!r}" if path else f"{source}: the whole file"
            raise DataError(f"{where} must be an object, not {_kind(raw)}")
        self.raw = raw
        self.known: list[str] = []

    def error(self, key: str, message: str) -> DataError:
        name = f"{self.path}.{key}" if self.path else key
        return DataError(f"{self.source}: {name!r} {message}")

    def get(self, key: str) -> Any:
        self.known.append(key)
        return self.raw.get(key)

    def require(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            # A misspelt key is both missing and unknown: name the misspelling here.
            hint = did_you_mean(key, [name for name in self.raw if name not in self.known])
            has = ", ".join(map(repr, self.raw)) or "nothing"
            raise self.error(key, f"is missing (found {has}){hint}")
        return value

    def text(self, key: str) -> str:
        value = self.require(key)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, not {_kind(value)}")
        if not value.strip():
            raise self.error(key, "must not be empty")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self.get(key) is None else self.text(key)

    def section(self, key: str) -> Section:
        path = f"{self.path}.{key}" if self.path else key
        return Section(self.require(key), self.source, path)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, f"must be an object, not {_kind(value)}")
        return value or {}

    def read(self, kind: type[_Spec], **given: Any) -> _Spec:
        """All that is left to read, as a dataclass.

        A field is an object where its type is `Mapping[str, Any]`, else a text, which must be there
        where the field has no default.

        Args:
          kind: the dataclass.
          given: fields that were read already.
        """
        for one in fields(kind):  # type: ignore[arg-type]
            if one.name in given:
                continue
            if one.type == "Mapping[str, Any]":
                given[one.name] = self.mapping(one.name)
            elif one.default is MISSING:
                given[one.name] = self.text(one.name)
            else:
                given[one.name] = self.optional_text(one.name) or one.default
        self.finish()
        return kind(**given)

    def finish(self) -> None:
        known = list(dict.fromkeys(self.known))
        for key in self.raw:
            if key not in known:
                hint = did_you_mean(key, known)
                raise self.error(key, f"is not a known key (known: {', '.join(known)}){hint}")


_AnyTable = TypeVar("_AnyTable", bound=TableSpec)


def _table(section: Section, spec: type[_AnyTable]) -> _AnyTable:
    identifier = section.text("id")
    columns = section.require("columns")
    if not isinstance(columns, dict):
        raise section.error("columns", f"must be an object of column: type, not {_kind(columns)}")
    for name, kind in columns.items():
        key = f"columns.{name}"
        if not isinstance(kind, str) or kind not in COLUMN_TYPES:
            hint = did_you_mean(str(kind), COLUMN_TYPES)
            raise section.error(
                key, f"has type {kind!r}, which is none of {', '.join(COLUMN_TYPES)}{hint}"
            )
        if name == identifier:
            raise section.error(key, "is the id column: declare it once, as 'id'")
        if name in OF_REQUESTS:
            raise section.error(key, "means something else in requests: rename the column")
    table = section.read(spec, id=identifier, columns=dict(columns))
    texts = [name for name, of in columns.items() if of == "string"]
    if isinstance(table, ItemsSpec) and table.title not in (None, *texts):
        hint = did_you_mean(str(table.title), texts)
        raise section.error(
            "title",
            f"names {table.title!r}, not an item column of strings ({', '.join(texts)}){hint}",
        )
    return table


def _label(top: Section, events: EventsSpec) -> LabelSpec:
    if top.get("label") is None:
        return LabelSpec()
    section = top.section("label")
    threshold = section.require("at_least")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise section.error("at_least", f"must be a number, not {_kind(threshold)}")
    if not abs(threshold) <= sys.float_info.max:  # so that NaN is refused, too
        raise section.error("at_least", f"must be a finite number, not {threshold!r}")
    if events.value is None:
        raise section.error("at_least", "compares event values, but 'events.value' is not declared")
    section.finish()
    return LabelSpec(at_least=threshold)


def _repeats(top: Section) -> str | None:
    value = top.get("repeats")
    if value not in (None, COUNT, IGNORE):
        raise top.error("repeats", f'must be "{COUNT}" or "{IGNORE}", not {value!r}')
    return value


def _statistics(top: Section, items: TableSpec) -> StatisticsSpec:
    if top.get("statistics") is None:
        return StatisticsSpec()
    section = top.section("statistics")
    fields = section.require("by")
    if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
        raise section.error("by", f"must be a list of item columns, not {fields!r}")
    for name in fields:
        if name not in items.columns:
            hint = did_you_mean(name, items.columns)
            declared = ", ".join(items.columns) or "none"
            raise section.error("by", f"names {name!r}, not an item column ({declared}){hint}")
    section.finish()
    return StatisticsSpec(by=tuple(fields))
