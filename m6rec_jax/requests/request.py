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

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from m6rec_jax.data.columns import ID, TIME, VALUE, parse_value
from m6rec_jax.data.schema import OF_REQUESTS, DatasetSpec
from m6rec_jax.data.values import FIRST_TIME, LAST_TIME, UnfitValue, out_of_range, short_text
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Event, Item, User, Value

# Names within users and items that are no columns.
_ID, _STATISTICS = OF_REQUESTS
_BEHAVIOUR = ("item", "time", "value")
# Of users or items that have no other column.
TEXT = "text"
_UNKNOWN = "unknown_item"
# Characters of a statistic: those of a user are told with every candidate.
_LONGEST_STATISTIC = 1000


class RejectedRow(DataError):
    """A request cannot be answered.

    Attributes:
      kind: one word or a few for reports, such as `unknown_item`.
      value: the id of an item that is not known, else None.
    """

    def __init__(self, kind: str, reason: str, value: Any = None) -> None:
        super().__init__(kind, reason)  # both, so that it can be pickled
        self.kind, self.value = kind, value

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request.

    Attributes:
      user: with an empty id where the request has none.
      time: the moment it is asked at, unix seconds; None where it does not say.
      history: what the user did until then, oldest first, with the items; a time that is not
        known is NaN.
      candidates: to be scored.
      statistics: of the user and the moment, as far as the request brings them.
      candidate_statistics: likewise, per candidate.
      k: how many items are wanted, None where it does not say.
      exclude: ids of items that must not be recommended.
      about: the item that the prefix of a generated title is about, None where it does not say.
      ignored: fields of users, behaviours, items and statistics that the data set does not have.
      unknown: ids of behaviours that were left out, since the catalogue does not have them.
      has_history: whether requests of its task tell of a user; else the user's text is all.
    """

    user: User
    time: float | None
    history: tuple[tuple[Event, Item], ...]
    candidates: tuple[Item, ...] = ()
    statistics: Mapping[str, Value] = field(default_factory=dict)
    candidate_statistics: tuple[Mapping[str, Value], ...] = ()
    k: int | None = None
    exclude: tuple[str, ...] = ()
    about: Item | None = None
    ignored: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()
    has_history: bool = True

    @property
    def gaps(self) -> list[str]:
        """What the answer had to do without: `unknown_items`, `no_history`."""
        found = ["unknown_items"] if self.unknown else []
        return found if self.history or not self.has_history else [*found, "no_history"]


class RequestParser:
    """Checks rows and makes requests of them.

    Args:
      spec: of the data set that the model was trained on.
      catalogue: items by id.
      statistics: names that `statistics` may have.
      candidates_field: where candidates stand; None: they are not read.
      about_field: where the item stands that a title's prefix is about; None: likewise.
      text_field: where the text stands that is all that is read; None: requests tell of a user.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        catalogue: Mapping[str, Item],
        statistics: Iterable[str] = (),
        candidates_field: str | None = "candidates",
        about_field: str | None = None,
        text_field: str | None = None,
    ) -> None:
        self._spec = spec
        self._catalogue = catalogue
        self._statistics = frozenset(statistics)
        self._candidates_field, self._about_field = candidates_field, about_field
        self._text_field = text_field
        self._user_texts = set(spec.users.columns) == {TEXT}
        # Else an id that is not known would be read as a text.
        self._item_texts = set(spec.items.columns) == {TEXT} and all(
            id_.split() == str(item.attributes.get(TEXT)).split() for id_, item in catalogue.items()
        )

    def parse(self, row: Mapping[str, Any]) -> Request:
        """Makes a request of a row.

        Raises:
          RejectedRow: something is missing or wrong; says what and where.
        """
        if not isinstance(row, Mapping):
            raise RejectedRow("wrong_type", f"a request is an object, not {short_text(row)}")
        try:
            return self._parse(row, set())
        except RecursionError:
            raise RejectedRow("wrong_type", "the row is nested too deeply") from None

    def items(self, entries: Iterable[Any], ignored: set[str] | None = None) -> list[Item]:
        """Items that are named by id or described, as in a request; raises as `parse`.

        Args:
          entries: ids or objects.
          ignored: takes up the names of fields that the data set does not have.
        """
        left_out = set[str]() if ignored is None else ignored
        return [self._item(entry, f"items[{i}]", left_out) for i, entry in enumerate(entries)]

    def _parse(self, row: Mapping[str, Any], ignored: set[str]) -> Request:
        if self._text_field is not None:
            text = _required(row.get(self._text_field), "string", self._text_field)
            return Request(User("", {TEXT: text}), None, (), has_history=False)
        user = self._user(row.get("user"), ignored)
        now = _time(row.get("time"), "time")
        told = [
            self._behaviour(entry, user.id, f"history[{index}]", ignored)
            for index, entry in enumerate(_list(row.get("history"), "history"))
        ]
        _check_order([event.time for event, _ in told], now)
        history = tuple((event, item) for event, item in told if item is not None)
        unknown = tuple(event.item_id for event, item in told if item is None)
        candidates: list[Item] = []
        given: list[Mapping[str, Value]] = []
        if self._candidates_field is not None:
            name = self._candidates_field
            for index, entry in enumerate(_list(row.get(name), name, required=True)):
                path = f"{name}[{index}]"
                candidates.append(self._item(entry, path, ignored))
                own = entry.get(_STATISTICS) if isinstance(entry, Mapping) else None
                given.append(self._given(own, f"{path}.{_STATISTICS}", ignored))
        about = None
        if self._about_field is not None and row.get(self._about_field) is not None:
            about = self._item(row[self._about_field], self._about_field, ignored)
        return Request(
            user,
            now,
            history,
            tuple(candidates),
            self._given(row.get(_STATISTICS), _STATISTICS, ignored),
            tuple(given),
            _count(row.get("k"), "k"),
            tuple(
                _required(entry, ID, f"exclude[{index}]")
                for index, entry in enumerate(_list(row.get("exclude"), "exclude"))
            ),
            about,
            frozenset(ignored),
            unknown,
        )

    def _user(self, entry: Any, ignored: set[str]) -> User:
        if entry is None:
            return User("")
        if isinstance(entry, str) and self._user_texts:
            entry = {TEXT: entry}
        _check_object(entry, "user")
        columns = self._spec.users.columns
        attributes = _attributes(entry, columns, "user", (_ID,), ignored)
        return User(_value(entry.get(_ID), ID, "user.id") or "", attributes)

    def _behaviour(
        self, entry: Any, user_id: str, path: str, ignored: set[str]
    ) -> tuple[Event, Item | None]:
        """A behaviour, and its item if anything is known of it."""
        if isinstance(entry, str) and self._item_texts:
            entry = {"item": entry}
        _check_object(entry, path)
        ignored.update(
            f"history.{name}"
            for name, value in entry.items()
            if name not in _BEHAVIOUR and value is not None
        )
        item: Item | None = None
        try:
            item = self._item(entry.get("item"), f"{path}.item", ignored)
        except RejectedRow as problem:
            if problem.kind != _UNKNOWN:
                raise
            unknown = problem.value
        item_id = unknown if item is None else item.id
        time = _time(entry.get("time"), f"{path}.time")
        value = None
        if self._spec.events.value is not None:
            value = _value(entry.get("value"), VALUE, f"{path}.value")
        elif entry.get("value") is not None:
            ignored.add("history.value")
        return Event(user_id, item_id, math.nan if time is None else time, value), item

    def _item(self, entry: Any, path: str, ignored: set[str]) -> Item:
        """The item that an id, a text or an object means."""
        if isinstance(entry, str) and self._item_texts and entry not in self._catalogue:
            entry = {TEXT: entry}
        own: dict[str, Value] = {}
        id_ = entry
        if isinstance(entry, Mapping):
            id_ = entry.get(_ID)
            names = (_ID, _STATISTICS)
            own = _attributes(entry, self._spec.items.columns, path, names, ignored)
        item_id: str | None = _value(id_, ID, path)
        if item_id is None and not own:
            raise _problem("missing_field", path, "is missing: give an id or the item's columns")
        known = None if item_id is None else self._catalogue.get(item_id)
        if known is None and not own:
            raise _problem(
                _UNKNOWN,
                path,
                f"is {short_text(item_id)}, which the catalogue does not have; give the item's "
                "columns",
                item_id,
            )
        title = str(own.get(self._spec.items.title_column or "") or "")
        if known is None:
            return Item(item_id or "", own, title)
        attributes = {**known.attributes, **own}
        return Item(known.id, attributes, title or known.title) if own else known

    def _given(self, entry: Any, path: str, ignored: set[str]) -> Mapping[str, Value]:
        if entry is None:
            return {}
        _check_object(entry, path)
        values = {name: value for name, value in entry.items() if value is not None}
        ignored.update(f"statistics.{name}" for name in values.keys() - self._statistics)
        return {
            name: _statistic(value, f"{path}.{name}")
            for name, value in values.items()
            if name in self._statistics
        }


