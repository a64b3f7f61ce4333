"""What bodies may say of a data set's users, events and items: types that check it, and that the
OpenAPI document shows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from m6rec_jax.data.dataset.schema import DatasetSpec, TableSpec
from m6rec_jax.data.dataset.values import FIRST_TIME, LAST_TIME
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.requests.request import TEXT, Number, RejectedRow, converted

# Most characters of a text and of an id, and entries of lists.
MAX_TEXT, MAX_ID, MAX_CANDIDATES, MAX_HISTORY, MAX_EXCLUDE = 20_000, 256, 1000, 1000, 10_000

# `requests.request` reads times, and says what is wrong with them. A format would allow all years.
_DAYS = "(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31"
_LEAP = "(19(7[26]|8[048]|9[26])|20([02468][048]|[13579][26]))-02-29"
_ZONE = "(Z|[+-](0[0-9]|1[0-3]):[0-5][0-9])?"
_HOURS = rf"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,6}})?{_ZONE}"
_ISO = f"^((19[7-9]|20[0-9])[0-9]-({_DAYS})|{_LEAP})T{_HOURS}$"
TIME_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": FIRST_TIME, "maximum": LAST_TIME},
        {"type": "string", "pattern": _ISO},
        {"type": "null"},
    ]
}
# A little less than 64 bits: the document has bounds as floats, which hold this exactly.
MAX_WHOLE = 9 * 10**18
_Time = Annotated[Any, Meta(extra_json_schema=TIME_SCHEMA)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]
# JSON's 3.0 is whole, and "3" is no number.
_Whole = (
    Annotated[int, Meta(ge=-MAX_WHOLE, le=MAX_WHOLE)]
    | Annotated[float, Meta(ge=-(2.0**53), le=2.0**53, multiple_of=1)]
)
_Id = _Text | _Whole
_ShortId = Annotated[str, Meta(max_length=MAX_ID)] | _Whole
_Words = Annotated[str, Meta(max_length=1000)]
_Texts = Annotated[list[_Words], Meta(max_length=100)]
_COLUMNS: Mapping[str, Any] = {
    "string": _Id,
    "int": _Whole,
    "float": Number,
    "bool": bool,
    "list<string>": _Texts,
}
_UNKNOWN = "(?:'(.*)'|the request): Object contains unknown field `(.*)`"


class RowTypes:
    """Types of one data set.

    Args:
      spec: of the data set.
      statistics: names of those that a request may bring.

    Attributes:
      kinds: `User`, `Event`, `Item`, `Statistics`, and `Row`, which has all of them.
    """

    def __init__(self, spec: DatasetSpec, statistics: Iterable[str]) -> None:
        statistics = tuple(statistics)

        def record(kind: str, fields: Mapping[str, Any], required: Collection[str] = ()) -> Any:
            """An object whose other fields may be missing or null, and that has no further ones."""
            # A column may have any name, which a field of a struct may not.
            safe = {name: f"field{number}" for number, name in enumerate(fields)}
            typed = [
                (safe[name], type_) if name in required else (safe[name], type_ | None, None)
                for name, type_ in fields.items()
            ]
            return msgspec.defstruct(
                f"{kind}-{spec.name}",
                typed,
                rename={field: name for name, field in safe.items()},
                forbid_unknown_fields=True,
                kw_only=True,
            )

        def columns(table: TableSpec) -> dict[str, Any]:
            return {"id": _Id} | {name: _COLUMNS[kind] for name, kind in table.columns.items()}

        given = record("Statistics", dict.fromkeys(statistics, _Words | Number | bool | _Texts))
        user = record("User", columns(spec.users))
        item = _Id | record("Columns", columns(spec.items) | {"statistics": given})
        value = {} if spec.events.value is None else {"value": Number}
        event = record("Event", {"item": item, "time": _Time, **value}, ("item",))
        if set(spec.users.columns) == {TEXT}:
            user = _Text | user
        if set(spec.items.columns) == {TEXT}:
            event = _Text | event
        row: dict[str, Any] = {
            **{"user": user, "time": _Time, "statistics": given, "about": item, "input": _Text},
            "k": Annotated[int, Meta(ge=1)],
            "history": Annotated[list[event], Meta(max_length=MAX_HISTORY)],  # type: ignore[valid-type]
            "candidates": Annotated[list[item], Meta(max_length=MAX_CANDIDATES)],  # type: ignore[valid-type]
            "exclude": Annotated[list[_ShortId], Meta(max_length=MAX_EXCLUDE)],
        }
        self._names = {*row, "id", "item", "value", *statistics}
        self._names |= {*spec.users.columns, *spec.items.columns}
        self.kinds: Mapping[str, Any] = {
            **{"User": user, "Event": event, "Item": item, "Statistics": given},
            "Row": record("Row", row),
        }

    def check(self, value: Any, kind: str = "Row", name: str = "") -> None:
        """Checks a part of a body, which is called `name` in errors.

        Raises:
          RejectedRow: 'unknown_field', with the nearest name; else 'invalid_field'.
        """
        try:
            converted(value, self.kinds[kind], name, strict=True)
        except RejectedRow as problem:
            unknown = re.fullmatch(_UNKNOWN, str(problem), re.DOTALL)
            if unknown is None:
                raise RejectedRow("invalid_field", str(problem)) from None
            field = ".".join(filter(None, unknown.groups()))
            reason = f"there is no such field{did_you_mean(unknown[2], self._names)}"
            raise RejectedRow("unknown_field", f"'{field}': {reason}") from None
