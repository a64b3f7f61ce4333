"""The views of a prepared data set: which columns each has and where its files lie."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from m6rec_jax.data.rendering.event_views import EVENT_VIEWS
from m6rec_jax.data.rendering.event_views.view import GENERATED
from m6rec_jax.errors import DataError
from m6rec_jax.io.buckets import path_of
from m6rec_jax.io.closest import did_you_mean

Row = dict[str, Any]
TFDS_NAME = "recommender_text"
VERSION = "1.0.0"
INFO = "dataset_info.json"  # of TFDS, in the folder of a view

# With which co-occurrences of items are written.
COUNTED = frozenset({"recommendations", *(n for n, view in EVENT_VIEWS.items() if view.counted)})
# Of a corpus of texts.
TEXT_VIEWS = ("documents", "labelled_texts")
# Of dialogues: what is said next, and what is recommended next.
DIALOGUE_VIEWS = ("replies", "recommendations")


def _columns(text: str) -> Mapping[str, tuple[str, bool]]:
    """`"user_id str, history str[]"` -> column -> (kind, whether it is a list)."""
    pairs = (column.split() for column in text.split(","))
    return {name: (kind.removesuffix("[]"), kind.endswith("[]")) for name, kind in pairs}


# View -> column -> (kind, whether it is a list); kinds: str, int (int64), time (float64, unix
# seconds), value (float32).
# Indices are places in the items table; what a user did or named before is oldest first.
COLUMNS: Mapping[str, Mapping[str, tuple[str, bool]]] = {
    **{name: _columns(view.columns) for name, view in EVENT_VIEWS.items()},
    "labelled_texts": _columns(
        "text_id str, text_index int, group str, source str[], question str, label int"
    ),
    "replies": _columns(GENERATED),
    # Rows of the items of one turn read the same and want different items; they have one number.
    "recommendations": _columns(f"{GENERATED}, turn_index int"),
}

_ARROW = {"str": pa.string(), "int": pa.int64(), "time": pa.float64(), "value": pa.float32()}
# Ids never reach a model; features are words of the target.
_NO_TEXTS = ("user_id", "text_id", "group", "kind", "features")


def text_columns(view: str) -> list[str]:
    """The columns of a view that a model reads."""
    return [n for n, (kind, _) in COLUMNS[view].items() if kind == "str" and n not in _NO_TEXTS]


def check_view(view: str, known: Sequence[str] = tuple(COLUMNS)) -> str:
    """Returns `view`; raises DataError, naming the closest one, where it is none of `known`."""
    if view not in known:
        raise DataError(
            f"there is no view {view!r}{did_you_mean(view, known)} (known: {', '.join(known)})"
        )
    return view


def config_prefix(dataset: str, split: str) -> str:
    """What a split's TFDS config names share; what TFDS refuses becomes an underscore."""
    refused = r"[^\w\-.]"
    return f"{re.sub(refused, '_', dataset)}.{split}"


def tfds_folder(data_dir: str | Path, dataset: str, split: str, view: str) -> Path:
    """Folder that holds a view's shards and `INFO`."""
    config = f"{config_prefix(dataset, split)}.{check_view(view)}"
    return path_of(data_dir) / TFDS_NAME / config / VERSION


def schema(view: str) -> pa.Schema:
    """The columns of a view in Arrow."""
    columns = COLUMNS[check_view(view)].items()
    return pa.schema(
        [(name, pa.list_(_ARROW[kind]) if many else _ARROW[kind]) for name, (kind, many) in columns]
    )
