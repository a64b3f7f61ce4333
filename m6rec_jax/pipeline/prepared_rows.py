"""Reads prepared data as numpy, for what needs no tokens: baselines, seen items, reports."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from m6rec_jax.data.prepared import Prepared
from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.pipeline.source import PreparedSource, steady_options

PARTS = ("train", "validation", "test")
_ACTED = ["row", "time", "user", "item"]
# Of a history, for `past_items`.
_MOST_PAST = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Interactions:
    """Events of a part, in no particular order.

    Attributes:
      users, items: int64 `[n]`, indices into the users and the items table.
      labels: int64 `[n]`, 0 or 1.
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.users)


def read_rows(
    prepared: Prepared, view: str, part: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a view (of `data.views.VIEWS`) as str, int, float, lists of str, numpy arrays.

    Raises:
      DataError: the view or the part is not prepared, or has no such column.
    """
    prepared.num_rows(view)
    source = PreparedSource(functools.partial(prepared.tfds_folder, view))
    dataset = source.get_dataset(part, shuffle=False, columns=columns)
    for row in tfds.as_numpy(dataset.with_options(steady_options())):
        yield {name: _python(value) for name, value in row.items()}


def interactions(prepared: Prepared, part: str) -> Interactions:
    """All events of a part, from the view 'groups' (sampled negatives included)."""
    users, items, labels = [], [], []
    for row in read_rows(prepared, "groups", part, ("user_index", "item_indices", "labels")):
        users.append(np.full(len(row["labels"]), row["user_index"], np.int64))
        items.append(row["item_indices"])
        labels.append(row["labels"])
    return Interactions(np.concatenate(users), np.concatenate(items), np.concatenate(labels))


def seen_items(prepared: Prepared, part: str) -> dict[int, np.ndarray]:
    """Items of `past_events`, by user, each once: whole-catalogue ranking leaves them out.

    None before the training part, whose rows want all of its events.
    """
    if part == "train":
        return {}
    users, items = np.unique(np.stack(past_events(prepared, part)), axis=1)
    own, starts = np.unique(users, return_index=True)
    # Of nothing `split` makes one part.
    return dict(zip(own.tolist(), np.split(items, starts[1:]), strict=False))


def past_events(prepared: Prepared, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of the events that a part's rows see, indices in both tables `[n]`.

    Of the training part itself these are all of its events. Of another part's own events there are
    none, though where users are split its rows see earlier ones: here they would tell what is
    wanted.

    Args:
      prepared: a split.
      part: of it; before an update come the training part and earlier updates.
    """
    updates = prepared.updates
    earlier = updates[: updates.index(part)] if part in updates else ()
    files = [prepared.events_file(f"{name}.parquet") for name in ("prepared", *earlier)]
    table = pa.concat_tables(pq.read_table(file, columns=["user", "item"]) for file in files)
    users, items = ([table[name].to_numpy()] for name in ("user", "item"))
    seen = prepared.manifest["visible"]["history"].get(part, ())
    views = prepared.manifest["views"]
    view = next((view for view in ("next_items", "groups") if view in views), None)
    if "validation" in seen and part != "validation" and view is not None:
        labelled = "label" in prepared.manifest["dataset_spec"]
        columns = ("user_index", "item_indices", *(("labels",) if view == "groups" else ()))
        for row in read_rows(prepared, view, "validation", columns):
            own = row["item_indices"]
            if view == "groups" and not labelled:  # sampled negatives are no events
                own = own[row["labels"] == 1]
            users.append(np.full(len(own), row["user_index"]))
            items.append(own)
    return np.concatenate(users), np.concatenate(items)


def past_items(prepared: Prepared, part: str) -> list[np.ndarray]:
    """The items before each row of the view 'next_items' of a part, oldest first `[rows][n]`.

    Training events and those of earlier updates come as they were counted, what follows them in the
    order of its rows' times. Events of parts that the split hides from these rows are left out. Of
    very long histories the last thousand are kept.
    """
    parts = PARTS if part in PARTS else ("train", *prepared.updates)
    visible = prepared.manifest["visible"]["history"].get(part, parts)  # of updates all before
    earlier, of_users = parts[: parts.index(part)], dict[int, list[np.ndarray]]()
    lengths: collections.Counter[int] = collections.Counter()

    def add(user: int, items: np.ndarray) -> None:
        of_users.setdefault(user, []).append(items)
        lengths[user] += len(items)

    for own in earlier:
        if own == "validation":
            for _, user, items in _in_time(prepared, own) if own in visible else ():
                add(user, items)
            continue
        name = "prepared" if own == "train" else own
        table = pq.read_table(prepared.events_file(f"{name}.parquet"), columns=_ACTED)
        row, time, of_user, item = (table[column].to_numpy() for column in _ACTED)
        order = np.lexsort((row, time, of_user))
        users, items = of_user[order], item[order]
        ends = np.flatnonzero(np.diff(users, append=-1)) + 1
        for start, end in zip([0, *ends.tolist()], ends.tolist(), strict=False):
            add(int(users[start]), items[start:end])
    rows = _in_time(prepared, part)
    before = [(0, 0)] * len(rows)
    for row, user, items in rows:
        before[row] = user, lengths[user]
        if part in visible:
            add(user, items)
    # Rows of a user share its items: they are parts of one array.
    whole = {user: np.concatenate(items) for user, items in of_users.items()}
    nothing = np.zeros(0, np.int64)
    return [
        whole.get(user, nothing)[max(number - _MOST_PAST, 0) : number] for user, number in before
    ]


def _in_time(prepared: Prepared, part: str) -> list[tuple[int, int, np.ndarray]]:
    """Number, user and items of the rows of 'next_items', sorted by time."""
    columns = ("user_index", "time", "item_indices")
    rows = list(enumerate(read_rows(prepared, "next_items", part, columns)))
    rows.sort(key=lambda row: row[1]["time"])
    return [(n, int(row["user_index"]), row["item_indices"]) for n, row in rows]


def user_names(prepared: Prepared, view: str, part: str) -> dict[int, str]:
    """Ids of the users of a part, by index into the users table."""
    rows = read_rows(prepared, view, part, ("user_index", "user_id"))
    return {int(row["user_index"]): row["user_id"] for row in rows}


class TaskPart:
    """The `jobs.job.TaskData` of a registered task and one part of its data."""

    def __init__(self, task: TaskInfo, part: str) -> None:
        self.name, self.view, self.part = task.name, task.view, part
        self.positive_classes = task.positive_classes
        self.prepared = task.prepared

    def rows(
        self, columns: Sequence[str] | None = None, *, view: str = "", part: str = ""
    ) -> Iterator[dict[str, Any]]:
        return read_rows(self.prepared(), view or self.view, part or self.part, columns)

    def user_names(self) -> Mapping[int, str]:
        return user_names(self.prepared(), self.view, self.part)

    def seen_items(self) -> Mapping[int, np.ndarray]:
        return seen_items(self.prepared(), self.part)

    @property
    def repeats_count(self) -> bool:
        return self.prepared().repeats_count

    def past_events(self) -> tuple[np.ndarray, np.ndarray]:
        return past_events(self.prepared(), self.part)

    def past_items(self) -> list[np.ndarray]:
        return past_items(self.prepared(), self.part)

    def interactions(self, part: str) -> Interactions:
        return interactions(self.prepared(), part)


def _python(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        return [v.decode("utf-8") for v in value] if value.dtype == object else value
    return value.item()
