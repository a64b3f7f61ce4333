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
(`{"by": [item columns]}`), `template` and `splits` (read by `text.templates` and `splits`),
`title` in `items` (the column that people call an item by), and `file` in each table (a file
name, or a pattern such as `events-*.parquet`; without it `users.parquet` or `users.csv` is looked
for, and so on).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
import numpy as np

from m6rec_jax.data.dataset.values import short_text
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

Text = Annotated[str, msgspec.Meta(min_length=1)]
SPEC_FILE = "dataset.json"
TABLES = ("users", "items", "events")
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
    """A table with one row per user or item: the column that identifies it; attribute column ->
    type of `COLUMN_TYPES` (other columns are ignored); a file name or pattern, None:
    `<table>.parquet` or `.csv`.
    """

    id: Text
    columns: Mapping[str, str] = field(default_factory=dict)
    file: Text | None = None

    def __post_init__(self) -> None:
        for name, kind in self.columns.items():
            if kind not in COLUMN_TYPES:
                raise ValueError(
                    f"column {name!r} has type {kind!r}, which is none of "
                    f"{', '.join(COLUMN_TYPES)}{did_you_mean(kind, COLUMN_TYPES)}"
                )
            if name in (self.id, *OF_REQUESTS):
                raise ValueError(
                    f"the column {name!r} means something else: 'id' is declared apart, and "
                    "requests say 'id' and 'statistics'; leave it out, or rename it"
                )

    @property
    def kinds(self) -> dict[str, str]:
        """The columns that the file must have, the id first, and what is in each."""
        return {self.id: ID, **self.columns}


@dataclass(frozen=True, slots=True)
class ItemsSpec(TableSpec):
    """The table of items; `title` is the column that is shown to people and searched."""

    title: str | None = None

    def __post_init__(self) -> None:
        TableSpec.__post_init__(self)
        texts = [name for name, kind in self.columns.items() if kind == "string"]
        if self.title not in (None, *texts):
            raise ValueError(
                f"'title' names {self.title!r}, not an item column of strings "
                f"({', '.join(texts)}){did_you_mean(str(self.title), texts)}"
            )

    @property
    def title_column(self) -> str | None:
        """The column that holds titles; None where none does."""
        return self.title or ("title" if self.columns.get("title") == "string" else None)


@dataclass(frozen=True, slots=True)
class EventsSpec:
    """The table of behaviours: column names of user, item, time and (optionally) value and part.

    `part` names each event's part, for the split 'by_column'.
    """

    user: Text
    item: Text
    time: Text
    value: Text | None = None
    file: Text | None = None
    part: Text | None = None

    def __post_init__(self) -> None:
        columns = (self.user, self.item, self.time, self.value, self.part)
        names = [name for name in columns if name is not None]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the column {min(twice)!r} is named twice")

    @property
    def kinds(self) -> dict[str, str]:
        """The columns that the file must have, and what is in each."""
        optional = {self.value: VALUE, self.part: "string"}
        kinds = {self.user: ID, self.item: ID, self.time: TIME}
        return kinds | {name: kind for name, kind in optional.items() if name is not None}


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """Which events are positive: those whose value is `at_least` this; None means all of them."""

    at_least: int | float | None = None

    def __post_init__(self) -> None:
        if self.at_least is not None and not math.isfinite(self.at_least):
            raise ValueError(f"'at_least' must be a finite number, not {self.at_least!r}")

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
        return (
            f"every value is {'positive' if label else 'negative'} with label.at_least = "
            f"{self.at_least:g}, so a scorer learns nothing; set another, or leave `label` out "
            "where every event is a positive, such as a purchase: negatives are then sampled"
        )


@dataclass(frozen=True, slots=True)
class StatisticsSpec:
    """Item columns by which a user's behaviour is counted (genre, director, ...)."""

    by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """The parsed `dataset.json`. See the module's docstring for its keys."""

    name: Text
    users: TableSpec
    items: ItemsSpec
    events: EventsSpec
    label: LabelSpec = LabelSpec()
    repeats: str | None = None
    statistics: StatisticsSpec = StatisticsSpec()
    template: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    description: str = ""
    licence: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.repeats not in (None, COUNT, IGNORE):
            raise ValueError(f'"repeats" must be "{COUNT}" or "{IGNORE}", not {self.repeats!r}')
        if self.label.at_least is not None and self.events.value is None:
            raise ValueError(
                "'label.at_least' compares event values, but 'events.value' is not declared"
            )
        columns = self.items.columns
        for name in self.statistics.by:
            if name not in columns:
                raise ValueError(
                    f"'statistics.by' names {name!r}, not an item column "
                    f"({', '.join(columns) or 'none'}){did_you_mean(name, columns)}"
                )

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
        """Parses the object of `dataset.json`; raises DataError as `parsed` does."""
        return parsed(raw, cls, source)

    def to_dict(self) -> dict[str, Any]:
        """The object that `from_dict` parses back into an equal spec."""
        return declared(self)

    def of_rows(self) -> dict[str, Any]:
        """What rows depend on: not where tables lie, what is said of them, and other splits."""
        raw = self.to_dict()
        for name in ("name", "description", "licence", "provenance", "splits"):
            raw.pop(name, None)
        raw["items"].pop("title", None)
        for table in TABLES:
            raw[table].pop("file", None)
        return raw

    def save(self, directory: str | Path) -> None:
        """Writes `directory/dataset.json`."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (Path(directory) / SPEC_FILE).write_text(text + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Reads the JSON file that describes a folder; raises DataError where it is missing, or is no
    JSON in UTF-8.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist: a data set is a folder with {path.name}")
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON: {error}") from error


_Spec = TypeVar("_Spec")


def parsed(raw: Any, kind: type[_Spec], source: str) -> _Spec:
    """The object of a JSON file as a dataclass, whose fields may be dataclasses.

    Raises DataError, which names the file `source`, for an unknown or missing key, or a value that
    does not fit.
    """
    _check_keys(raw, kind, source, "")
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        if not path:
            raise DataError(f"{source}: {reason}") from error
        path = path.rstrip("`")
        # Members of a list have numbers; which key of an object "[...]" is, is not said.
        for key in re.findall(r"\w+", path.partition("[...]")[0]):
            raw = raw[int(key)] if isinstance(raw, list) else raw[key]
        given = f" ({short_text(raw)})" if reason.startswith("Expected") else ""
        raise DataError(f"{source}: {path!r}: {reason}{given}") from error


def _check_keys(raw: Any, kind: type[Any], source: str, path: str) -> None:
    """Raises DataError where an object has a key that is no field."""
    if not isinstance(raw, dict):
        return  # of which the conversion says what it should be
    types = get_type_hints(kind)
    for key, value in raw.items():
        if key not in types:
            raise DataError(
                f"{source}: {path + key!r} is not a known key (known: {', '.join(types)})"
                f"{did_you_mean(key, types)}"
            )
        if dataclasses.is_dataclass(types[key]):
            _check_keys(value, types[key], source, f"{path}{key}.")


def declared(spec: Any) -> dict[str, Any]:
    """The object of a JSON file that `parsed` makes the dataclass of; its defaults are empty."""
    raw: dict[str, Any] = {}
    for one in dataclasses.fields(spec):
        value = getattr(spec, one.name)
        if dataclasses.is_dataclass(value):
            value = declared(value)
        if value not in (None, "", {}, ()):
            raw[one.name] = list(value) if isinstance(value, tuple) else value
    return raw
