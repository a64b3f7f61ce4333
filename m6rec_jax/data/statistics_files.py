"""The files of statistics: a folder of Parquet tables and one JSON description."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data.pair_counts import PairCounts
from m6rec_jax.data.statistics_state import (
    ItemStates,
    StatisticsOptions,
    StatisticsSettings,
    StatisticsState,
    UserState,
)
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import replaced_folder

# Raise the number when the same events give other words, too: then text is rendered anew.
FORMAT = "m6rec-statistics-8"

State = TypeVar("State", bound=StatisticsState)

_SCALARS = ("count", "positive", "value", "square", "last_time", "next_refresh", "next_fit")
_TABLES = ("items", "users", "by", "pairs", "ranks", "factors")
# With `StatisticsOptions.user_items`: user and item by their places in the tables of both.
USER_ITEMS = "user_items"
_INT, _FLOAT, _FLOATS = pa.int64(), pa.float64(), pa.list_(pa.float64())
SCHEMAS: Mapping[str, pa.Schema] = {
    "items": pa.schema(
        {
            "item_id": pa.string(),
            "count": _INT,
            "positive": _INT,
            "value": _FLOAT,
            "holders": _INT,
            "square": _FLOAT,
        }
    ),
    "users": pa.schema(
        {
            "user_id": pa.string(),
            "count": _INT,
            "positive": _INT,
            "value": _FLOAT,
            "last_time": _FLOAT,
            "window": pa.list_(pa.int32()),
            "window_value": _FLOATS,
            "window_difference": _FLOATS,
        }
    ),
    "by": pa.schema(
        {"user": _INT, "column": pa.int8(), "name": pa.string(), "count": _INT, "positive": _INT}
    ),
    "pairs": pa.schema({"key": _INT, "together": pa.float32(), "products": pa.float32()}),
    "factors": pa.schema({"bias": _FLOAT, "factors": _FLOATS}),
    USER_ITEMS: pa.schema({"user": _INT, "item": _INT, "times": _INT, "last_time": _FLOAT}),
}


def table(name: str, *columns: Any) -> pa.Table:
    """One of `SCHEMAS`, of its columns `[n]`."""
    schema = SCHEMAS[name]
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema)


def ranks_table(counts: Sequence[float], shares: Sequence[float]) -> pa.Table:
    """The one row of 'ranks': sorted counts and shares liked of all items."""
    return pa.table({"count": pa.array([counts]), "share": pa.array([shares])})


def write(
    path: str | Path,
    counted: StatisticsSettings,
    scalars: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
) -> None:
    """Writes what is counted, and a state's numbers and tables: what `load` reads."""
    settings = {name: getattr(counted, name) for name in ("by", "at_least", "has_values")}
    options = dataclasses.asdict(counted.options)
    raw = {"format": FORMAT, "settings": settings, "options": options, "state": scalars}
    with replaced_folder(Path(path)) as folder:
        for name, table in tables.items():
            pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        (folder / "statistics.json").write_text(json.dumps(raw, indent=2) + "\n", "utf-8")


def tables_without_users(path: Path) -> dict[str, pa.Table]:
    """The tables of a folder without what each user did; counts of items, and of users, stay."""
    tables = {file.stem: pq.read_table(file) for file in path.glob("*.parquet")}
    number = tables["users"].num_rows
    nothing = {pa.string(): "", _INT: 0, _FLOAT: -math.inf}
    columns = [[nothing.get(kind, [])] * number for kind in SCHEMAS["users"].types]
    tables["users"] = table("users", [f"forgotten {n}" for n in range(number)], *columns[1:])
    return tables | {
        name: SCHEMAS[name].empty_table() for name in ("by", USER_ITEMS) if name in tables
    }


def load(kind: type[State], path: str | Path) -> State:
    """Reads what `write` wrote.

    Raises:
      DataError: the folder is missing, of another format, or damaged.
    """
    path = Path(path)
    for file in ("statistics.json", *(f"{name}.parquet" for name in _TABLES)):
        if not (path / file).is_file():
            raise DataError(
                f"{path} holds no statistics ({file} is missing); `m6rec data prepare` writes them"
            )
    try:
        raw = json.loads((path / "statistics.json").read_text("utf-8"))
        if raw.get("format") != FORMAT:
            raise DataError(
                f"{path}: format {raw.get('format')!r}, expected {FORMAT!r}; prepare the "
                "data set again"
            )
        # The statistics in the box (`m6rec demo --edge`) are older than some options.
        known = {field.name for field in dataclasses.fields(StatisticsOptions)}
        given = {"user_items": False, **raw["options"]}
        options = StatisticsOptions(**{name: given[name] for name in known.intersection(given)})
        found = kind(**raw["settings"], options=options)
        for name in _SCALARS:
            setattr(found, name, raw["state"][name])
        if found.last_time is None:
            found.last_time = -math.inf
        found.factors.mean = raw["state"]["factors_mean"]
        names = (*_TABLES, USER_ITEMS) if found.options.user_items else _TABLES
        _fill(found, {name: pq.read_table(path / f"{name}.parquet") for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as e:
        raise DataError(f"{path}: the statistics are damaged: {e}") from e
    return found


def _fill(state: StatisticsState, tables: dict[str, pa.Table]) -> None:
    columns: dict[str, dict[str, list[Any]]] = {
        name: table.to_pydict() for name, table in tables.items() if name != "pairs"
    }
    of_items = columns["items"]
    state.items = ItemStates(
        {item_id: index for index, item_id in enumerate(of_items["item_id"])},
        *(of_items[name] for name in ("count", "positive", "value", "holders", "square")),
    )
    of_users = columns["users"]
    counts = ("count", "positive", "value", "last_time")
    windows = ("window", "window_value", "window_difference")
    for user_id, count, positive, value, last_time, *window in zip(
        of_users["user_id"], *(of_users[name] for name in (*counts, *windows)), strict=True
    ):
        by: tuple[dict[str, list[int]], ...] = tuple({} for _ in state.by)
        state.users[user_id] = UserState(count, positive, value, last_time, by, {}, *window)
    users = list(state.users.values())
    for index, column, name, count, positive in zip(
        *(columns["by"][name] for name in SCHEMAS["by"].names), strict=True
    ):
        users[index].by[column][name] = [count, positive]
    ids = of_items["item_id"]
    if USER_ITEMS in columns:
        for index, item, times, time in zip(
            *(columns[USER_ITEMS][name] for name in SCHEMAS[USER_ITEMS].names), strict=True
        ):
            users[index].items[ids[item]] = times, time
    key, *counters = (column.to_numpy() for column in tables["pairs"].columns)
    state.pairs = PairCounts(len(ids), key, np.stack(counters, axis=1))
    state.sorted_counts = np.asarray(columns["ranks"]["count"][0], np.float64)
    state.sorted_shares = np.asarray(columns["ranks"]["share"][0], np.float64)
    of_factors = columns["factors"]
    state.factors.item_bias = np.asarray(of_factors["bias"], np.float64)
    shape = (len(state.factors.item_bias), state.factors.item_factors.shape[1])
    state.factors.item_factors = np.asarray(of_factors["factors"], np.float64).reshape(shape)
