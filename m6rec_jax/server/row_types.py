"""What requests may hold of a data set, as types: they check bodies, and the OpenAPI document has
them as schemas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Required

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType, TypedDict

from m6rec_jax.data.dataset.schema import DatasetSpec, TableSpec
from m6rec_jax.data.dataset.values import FIRST_TIME, LAST_TIME
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


# `requests.request` reads times, and says what is wrong with them. A format would allow all years.
_DAYS = "(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31"
_LEAP = "(19(7[26]|8[048]|9[26])|20([02468][048]|[13579][26]))-02-29"
_ZONE = "(Z|[+-](0[0-9]|1[0-3]):[0-5][0-9])?"
_HOURS = rf"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,6}})?{_ZONE}"
_UNIX = {"type": "number", "minimum": FIRST_TIME, "maximum": LAST_TIME}
_ISO = {"type": "string", "pattern": f"^((19[7-9]|20[0-9])[0-9]-({_DAYS})|{_LEAP})T{_HOURS}$"}
Time = (
    Annotated[float, Field(strict=True), WithJsonSchema(_UNIX)]
    | Annotated[str, WithJsonSchema(_ISO)]
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
        self._name = spec.name

        def record(kind: str, fields: Mapping[str, Any], others: Mapping[str, str]) -> Any:
            """An object with these fields, which may be missing or null; see `check_names`."""
            every = {name: own if name == "item" else own | None for name, own in fields.items()}
            # A column may have any name, which a model's fields may not.
            made = TypedDict(f"{kind}-{spec.name}", every, total=False)  # type: ignore[misc]
            made.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
            return Annotated[made, BeforeValidator(lambda v: check_names(v, fields, others))]

        def columns(table: TableSpec) -> dict[str, Any]:
            return {"id": Id} | {name: _COLUMNS[kind] for name, kind in table.columns.items()}

        given = record("Statistics", dict.fromkeys(statistics, _Statistic), {})
        user = record("User", columns(users), {users.id: "id"})
        own = record("Columns", columns(items) | {"statistics": given}, {items.id: "id"})
        item = TypeAliasType(f"Item-{spec.name}", Id | own)  # type: ignore[misc]
        fields = {"item": Required[item], "time": Time}
        if events.value:
            fields["value"] = Number
        others = {events.item: "item", events.time: "time", events.value or "": "value"}
        event = record("Event", fields, others)
        if set(users.columns) == {TEXT}:
            user = TypeAliasType(f"User-{spec.name}", Text | user)  # type: ignore[misc]
        if set(items.columns) == {TEXT}:
            event = TypeAliasType(f"Event-{spec.name}", Text | event)  # type: ignore[misc]
        self._item: TypeAdapter[Any] = TypeAdapter(item)  # type: ignore[arg-type]
        row: dict[str, Any] = {
            **{"user": user, "time": Time, "about": item, "k": Whole, "statistics": given},
            "input": Text,
            "history": Annotated[list[event], Field(max_length=MAX_HISTORY)],  # type: ignore[valid-type]
            "candidates": Annotated[list[item], Field(max_length=MAX_CANDIDATES)],  # type: ignore[valid-type]
            "exclude": Annotated[list[ShortId], Field(max_length=MAX_EXCLUDE)],
        }
        self._row: TypeAdapter[Any] = TypeAdapter(record("Row", row, {}))

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises pydantic's ValidationError where a request has something else."""
        self._row.validate_python(row)

    def check_item(self, entry: Any) -> None:
        """Raises pydantic's ValidationError where an item is none."""
        self._item.validate_python(entry)

    def schemas(self) -> dict[str, Any]:
        """JSON schemas of `User`, `Event`, `Item`, `Statistics`, of `Known`, which has all of them,
        and of what they refer to; each is called `User-NAME` by the data set's name.
        """
        known = self._row.json_schema(ref_template="#/components/schemas/{model}")
        return {**known.pop("$defs"), f"Known-{self._name}": known}
