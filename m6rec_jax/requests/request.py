"""Requests of a served model: what one says, checked against the data set's schema.

    {"user": {"id": "196", "age": 24, "gender": "female", "occupation": "writer"},
     "time": 893286638,
     "history": [{"item": "50", "time": 881250949, "value": 5},
                    {"item": {"title": "A new film", "genres": ["drama"]}, "time": 893280000,
                     "value": 4}],
     "candidates": ["181", {"id": "50", "statistics": {"item_count": "about 500"}}],
     "k": 10, "exclude": ["172"], "statistics": {"user_count": "2"}}

`user` and items have the columns of the data set's tables. An item is its id in the catalogue, or
an object of its own columns (with the id, they go before the catalogue's). A user needs no id: with
one, statistics are looked up. `statistics` are those that the template may render; they go before
what is looked up. Scoring needs `candidates`; retrieval takes `k` and `exclude`, recommendation of
titles also `about`, an item that their prefix is rendered from. Behaviours stand in the order of
time; those with items that nothing is known of are left out, and there may be none. Times, values
and columns that are not known are left out, as far as the template can do without. Everything else
in a row is the caller's own.

Where users or items have no column but `text`, a text stands for them: `"candidates": ["Heat"]`;
for items unless a catalogue gives them ids of their own.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Required, TypedDict

import msgspec

from m6rec_jax.data.dataset.schema import OF_REQUESTS, DatasetSpec, TableSpec
from m6rec_jax.data.dataset.values import FIRST_TIME, LAST_TIME, out_of_range, short_text
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Event, Item, User, Value

# Names within users and items that are no columns.
_ID, _STATISTICS = OF_REQUESTS
# Of users or items that have no other column.
TEXT = "text"
_LARGEST = 1.7976931348623157e308
Number = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
_Id = str | int
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_TYPES: Mapping[str, Any] = {
    "string": str | int,
    "int": int,
    "float": Number,
    "bool": bool,
    "list<string>": tuple[str, ...],
}
# A statistic of a user is told with every candidate.
_Words = Annotated[str, msgspec.Meta(max_length=1000)]
_Statistic = (
    _Words | int | Number | bool | Annotated[tuple[_Words, ...], msgspec.Meta(max_length=100)]
)


class RejectedRow(DataError):
    """A request cannot be answered; `kind` says why in a word, such as `unknown_item`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)  # both, so that it can be pickled
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request.

    What it does not say is None; of a time in the history, which is oldest first, NaN.
    """

    user: User  # with an empty id where the request has none
    time: float | None  # the moment it is asked at, unix seconds
    history: tuple[tuple[Event, Item], ...]  # what the user did until then
    candidates: tuple[Item, ...] = ()  # to be scored
    statistics: Mapping[str, Value] = field(default_factory=dict)  # of the user and the moment
    candidate_statistics: tuple[Mapping[str, Value], ...] = ()
    k: int | None = None  # how many items are wanted
    exclude: tuple[str, ...] = ()  # ids of items that must not be recommended
    about: Item | None = None  # that the prefix of a generated title is about
    # Fields of users, behaviours, items and statistics that the data set does not have.
    ignored: frozenset[str] = frozenset()
    # Ids of behaviours that were left out, since the catalogue does not have them.
    unknown: tuple[str, ...] = ()
    has_history: bool = True  # whether its task tells of a user; else the user's text is all

    @property
    def gaps(self) -> list[str]:
        """What the answer had to do without: `unknown_items`, `no_history`."""
        gaps = ["unknown_items"] if self.unknown else []
        return gaps if self.history or not self.has_history else [*gaps, "no_history"]


class RequestFields(NamedTuple):
    """Where rows have what is read; None: it is not read."""

    candidates: str | None = "candidates"
    about: str | None = None  # the item that a title's prefix is about
    text: str | None = None  # all that is read: the request tells of no user


_CANDIDATES = RequestFields()


class RequestParser:
    """Checks rows and makes requests of them.

    Args:
      spec: of the data set that the model was trained on.
      catalogue: items by id.
      statistics: names that `statistics` may have.
      fields: see `RequestFields`.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        catalogue: Mapping[str, Item],
        statistics: Iterable[str] = (),
        fields: RequestFields = _CANDIDATES,
    ) -> None:
        self._spec, self._catalogue, self._fields = spec, catalogue, fields
        # Else an id that the catalogue lacks would be read as a text.
        self._item_texts = set(spec.items.columns) == {TEXT} and all(
            id_.split() == str(item.attributes.get(TEXT)).split() for id_, item in catalogue.items()
        )
        given = record_type(dict.fromkeys(statistics, _Statistic))
        users, items = (
            {_ID: _Id} | {name: _TYPES[kind] for name, kind in table.columns.items()}
            for table in (spec.users, spec.items)
        )
        user = record_type(users)
        item = _Id | record_type(items | {_STATISTICS: given})
        value = {} if spec.events.value is None else {"value": Number}
        event = record_type({"item": item, "time": Any} | value, ["item"])
        user = str | user if set(spec.users.columns) == {TEXT} else user
        event = str | event if self._item_texts else event
        row: dict[str, Any] = {
            "user": user,
            "time": Any,
            "history": list[event],  # type: ignore[valid-type]
            _STATISTICS: given,
            "k": Annotated[int, msgspec.Meta(ge=1)],
            "exclude": list[_Id],
        }
        self.items_type: Any = list[item]  # type: ignore[valid-type]
        if fields.candidates is not None:
            row[fields.candidates] = self.items_type
        if fields.about is not None:
            row[fields.about] = item
        if fields.text is not None:
            row = {fields.text: _Text}
        self._row = record_type(row, {fields.candidates, fields.text})

    def parse(self, row: Mapping[str, Any], *, strict: bool = False) -> Request:
        """Makes a request of a row; where it is not `strict`, words may stand for numbers. Raises
        RejectedRow, which says what is missing or wrong, and where.
        """
        values = converted(row, self._row, strict=strict)
        if self._fields.text is not None:
            user = User("", {TEXT: values[self._fields.text]})
            return Request(user, None, (), has_history=False)
        said = values.get("user") or {}
        said = {TEXT: said} if isinstance(said, str) else said
        user = User(_id(said), _attributes(said, self._spec.users))
        now = _seconds(values.get("time"), "time")
        history, unknown = self._history(values.get("history") or (), user.id, now)
        entries = values.get(self._fields.candidates) or ()
        about = values.get(self._fields.about)
        return Request(
            user,
            now,
            history,
            tuple(self._items(entries, str(self._fields.candidates))),
            _given(values),
            tuple(map(_given, entries)),
            values.get("k"),
            tuple(map(str, values.get("exclude") or ())),
            None if about is None else self._item(about, str(self._fields.about)),
            frozenset(one for name in values for one in _ignored(row[name], values[name], name)),
            unknown,
        )

    def items(self, entries: Iterable[Any], ignored: set[str] | None = None) -> list[Item]:
        """Items that are named by id or described, as in a request; raises as `parse`. `ignored`
        takes up the names of fields that the data set does not have.
        """
        entries = list(entries)
        values = converted(entries, self.items_type, "items")
        if ignored is not None:
            ignored.update(_ignored(entries, values, "items"))
        return self._items(values, "items")

    def _history(
        self, entries: Sequence[Any], user_id: str, now: float | None
    ) -> tuple[tuple[tuple[Event, Item], ...], tuple[str, ...]]:
        """Behaviours, and the ids of those with items of which nothing is known."""
        history: list[tuple[Event, Item]] = []
        unknown: list[str] = []
        latest = -math.inf
        for index, entry in enumerate(entries):
            path = f"history[{index}]"
            entry = {"item": entry} if isinstance(entry, str) else entry
            time = _seconds(entry.get("time"), f"{path}.time")
            item = self._known(entry["item"], f"{path}.item")
            if item is None:
                unknown.append(_id(entry["item"]))
                continue
            if time is None:
                time = math.nan
            elif time < latest or (now is not None and time > now):
                earlier = f"earlier than the one before ({latest})"
                other = earlier if time < latest else f"later than the request itself ({now})"
                raise RejectedRow("time_out_of_order", f"'{path}.time' is {time!r}, {other}")
            else:
                latest = time
            history.append((Event(user_id, item.id, time, entry.get("value")), item))
        return tuple(history), tuple(unknown)

    def _items(self, entries: Sequence[Any], path: str) -> list[Item]:
        return [self._item(entry, f"{path}[{i}]") for i, entry in enumerate(entries)]

    def _item(self, entry: Any, path: str) -> Item:
        """The item that an id, a text or an object means."""
        item = self._known(entry, path)
        if item is None:
            words = f"{path!r} is {short_text(_id(entry))}, which the catalogue does not have"
            raise RejectedRow("unknown_item", f"{words}; give the item's columns")
        return item

    def _known(self, entry: Any, path: str) -> Item | None:
        """As `_item`; None where it is an id that the catalogue does not have."""
        if isinstance(entry, str) and self._item_texts and entry not in self._catalogue:
            entry = {TEXT: entry}
        id_ = _id(entry)
        item = self._catalogue.get(id_)
        columns = _attributes(entry, self._spec.items) if isinstance(entry, dict) else {}
        if columns:
            old = item or Item(id_)
            title = str(columns.get(self._spec.items.title_column or "") or old.title)
            return Item(id_, {**old.attributes, **columns}, title)
        if not id_:
            words = f"{path!r} is missing: give an id or the item's columns"
            raise RejectedRow("missing_field", words)
        return item


