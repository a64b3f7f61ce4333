"""Requests with answers become prepared data: training from a file in place of three tables.

    {"user": {"age": 24}, "history": [{"item": {"title": "Alien"}, "value": 5}],
     "candidates": [{"title": "Heat"}, {"title": "Up"}], "answers": [true, false], "part": "train"}

A row is what a served model is asked (`requests.request`), and the answer to each of its
candidates. It is parsed and rendered by the code that serves requests, so that what is trained on
and what is asked later are the same text. All users are new: what statistics say of them is counted
from their own row. Columns and template are those of a `dataset.json`, which needs no tables beside
it; without one users and items are plain texts:

    {"user": "Liked Alien and Heat, not Up.", "candidates": ["Big"], "answers": ["no"]}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.data import splits, statistics_files
from m6rec_jax.data.columns import ARROW_TYPES, VALUE, parse_value
from m6rec_jax.data.files import SUFFIXES, table_files
from m6rec_jax.data.negatives import CHOSEN, NOT_CHOSEN
from m6rec_jax.data.prepared import (
    CATALOGUE,
    EVENT_COLUMNS,
    EVENTS,
    PREPARED_EVENTS,
    STATISTICS,
    Prepared,
    write_catalogue,
)
from m6rec_jax.data.reading import read_items
from m6rec_jax.data.render import sentence
from m6rec_jax.data.schema import IGNORE, SPEC_FILE, DatasetSpec
from m6rec_jax.data.splits import PART_NAMES, PARTS, TRAIN, Split
from m6rec_jax.data.statistics import Statistics, StatisticsOptions
from m6rec_jax.data.template_needs import checked_template
from m6rec_jax.data.text_views import ViewRow, prepare_texts
from m6rec_jax.data.values import UnfitValue
from m6rec_jax.errors import DataError
from m6rec_jax.io.json_text import json_text
from m6rec_jax.requests.files import Position, ReadRow, RequestFile, open_requests
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import TEXT, RejectedRow, Request, RequestParser
from m6rec_jax.text.records import Item

VIEWS = ("groups", "next_items", "documents")
ANSWERS, PART = "answers", "part"
# Beside the manifest: rows that could not be used, and why.
REJECTED = "rejected.jsonl"
_CHUNK = 1_000
_SHOWN = 5

log = logging.getLogger(__name__)


@gin.configurable
def prepare_requests(
    requests: str | Path = gin.REQUIRED,
    out: str | Path = gin.REQUIRED,
    dataset_dir: str | Path | None = None,
    split: str = "by_user",
    name: str | None = None,
    progress: bool = True,
) -> Prepared:
    """Renders a file of requests with answers.

    Args:
      requests: a `.jsonl` or `.parquet` file.
      out: the TFDS data_dir to write to; may hold other data sets and splits.
      dataset_dir: folder with a `dataset.json`, and perhaps a table of the items that rows name by
        id; None: plain texts.
      split: 'by_user', by a hash of the user's id (without one, of the history's text), with
        options where wanted; or 'by_column', by the field `part` of the rows.
      name: of the data set; None: that of `dataset.json`, or of the file.
      progress: whether to show bars.

    Returns:
      what was written: the views `VIEWS`. Rows that cannot be used are counted, logged, and written
      to `REJECTED` beside the manifest.

    Raises:
      DataError: something is wrong with the file or the folder, or a part is empty.
      ConfigError: another format, or a template that does not fit the columns.
    """
    requests = Path(requests)
    file = open_requests(requests, {})
    own = _texts_spec(requests.stem) if dataset_dir is None else DatasetSpec.load(dataset_dir)
    # What users had before is not known, so repeats are not told apart.
    spec = dataclasses.replace(own, name=name or own.name, repeats=IGNORE)
    parsed = Split.parse(split, spec.splits)
    if parsed.kind not in ("by_user", "by_column"):
        raise DataError(
            f"split {parsed.name!r} needs a table of events; requests are split 'by_user' or "
            "'by_column'"
        )
    files = [requests]
    items: list[Item] = []
    if dataset_dir is not None:
        folder = Path(dataset_dir)
        files.append(folder / SPEC_FILE)
        if spec.items.file or any((folder / f"items{suffix}").exists() for suffix in SUFFIXES):
            tables = table_files(folder, "items", spec.items.file)
            files += tables
            items = [item for table in tables for item in read_items(table, spec)]

    def render(folder: Path) -> tuple[Iterator[ViewRow], dict[str, Any]]:
        kind = "bool" if dataset_dir is None or spec.label.at_least is None else VALUE
        reading = _Reading(spec, kind, parsed, items, str(dataset_dir or requests))
        # What is left out is told where it stays, whatever comes of the rest.
        return reading.rows(file, folder, folder.parent / REJECTED), reading.manifest

    # What rows depend on beside the files.
    return prepare_texts(
        out, spec.name, parsed, VIEWS, files, dataclasses.asdict(spec), render, progress
    )


class _Reading:
    """One pass over a file of requests: rows of views, and what is known after the last of them.

    Args:
      spec: without a label, yes is a chosen candidate and no is one that was not chosen.
      kind: of the answers, 'bool' or `VALUE`.
      split: 'by_user' or 'by_column'.
      items: that rows may name by id.
      source: of the template, for error messages.

    Attributes:
      manifest: complete once all rows were taken.
    """

    def __init__(
        self, spec: DatasetSpec, kind: str, split: Split, items: Sequence[Item], source: str
    ) -> None:
        self._spec, self._kind, self._split = spec, kind, split
        # No event is counted, so there is no overall share to pull a user's own towards.
        self._statistics = Statistics.for_dataset(spec, StatisticsOptions(smoothing=1e-6))
        self._template = checked_template(spec, self._statistics, source)
        by_id = {item.id: item for item in items}
        self._parser = RequestParser(spec, by_id, self._statistics.names())
        self._renderer = RequestRenderer(self._template, self._statistics)
        self._items = dict(by_id)
        self._item_index = {id_: index for index, id_ in enumerate(by_id)}
        self._users: dict[str, int] = {}
        self._codes: list[int] = []
        # User, item, time, value, part.
        self._events: list[tuple[int, int, float, float, int]] = []
        seen = {"train": ["train"], "validation": ["train"], "test": ["train"]}
        self.manifest: dict[str, Any] = {
            "dataset_spec": spec.to_dict(),
            "answers": kind,
            "visible": {"history": seen},  # as far as known: a history is what its request says
        }

    def rows(self, file: RequestFile, folder: Path, left_out: Path) -> Iterator[ViewRow]:
        """All rows of the views; then writes what lies beside them."""
        rejected: Counter[str] = Counter()
        first: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        with left_out.open("w", encoding="utf-8") as target:
            for chunk in file.chunks(Position(), _CHUNK):
                for row in chunk.rows:
                    try:
                        yield from self._views(row)
                    except RejectedRow as problem:
                        rejected[problem.kind] += 1
                        found = {"row": row.number, "kind": problem.kind, "reason": str(problem)}
                        target.write(json_text(found | {"raw": row.shown()}) + "\n")
                        is_line = file.unit == "bytes"
                        place = f"line {row.number + 1}" if is_line else f"row {row.number}"
                        first += [f"  {place}: {problem}"][: _SHOWN - len(first)]
        self._finish(folder, left_out, rejected, first)

    def _views(self, row: ReadRow) -> Iterator[ViewRow]:
        if row.values is None:
            assert row.problem is not None
            raise row.problem
        if row.raw is not None:
            _check_unicode(row.values)
        request = self._parser.parse(row.values)
        text = self._renderer.render(request)
        texts = self._item_texts(request, text)
        values = self._answers(row.values, len(texts))
        user = request.user.id or _digest(text.history)
        code = self._part(row.values, user)
        part = PARTS[code]
        indices = [
            self._index(item, own) for item, own in zip(request.candidates, texts, strict=True)
        ]
        if self._spec.label.at_least is not None:
            labels = self._spec.label.labels(np.asarray(values)).tolist()
            outcomes = [self._template.outcome(value) for value in values]
        else:
            labels, values = list(map(int, values)), [math.nan] * len(values)
            words = (NOT_CHOSEN, self._template.outcome(None) or CHOSEN)
            outcomes = [words[label] for label in labels]
        user_index = self._users.setdefault(user, len(self._users))
        of_user = {
            "user_id": user,
            "user_index": user_index,
            "time": request.time or 0.0,
            "history": text.history,
        }
        self._codes.append(code)
        # Without a label, what was not chosen is no event.
        self._events += [
            (user_index, index, request.time or 0.0, value, code)
            for index, value, label in zip(indices, values, labels, strict=True)
            if label or not math.isnan(value)
        ]
        scored = {
            "group_id": row.number,
            "candidates": text.candidates,
            "item_indices": indices,
            "labels": labels,
            "ratings": values,
        }
        yield ViewRow("groups", part, of_user | scored)
        liked = [place for place, label in enumerate(labels) if label]
        if liked:
            wanted = {
                "items": [texts[place] for place in liked],
                "item_indices": [indices[place] for place in liked],
            }
            yield ViewRow("next_items", part, of_user | wanted)
        told = [
            sentence(sentence(candidate) + " " + outcome)
            for candidate, outcome in zip(text.candidates, outcomes, strict=True)
        ]
        document = {"kind": "behaviour", "source": text.history, "target": " ".join(told)}
        yield ViewRow("documents", part, document)

    def _item_texts(self, request: Request, text: RequestText) -> list[str]:
        """What the catalogue says of each candidate; raises RejectedRow where one has no text."""
        try:
            found = [self._template.item(item) for item in request.candidates]
        except DataError as error:
            raise RejectedRow("no_text", str(error)) from None
        for place, own in enumerate(zip(text.candidates, found, strict=True)):
            if not all(told.strip() for told in own):
                raise RejectedRow("no_text", f"'candidates[{place}]' has no text")
        return found

    def _answers(self, row: Mapping[str, Any], number: int) -> list[float]:
        """The value of each of so many answers; raises RejectedRow."""
        answers = row.get(ANSWERS)
        if not isinstance(answers, list) or not answers:
            raise RejectedRow("missing_field", f"{ANSWERS!r} must be a list of one or more")
        if len(answers) != number:
            raise RejectedRow("bad_list", f"{len(answers)} {ANSWERS!r} for {number} 'candidates'")
        return [
            _value(answer, self._kind, f"{ANSWERS}[{place}]")
            for place, answer in enumerate(answers)
        ]

    def _part(self, row: Mapping[str, Any], user: str) -> int:
        if self._split.kind == "by_user":
            return int(splits.by_user([user], **self._split.arguments())[0])
        part = row.get(PART)
        if part not in PARTS:
            raise RejectedRow(
                "missing_field" if part is None else "wrong_type",
                f"{PART!r} must be {', '.join(map(repr, PARTS))}, not {part!r}",
            )
        return PART_NAMES[part]

    def _index(self, item: Item, text: str) -> int:
        """The item's number in the catalogue; one without an id is called what it says."""
        identifier = item.id or text
        self._items.setdefault(identifier, Item(identifier, item.attributes))
        return self._item_index.setdefault(identifier, len(self._item_index))

    def _finish(
        self, folder: Path, left_out: Path, rejected: Counter[str], first: Sequence[str]
    ) -> None:
        number = sum(rejected.values())
        if number:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in rejected.most_common())
            log.warning(
                "%d of %d requests are left out (%s); all of them are in %s, the first:\n%s",
                number,
                number + len(self._codes),
                kinds,
                left_out,
                "\n".join(first),
            )
        codes = np.asarray(self._codes, np.int8)
        splits.check_parts(codes, self._split.name, "requests")
        items = list(self._items.values())
        columns = zip(*self._events, strict=True) if self._events else [()] * 5
        types = (np.int64, np.int64, np.float64, np.float64, np.int8)
        arrays = [np.arange(len(self._events)), *map(np.asarray, columns, types)]
        events = dict(zip(EVENT_COLUMNS, arrays, strict=True))
        trained = events["item"][events["part"] == TRAIN]
        write_catalogue(
            folder / CATALOGUE,
            items,
            pa.table(
                {
                    name: pa.array([item.attributes.get(name) for item in items], ARROW_TYPES[kind])
                    for name, kind in self._spec.items.columns.items()
                }
            ),
            [self._template.item(item) for item in items],
            np.zeros(len(items), bool),
            np.bincount(trained, minlength=len(items)),
        )
        (folder / EVENTS).mkdir(exist_ok=True)
        pq.write_table(pa.table(events), folder / EVENTS / PREPARED_EVENTS)
        statistics_files.write_empty(folder / STATISTICS, self._statistics)
        counts = {"users": len(self._users), "items": len(items)}
        self.manifest["counts"] = counts | {"requests": splits.part_counts(codes)}
        self.manifest["rejected"] = dict(rejected)


