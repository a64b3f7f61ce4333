"""RecBole's atomic files: `NAME.inter`, `NAME.item` and perhaps `NAME.user` (Zhao et al., 2021).

Tables with tabs between fields and a header of `field:type`. What becomes of the types:

    token      a string
    token_seq  a list of strings; text where the field's name says so (`title:token_seq` is a title)
    float      a number
    float_seq  not used: numbers say nothing as text

Of `.inter`, `user_id`, `item_id`, `timestamp` and `rating` are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m6rec_jax.data.columns import ID, TIME, VALUE
from m6rec_jax.data.imports import lines as text
from m6rec_jax.data.imports.records import ITEM, LINE, POSITION, RATING, TIMESTAMP, USER, Imported
from m6rec_jax.data.values import FIRST_TIME, LAST_TIME, out_of_range
from m6rec_jax.errors import DataError
from m6rec_jax.io.closest import did_you_mean

_KINDS = {"token": "string", "token_seq": "list<string>", "float": "float", "float_seq": None}
# Fields whose words make one text, though they are declared as a sequence of tokens.
_TEXT = re.compile(r"title|name|text|descr|summary|headline|abstract|review", re.IGNORECASE)


def read_atomic_files(folder: Path, report: text.Report) -> Imported:
    """Reads a folder with the atomic files of one data set.

    Args:
      folder: holds one `.inter` file; those beside it have its name.
      report: collects what is left out.

    Raises:
      DataError: a file or a field is missing, or a line is not as its header says.
    """
    found = sorted(folder.glob("*.inter"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{folder} must hold one .inter file (found: {names}); join the parts of one data set "
            "under one header, and keep each data set in a folder of its own"
        )
    events = found[0]
    items, users = events.with_suffix(".item"), events.with_suffix(".user")
    if not items.is_file():
        raise DataError(
            f"{items} is missing: the model reads items as text, so it needs their titles or other "
            "attributes there, under a header such as item_id:token<tab>title:token_seq"
        )
    item_columns, item_table = _attributes(items, ITEM, report)
    user_columns, user_table = _attributes(users, USER, report) if users.is_file() else ({}, None)
    header = _header(events, report)
    for name in (USER, ITEM):
        _require(events, header, name)
    return Imported(
        name=events.stem,
        item_file=items,
        event_file=events,
        items=item_table,
        item_columns=item_columns,
        users=user_table,
        user_columns=user_columns,
        events=_events(events, header, report),
        has_times=TIMESTAMP in header,
        has_ratings=RATING in header,
        order=f"the place of an event in {events.name}",
    )


def _header(path: Path, report: text.Report) -> dict[str, str | None]:
    """Field -> type of column; None for those that are not used."""
    kinds: dict[str, str | None] = {}
    for field in text.first_line(path).split("\t"):
        name, colon, kind = field.strip().rpartition(":")
        if not colon or kind not in _KINDS:
            hint = did_you_mean(kind, _KINDS) if colon else "; write field:type"
            raise DataError(
                f"{path}, line 1: {field[:60]!r} has none of the types {', '.join(_KINDS)}{hint}"
            )
        name = re.sub(r"\W+", "_", name)
        if name in (*kinds, LINE, ""):
            raise DataError(f"{path}, line 1: the field {name!r} is there twice, or is no name")
        is_text = kind == "token_seq" and _TEXT.search(name)
        kinds[name] = "string" if is_text else _KINDS[kind]
    if unused := [name for name, kind in kinds.items() if kind is None]:
        report.notes.append(f"{path.name}: not used, as float_seq: {', '.join(unused)}")
    return kinds


def _require(path: Path, header: Mapping[str, str | None], name: str) -> None:
    if name not in header:
        raise DataError(
            f"{path}, line 1: no field {name!r} (its fields: {', '.join(header)})"
            f"{did_you_mean(name, header)}"
        )


def _attributes(
    path: Path, identifier: str, report: text.Report
) -> tuple[dict[str, str], pa.Table]:
    header = _header(path, report)
    _require(path, header, identifier)
    kinds = {name: kind for name, kind in header.items() if kind and name != identifier}
    return kinds, text.read_table(path, report, list(header), kinds, identifier)


def _events(
    path: Path, header: Mapping[str, str | None], report: text.Report
) -> Iterator[pa.RecordBatch]:
    kinds = {USER: ID, ITEM: ID, TIMESTAMP: TIME, RATING: VALUE}
    kinds = {name: kind for name, kind in kinds.items() if name in header}
    if unused := [name for name, kind in header.items() if kind and name not in kinds]:
        report.notes.append(f"{path.name}: not used: {', '.join(unused)}")
    for lines in text.line_batches(path, report, skip=1):
        fields = text.split_fields(lines, list(header))
        batch = {name: text.convert_field(lines, fields[name], name, kinds[name]) for name in kinds}
        if TIMESTAMP not in batch:
            batch[POSITION] = pa.array(lines.numbers.astype(np.float64))
        else:
            _check_times(lines, batch[TIMESTAMP])
        batch[LINE] = pa.array(lines.numbers)
        made = pa.RecordBatch.from_pydict(batch)
        whole = np.ones(len(made), bool)
        for name in kinds:
            there = made[name].is_valid().to_numpy(zero_copy_only=False)
            report.count(f"events without {name}, left out", path, lines.numbers[whole & ~there])
            whole &= there
        yield made.filter(pa.array(whole))


def _check_times(lines: text.Lines, times: pa.Array) -> None:
    wrong = pc.or_(pc.less(times, FIRST_TIME), pc.greater(times, LAST_TIME)).fill_null(False)
    offsets = np.flatnonzero(wrong.to_numpy(zero_copy_only=False))
    if offsets.size:
        reason = out_of_range(times[int(offsets[0])].as_py())
        raise lines.error(int(offsets[0]), f"column {TIMESTAMP!r}: {reason}")