def record_type(fields: Mapping[str, Any], required: Collection[Any] = ()) -> Any:
    """An object whose fields may be missing or null, but for those that are required."""
    kinds: dict[str, Any] = {
        name: Required[kind] if name in required else kind | None for name, kind in fields.items()
    }
    return TypedDict("Record", kinds, total=False)  # type: ignore[operator]


def converted(value: Any, kind: Any, name: str = "", *, strict: bool = False) -> Any:
    """The value as its type, numbers in words as numbers unless `strict`; raises RejectedRow."""
    try:
        return msgspec.convert(value, kind, strict=strict)
    except (UnicodeEncodeError, IndexError, TypeError) as error:  # of numpy's numbers
        problem = "invalid_utf8" if isinstance(error, UnicodeEncodeError) else "wrong_type"
        raise RejectedRow(problem, f"{name or 'the request'}: {error}") from None
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        missing = re.fullmatch("Object missing required field `(.*)`", reason)
        path = name + path.rstrip("`") + (f".{missing[1]}" if missing else "")
        where = repr(path.removeprefix(".")) if path else "the request"
        if missing or reason.endswith("got `null`"):
            raise RejectedRow("missing_field", f"{where}: is missing") from None
        if str(_LARGEST) in reason:
            reason = "is not a finite number; write null where it is not known"
        raise RejectedRow("wrong_type", f"{where}: {reason}") from None