def _check_unicode(row: Mapping[str, Any]) -> None:
    """Raises RejectedRow where a JSON row has text that no file of prepared data can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RejectedRow("invalid_utf8", "a text has half of a surrogate pair") from None


def _value(answer: Any, kind: str, path: str) -> float:
    """An answer as the value of an event; raises RejectedRow."""
    if kind == "bool" and isinstance(answer, str):
        answer = answer.rstrip(".")  # sets of instructions have sentences: "Yes."
    try:
        value = parse_value(answer, kind)
    except UnfitValue as error:
        raise RejectedRow(error.kind, f"{path!r} does not fit: {error.reason}") from None
    if value is None:
        raise RejectedRow("missing_field", f"{path!r} is missing")
    return float(value)


def _digest(history: Sequence[str]) -> str:
    """What a user without an id is called: rows of one history are of one user."""
    return hashlib.blake2b("\n".join(history).encode(), digest_size=8).hexdigest()


def _texts_spec(name: str) -> DatasetSpec:
    """Of users and items that are plain texts."""
    return DatasetSpec.from_dict(
        {
            "name": name,
            "users": {"id": "user_id", "columns": {TEXT: "string"}},
            "items": {"id": "item_id", "columns": {TEXT: "string"}},
            "events": {"user": "user_id", "item": "item_id", "time": "time", "value": "answer"},
            "label": {"at_least": 1},
            "template": {
                "profile": "[{text}]",
                "event": "{text}",
                "candidate": "{text}",
                "item": "{text}",
                "outcomes": [{"at_least": 1, "text": "yes"}, {"text": "no"}],
            },
        }
    )
