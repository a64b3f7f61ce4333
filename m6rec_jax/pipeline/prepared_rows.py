"""Reads prepared data as numpy, for what needs no tokens: baselines, what users had, reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from m6rec_jax.data.splitting.splits import PART_NAMES, STATISTICS_PARTS
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.data.store.tfrecords import read_shards
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.registration import TaskInfo


class Interactions(NamedTuple):
    """Events of a part, in no particular order: indices in both tables, and 0 or 1; int64 `[n]`."""

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray


def read_rows(
    prepared: Prepared, view: str, part: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a view, as `store.tfrecords.read_shards` gives them; raises DataError where view or
    part is not prepared.
    """
    if part not in (rows := prepared.num_rows(view)):
        raise DataError(
            f"the view {view!r} of {prepared.folder} has no split '{part}', only {', '.join(rows)}"
        )
    return read_shards(prepared.tfds_folder(view), view, part, columns)


def interactions(prepared: Prepared, part: str) -> Interactions:
    """All events of a part, from the view 'groups' (sampled negatives included)."""
    users, items, labels = [], [], []
    for row in read_rows(prepared, "groups", part, ("user_index", "item_indices", "labels")):
        users.append(np.full(len(row["labels"]), row["user_index"], np.int64))
        items.append(row["item_indices"])
        labels.append(row["labels"])
    return Interactions(np.concatenate(users), np.concatenate(items), np.concatenate(labels))


class _Events(NamedTuple):
    """Events by user, then in the user's order `[n]`: whether they are `of_part`, the split itself,
    and `visible`, in histories of the split's rows or in statistics.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    of_part: np.ndarray
    visible: np.ndarray


def _events(prepared: Prepared, part: str) -> _Events:
    names = prepared.updates
    updates = names[: names.index(part) + 1] if part in names else ()
    table = prepared.events(updates)
    users, items, times, codes, numbers = (
        table[name].to_numpy() for name in ("user", "item", "time", "part", "update")
    )
    # Rows of an update see what training rows see.
    visible = prepared.manifest.visible["train" if updates else part]
    of_part = numbers == len(updates) if updates else codes == PART_NAMES[part]
    is_visible = np.isin(codes, [*STATISTICS_PARTS, *(PART_NAMES[name] for name in visible)])
    return _Events(users.astype(np.int64), items, times, of_part, is_visible)


def past_events(prepared: Prepared, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of the events that a split's rows see, indices in both tables `[n]`.

    Of the training split these are all of its events, and of updates before. Of another split's own
    events there are none: they would give away what is wanted. Where a column names the splits, a
    user's events after its first one of the split are left out: they are its future.
    """
    events = _events(prepared, part)
    there = events.visible
    if part != "train":
        first = np.full(prepared.manifest.counts["users"], np.inf)
        np.minimum.at(first, events.users[events.of_part], events.times[events.of_part])
        there = there & ~events.of_part & (events.times <= first[events.users])
    return events.users[there], events.items[there]


def past_items(prepared: Prepared, part: str) -> list[np.ndarray]:
    """The items before each row of the view 'next_items' of a split, oldest first `[rows][n]`.

    Events of splits that are hidden from these rows are not among them.
    """
    events = _events(prepared, part)
    seen = events.items[events.visible]
    before = np.concatenate([[0], np.cumsum(events.visible)])
    places: dict[tuple[int, float, int], int] = {}
    for place in np.flatnonzero(events.of_part).tolist():
        key = events.users[place], events.times[place], events.items[place]
        places.setdefault(key, place)
    before_rows = []
    columns = ("user_index", "time", "item_indices")
    for row in read_rows(prepared, "next_items", part, columns):
        place = places[row["user_index"], row["time"], int(row["item_indices"][0])]
        start = np.searchsorted(events.users, row["user_index"])
        before_rows.append(seen[before[start] : before[place]])
    return before_rows


class TaskPart:
    """The `jobs.job.TaskData` of a registered task and one part of its data."""

    def __init__(self, task: TaskInfo, part: str) -> None:
        self.name, self.view, self.part = task.name, task.view, part
        self.positive_classes = task.positive_classes
        self.prepared = task.prepared

    def rows(
        self, columns: Sequence[str] | None = None, *, part: str = ""
    ) -> Iterator[dict[str, Any]]:
        return read_rows(self.prepared(), self.view, part or self.part, columns)

    def user_names(self) -> Mapping[int, str]:
        return {row["user_index"]: row["user_id"] for row in self.rows(("user_index", "user_id"))}

    @property
    def repeats_count(self) -> bool:
        return self.prepared().repeats_count

    def past_events(self) -> tuple[np.ndarray, np.ndarray]:
        return past_events(self.prepared(), self.part)

    def past_items(self) -> list[np.ndarray]:
        return past_items(self.prepared(), self.part)

    def interactions(self, part: str) -> Interactions:
        return interactions(self.prepared(), part)