def _problem(kind: str, path: str, words: str, value: Any = None) -> RejectedRow:
    """What is wrong with a field of a request."""
    return RejectedRow(kind, f"{path!r} {words}", value)


def _check_object(entry: Any, path: str) -> None:
    if not isinstance(entry, Mapping):
        raise _problem("wrong_type", path, f"must be an object, not {short_text(entry)}")


def _value(value: Any, kind: str, path: str) -> Any:
    try:
        return parse_value(value, kind)
    except UnfitValue as error:
        raise _problem(error.kind, path, f"does not fit: {error.reason}") from None


def _required(value: Any, kind: str, path: str) -> Any:
    found = _value(value, kind, path)
    if found is None:
        raise _problem("missing_field", path, "is missing")
    return found


def _time(value: Any, path: str) -> float | None:
    time: float | None = _value(value, TIME, path)
    if time is not None and not FIRST_TIME <= time <= LAST_TIME:
        raise _problem("bad_time", path, f"does not fit: {out_of_range(time)}")
    return time


def _check_order(times: list[float], now: float | None) -> None:
    previous = -math.inf
    for index, time in enumerate(times):
        if math.isnan(time):
            continue
        late = now is not None and time > now
        if late or time < previous:
            other = f"later than the request itself ({now})"
            if not late:
                other = f"earlier than the one before ({previous})"
            raise _problem("time_out_of_order", f"history[{index}].time", f"is {time!r}, {other}")
        previous = time