def _ignored(given: Any, read: Any, path: str) -> Iterator[str]:
    """Fields of objects that were not read: history[3].item.prize is history.item.prize."""
    if isinstance(read, dict):
        for name, value in given.items():
            if name in read:
                yield from _ignored(value, read[name], f"{path}.{name}")
            elif value is not None:
                yield f"{path}.{name}"
    elif isinstance(read, list):
        for value, one in zip(given, read, strict=True):
            yield from _ignored(value, one, path)


def _id(entry: Any) -> str:
    id_ = entry.get(_ID) if isinstance(entry, dict) else entry
    return "" if id_ is None else str(id_)


def _attributes(entry: Mapping[str, Any], table: TableSpec) -> dict[str, Value]:
    """Columns of a table that an object has; null and the text "" are as good as nothing."""
    return {
        name: str(value) if table.columns[name] == "string" else value
        for name, value in entry.items()
        if name in table.columns and value not in (None, "")
    }


def _given(entry: Any) -> dict[str, Value]:
    """The statistics of an object."""
    given = (entry.get(_STATISTICS) if isinstance(entry, dict) else None) or {}
    return {name: value for name, value in given.items() if value is not None}


def _seconds(value: Any, path: str) -> float | None:
    if value in (None, ""):
        return None
    try:
        try:
            time = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            moment = datetime.datetime.fromisoformat(str(value))  # also times and dates of Parquet
            time = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        words = f"{path!r} is {short_text(value)}, neither unix seconds nor an ISO 8601 time"
        raise RejectedRow("bad_time", words) from None
    if not FIRST_TIME <= time <= LAST_TIME:
        raise RejectedRow("bad_time", f"{path!r}: {out_of_range(time)}")
    return time
