"""Requests with answers become a data set folder: training from one file in place of three tables.

    {"user": {"age": 24}, "history": [{"item": {"title": "Alien"}, "value": 5, "time": 1}],
     "candidates": [{"title": "Heat"}, {"title": "Up"}], "answers": [5, 2], "time": 2,
     "part": "train"}

A row is what a served model is asked (`requests.request`), and the answer to each of its
candidates: an event of the row's split at the row's time. Behaviours of its history are events that
histories and statistics see and that are no rows of their own ('context'). Without a `dataset.json`
users and items are plain texts:

    {"user": "Liked Alien and Heat, not Up.", "candidates": ["Big"], "answers": ["no"]}
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from m6rec_jax.data.dataset.files import table_files
from m6rec_jax.data.dataset.reading import read_items, write_dataset
from m6rec_jax.data.dataset.schema import SPEC_FILE, DatasetSpec
from m6rec_jax.data.splitting import splits
from m6rec_jax.data.splitting.splits import PARTS
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import new_folder
from m6rec_jax.io.json_text import json_text
from m6rec_jax.requests.files import open_requests
from m6rec_jax.requests.request import (
    TEXT,
    Number,
    RejectedRow,
    RequestParser,
    converted,
    record_type,
)
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate

ANSWERS, PART = "answers", "part"
# In the folder: rows that could not be used, and why.
REJECTED = "rejected.jsonl"
_ROWS_AT_ONCE = 1_000
_WORDS = dict.fromkeys(("yes", "true", "1"), True) | dict.fromkeys(("no", "false", "0"), False)


def import_requests(
    requests: Path, output: Path, *, dataset: Path | None = None, name: str | None = None
) -> list[str]:
    """Writes a data set folder, to be prepared with the split 'by_column'.

    Args:
      requests: a `.jsonl` or `.parquet` file.
      output: a new folder.
      dataset: folder with a `dataset.json`, and perhaps a table of the items that rows name by id;
        None: plain texts.
      name: of the data set; None: that of `dataset.json`, or of the file.

    Returns:
      lines for the user: what was written, and how many rows are left out (they are in `REJECTED`).

    Raises:
      DataError: something is wrong with the file or the folder, or a split is empty.
      ConfigError: another format of file.
    """
    file = open_requests(requests, {})
    spec = _texts_spec(requests.stem) if dataset is None else DatasetSpec.load(dataset)
    items: list[Item] = []
    if dataset is not None and (spec.items.file or any(dataset.glob("items.*"))):
        tables = table_files(dataset, "items", spec.items.file)
        items = [item for table in tables for item in read_items(table, spec)]
    rows = _Rows(spec, items, is_text=dataset is None)
    rejected: Counter[str] = Counter()
    first = ""
    with new_folder(output) as folder:
        with (folder / REJECTED).open("w", encoding="utf-8") as left_out:
            chunks = file.chunks(0, _ROWS_AT_ONCE, file.num_rows)
            for row in (row for chunk in chunks for row in chunk.rows):
                try:
                    if row.problem is not None:
                        raise row.problem
                    rows.add(row.values or {})
                except RejectedRow as problem:
                    rejected[problem.kind] += 1
                    first = first or f", first in line {row.number + 1}: {problem}"
                    left_out.write(json_text(row.rejected(problem)) + "\n")
        counts = ", ".join(f"{part} {rows.splits[part]:,}" for part in PARTS)
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in rejected.most_common())
        if empty := [part for part in PARTS if not rows.splits[part]]:
            raise DataError(
                f"{requests}: no row is of the split {empty[0]!r} ({counts}); give more rows, or "
                f"say with {PART!r} which split each row is of (left out: {kinds or 'none'}{first})"
            )
        rows.write(folder, name or spec.name)
    lines = [f"{output}: {rows.splits.total():,} requests ({counts})"]
    if rejected:
        lines.append(f"left out, all of them in {output / REJECTED}: {kinds}{first}")
    return lines


class _Rows:
    """Users, items and events of the rows so far; `splits` counts the rows of each split."""

    def __init__(self, spec: DatasetSpec, items: Sequence[Item], *, is_text: bool) -> None:
        self._spec, self._is_text = spec, is_text
        self._has_values = spec.events.value is not None and not is_text
        self._template = DatasetTemplate.parse(spec.template, SPEC_FILE)
        self._users: dict[str, Mapping[str, Any]] = {}
        self._items = {item.id: item.attributes for item in items}
        self._parser = RequestParser(spec, {item.id: item for item in items})
        answers: Any = list[Number] if self._has_values else list[bool | int | str]
        self._answers_type = record_type({ANSWERS: answers, PART: Literal[PARTS]}, (ANSWERS,))
        # Split by user, item, time and value: a behaviour that several rows name is one event.
        self._events: dict[tuple[str, str, float, float], str] = {}
        self.splits: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row; raises RejectedRow, and has then added nothing."""
        request, answered = self._parser.parse(row), converted(row, self._answers_type)
        if request.unknown:
            words = f"'history' names {request.unknown[0]!r}, which the table of items lacks"
            raise RejectedRow("unknown_item", words)
        answers = answered[ANSWERS]
        if len(answers) != len(request.candidates):
            words = f"{ANSWERS!r} are {len(answers)} of {len(request.candidates)} items"
            raise RejectedRow("wrong_type", words)
        # Rows that say the same of a user without an id are of one.
        said = repr((sorted(request.user.attributes.items()), request.history)).encode()
        user = request.user.id or hashlib.blake2b(said, digest_size=8).hexdigest()
        part = answered.get(PART) or PARTS[splits.by_name([user])[0]]
        items = dict[str, Mapping[str, Any]]()
        events = dict[tuple[str, str, float, float], str]()
        for place, (event, item) in enumerate(request.history):
            path = f"history[{place}]"
            if event.value is None and self._has_values:
                raise RejectedRow("missing_field", f"'{path}.value' is missing")
            value = 1.0 if event.value is None else event.value
            time = self._time(event.time, place, f"{path}.time")
            events[user, self._id(item, path, items), time, value] = "context"
        now = self._time(request.time, len(request.history), "time")
        for place, (item, answer) in enumerate(zip(request.candidates, answers, strict=True)):
            if not self._has_values:
                # Sets of instructions have sentences: "Yes."
                word = str(answer).strip().rstrip(".").lower()
                if word not in _WORDS:
                    words = f"'{ANSWERS}[{place}]' is {answer!r}, neither yes nor no"
                    raise RejectedRow("wrong_type", words)
                answer = _WORDS[word]
            id_ = self._id(item, f"candidates[{place}]", items)
            # Without values every event is a positive, and what was not chosen is none.
            if answer or self._has_values or self._is_text:
                events[user, id_, now, float(answer)] = part
        # The last description of a user or an item is the one that is kept.
        self._users[user] = request.user.attributes
        self._items |= items
        for key, split in events.items():
            if split != "context" or key not in self._events:
                self._events[key] = split
        self.splits[part] += 1

    def write(self, folder: Path, name: str) -> None:
        """Writes the tables, and the `dataset.json` that names their splits."""
        spec, events = self._spec, self._spec.events
        made = dataclasses.replace(
            spec,
            name=name,
            users=dataclasses.replace(spec.users, file="users.parquet"),
            items=dataclasses.replace(spec.items, file="items.parquet"),
            events=dataclasses.replace(events, part=PART, file="events.parquet"),
        )
        columns = [events.user, events.item, events.time, events.value, PART]
        rows = sorted(
            ((*key, split) for key, split in self._events.items()), key=lambda row: row[2]
        )
        write_dataset(
            folder,
            made,
            [{spec.users.id: id_, **columns} for id_, columns in self._users.items()],
            [{spec.items.id: id_, **columns} for id_, columns in self._items.items()],
            [{name: v for name, v in zip(columns, row, strict=True) if name} for row in rows],
        )

    def _time(self, time: float | None, place: int, path: str) -> float:
        """A time; where users are plain texts the place in the row."""
        if time is not None and not math.isnan(time):
            return time
        if not self._is_text:
            raise RejectedRow("missing_field", f"{path!r} is missing: events have times")
        return float(place)

    def _id(self, item: Item, path: str, items: dict[str, Mapping[str, Any]]) -> str:
        """The item's id, which is its text where it has none; notes what it looks like."""
        try:
            text = self._template.item(item)
        except DataError as error:
            raise RejectedRow("no_text", f"{path!r}: {error}") from None
        if not text.strip():
            raise RejectedRow("no_text", f"{path!r} has no text")
        items[item.id or text] = item.attributes
        return item.id or text


def _texts_spec(name: str) -> DatasetSpec:
    """Of users and items that are plain texts."""
    table = {"columns": {TEXT: "string"}}
    template = dict.fromkeys(("event", "candidate", "item"), "{text}") | {"profile": "[{text}]"}
    outcomes = [{"at_least": 1, "text": "yes"}, {"text": "no"}]
    return DatasetSpec.from_dict(
        {
            "name": name,
            "users": {"id": "user_id", **table},
            "items": {"id": "item_id", **table},
            "events": {"user": "user_id", "item": "item_id", "time": "time", "value": "answer"},
            "label": {"at_least": 1},
            "template": {**template, "outcomes": outcomes},
        }
    )