def _list(value: Any, path: str, required: bool = False) -> list[Any]:
    if value is None:
        if required:
            raise _problem("missing_field", path, "is missing (a list, which may be empty)")
        return []
    if not isinstance(value, list):
        raise _problem("wrong_type", path, f"must be a list, not {short_text(value)}")
    return value


def _count(value: Any, path: str) -> int | None:
    number: int | None = _value(value, "int", path)
    if number is not None and number < 1:
        raise _problem("wrong_type", path, f"is {number}; it must be at least 1")
    return number


def _attributes(
    entry: Mapping[str, Any],
    columns: Mapping[str, str],
    path: str,
    others: Iterable[str],
    ignored: set[str],
) -> dict[str, Value]:
    """Columns of a table that an object has; null is as good as nothing."""
    found: dict[str, Value] = {}
    for name, value in entry.items():
        if value is None or name in others:
            continue
        if name not in columns:
            # Without indices: history[3].item.prize is ignored as history.item.prize.
            ignored.add(f"{_without_indices(path)}.{name}")
            continue
        parsed = _value(value, columns[name], f"{path}.{name}")
        if parsed is not None:
            found[name] = parsed
    return found


def _statistic(value: Any, path: str) -> Value:
    """A statistic: words, a number, or a list of words."""
    if isinstance(value, list):
        value = _value(value, "list<string>", path)
    elif isinstance(value, float):
        value = _value(value, "float", path)
    elif not isinstance(value, str | int):
        words = f"must be a text, a number or a list, not {short_text(value)}"
        raise _problem("wrong_type", path, words)
    length = len("".join(value)) if isinstance(value, str | tuple) else 0
    if length > _LONGEST_STATISTIC:
        words = f"has {length} characters; a statistic may have {_LONGEST_STATISTIC}"
        raise _problem("too_long", path, words)
    return value


def _without_indices(path: str) -> str:
    return ".".join(part.partition("[")[0] for part in path.split("."))
