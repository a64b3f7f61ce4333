"""What requests may hold of a data set, as types: they check bodies, and the OpenAPI document has
them as schemas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Required

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType, TypedDict

from m6rec_jax.data.schema import DatasetSpec
from m6rec_jax.data.values import FIRST_TIME, LAST_TIME, out_of_range
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.requests.request import TEXT

Text = Annotated[str, Field(max_length=20_000)]
# JSON's 3.0 is whole, and "3" is no number.
INTEGRAL = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)
# Of 64 bits; the document has bounds as floats, which hold these exactly.
_LARGEST = 9 * 10**18
Whole = Annotated[int, Field(strict=True, ge=-_LARGEST, le=_LARGEST), INTEGRAL]
Number = Annotated[float, Field(strict=True, ge=-1e300, le=1e300)]
# Most entries of lists.
MAX_CANDIDATES, MAX_HISTORY, MAX_EXCLUDE = 1000, 1000, 10_000
# Of users and items; numbers are as good as their digits.
Id = Text | Whole
ShortId = Annotated[str, Field(max_length=256)] | Whole
_Words = Annotated[str, Field(max_length=1000)]
_Texts = Annotated[list[_Words], Field(max_length=100)]
_COLUMNS: dict[str, Any] = {
    "string": Id,
    "int": Whole,
    "float": Number,
    "bool": StrictBool,
    "list<string>": _Texts,
}
_Statistic = _Words | Whole | Number | StrictBool | _Texts


def _unix(seconds: float) -> float:
    if not FIRST_TIME <= seconds <= LAST_TIME:
        raise PydanticCustomError("bad_time", "{said}", {"said": out_of_range(seconds)})
    return seconds


def _iso(text: str) -> str:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        said = "write unix seconds, or an ISO 8601 time such as 2026-11-24T18:00:00Z"
        raise PydanticCustomError("bad_time", "{said}", {"said": said}) from None
    return text


_UNIX = {"type": "number", "minimum": FIRST_TIME, "maximum": LAST_TIME}
_ISO = {"type": "string", "format": "date-time"}
Time = (
    Annotated[float, Field(strict=True), AfterValidator(_unix), WithJsonSchema(_UNIX)]
    | Annotated[str, AfterValidator(_iso), WithJsonSchema(_ISO)]
)


def check_names(value: Any, names: Iterable[str], others: Mapping[str, str]) -> Any:
    """An object whose fields are among `names`; raises PydanticCustomError with the nearest name.

    Args:
      value: of any type.
      names: of fields.
      others: fields by what tables call them.
    """
    for name in value if isinstance(value, dict) else ():
        if name not in names:
            near = others.get(name)
            hint = f" (did you mean '{near}'?)" if near else did_you_mean(name, names)
            said = f"there is no such field{hint}: {', '.join(names)}"
            raise PydanticCustomError("unknown_field", "{said}", {"said": said, "field": name})
    return value


class RowTypes:
    """Checks of what a request says of users, events and items of a data set.

    Args:
      spec: of the data set.
      statistics: names of those that a request may bring.
    """

    def __init__(self, spec: DatasetSpec, statistics: Iterable[str]) -> None:
        users, items, events = spec.users, spec.items, spec.events
        given = _record("Statistics", dict.fromkeys(statistics, _Statistic | None), {})
        own = {column: _COLUMNS[kind] for column, kind in users.columns.items()}
        user = _record("User", _nullable({"id": Id, **own}), {users.id: "id"})
        own = {column: _COLUMNS[kind] for column, kind in items.columns.items()}
        fields = _nullable({"id": Id, **own, "statistics": given})
        columns = _record("Columns", fields, {items.id: "id"})
        item = TypeAliasType("Item", Id | columns)  # type: ignore[misc]
        fields = {"item": Required[item], "time": Time | None}
        if events.value:
            fields["value"] = Number | None
        event = _record(
            "Event",
            fields,
            {events.item: "item", events.time: "time", events.value or "": "value"},
        )
        if set(users.columns) == {TEXT}:
            user = TypeAliasType("User", Text | user)  # type: ignore[misc]
        if set(items.columns) == {TEXT}:
            event = TypeAliasType("Event", Text | event)  # type: ignore[misc]
        self._item: TypeAdapter[Any] = TypeAdapter(item)  # type: ignore[arg-type]
        row: dict[str, Any] = {
            **{"user": user, "time": Time, "about": item, "k": Whole, "statistics": given},
            "input": Text,
            "history": Annotated[list[event], Field(max_length=MAX_HISTORY)],  # type: ignore[valid-type]
            "candidates": Annotated[list[item], Field(max_length=MAX_CANDIDATES)],  # type: ignore[valid-type]
            "exclude": Annotated[list[ShortId], Field(max_length=MAX_EXCLUDE)],
        }
        self._row: TypeAdapter[Any] = TypeAdapter(_record("Row", _nullable(row), {}))

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises pydantic's ValidationError where a request has something else."""
        self._row.validate_python(row)

    def check_item(self, entry: Any) -> None:
        """Raises pydantic's ValidationError where an item is none."""
        self._item.validate_python(entry)

    def schemas(self) -> dict[str, Any]:
        """JSON schemas of `User`, `Event`, `Item`, `Statistics`, of `Known`, which has all of them,
        and of what they refer to.
        """
        known = self._row.json_schema(ref_template="#/components/schemas/{model}")
        return {**known.pop("$defs"), "Known": known}


def _nullable(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: kind | None for name, kind in fields.items()}


def _record(name: str, fields: Mapping[str, Any], others: Mapping[str, str]) -> Any:
    """An object with these fields, which may be missing; see `check_names`."""
    # A column may have any name, which a model's fields may not.
    record = TypedDict(name, fields, total=False)  # type: ignore[misc]
    record.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    checked = Annotated[record, BeforeValidator(lambda v: check_names(v, fields, others))]
    return checked
