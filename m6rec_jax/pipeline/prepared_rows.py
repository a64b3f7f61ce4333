"""Reads prepared data as numpy, for what needs no tokens: baselines, what users had, reports."""

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
from m6rec_jax.pipeline.source import PreparedSource, python_value, steady_options

_ACTED = ("user_index", "time", "item_indices")


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
        yield {name: python_value(value) for name, value in row.items()}


def interactions(prepared: Prepared, part: str) -> Interactions:
    """All events of a part, from the view 'groups' (sampled negatives included)."""
    users, items, labels = [], [], []
    for row in read_rows(prepared, "groups", part, ("user_index", "item_indices", "labels")):
        users.append(np.full(len(row["labels"]), row["user_index"], np.int64))
        items.append(row["item_indices"])
        labels.append(row["labels"])
    return Interactions(np.concatenate(users), np.concatenate(items), np.concatenate(labels))


def past_events(prepared: Prepared, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of the events that a part's rows see, indices in both tables `[n]`.

    Of the training part itself these are all of its events. Of another part's own events there are
    none, though where users are split its rows see earlier ones: here they would tell what is
    wanted. Where a column names the parts, a user's events after its first row of the part are left
    out, though later rows see some of them: they are the future of the first one.

    Args:
      prepared: a split.
      part: of it; before an update come the training part and earlier updates.
    """
    users, items, times = _visible_events(prepared, part)
    view = _view_of_events(prepared, part)
    if part != "train" and view is not None:
        first = np.full(prepared.manifest["counts"]["users"], np.inf)
        for row in read_rows(prepared, view, part, ("user_index", "time")):
            first[row["user_index"]] = min(first[row["user_index"]], row["time"])
        there = times <= first[users]
        users, items = users[there], items[there]
    return users, items


def past_items(prepared: Prepared, part: str) -> list[np.ndarray]:
    """The items before each row of the view 'next_items' of a part, oldest first `[rows][n]`.

    Events of the row's moment are in, since the order within a moment is not kept; events of parts
    that the split hides from these rows are not.
    """
    of_updates = ("train", *prepared.updates)  # which see all before
    visible = prepared.manifest["visible"]["history"].get(part, of_updates)
    users, items, times = _visible_events(prepared, part)
    if part == "train":  # whose rows these events are
        users, items, times = users[:0], items[:0], times[:0]
    order = np.lexsort((times, users))  # a moment's events stay as they were counted
    # Of the type that users are looked up by: a search does not copy them.
    users, items, times = users[order].astype(np.int64), items[order], times[order]
    of_part: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    lengths: collections.Counter[int] = collections.Counter()
    rows = list(enumerate(read_rows(prepared, "next_items", part, _ACTED)))
    before = [(0, 0)] * len(rows)
    for number, row in sorted(rows, key=lambda row: row[1]["time"]):
        user = row["user_index"]
        earlier = times[slice(*np.searchsorted(users, [user, user + 1]))]
        before[number] = user, np.searchsorted(earlier, row["time"], side="right") + lengths[user]
        # Of such parts users have no later event of another one.
        if part in visible:
            of_part[user].append(row["item_indices"])
            lengths[user] += len(row["item_indices"])
    # Rows of a user share its items: they are parts of one array.
    whole = {
        user: np.concatenate(
            [items[slice(*np.searchsorted(users, [user, user + 1]))], *of_part[user]]
        )
        for user in {user for user, _ in before}
    }
    return [whole[user][:number] for user, number in before]


def _visible_events(prepared: Prepared, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and times of the events of earlier parts that a part's rows may see `[n]`.

    Training events, those of earlier updates, and for test rows those of validation rows.
    """
    updates = prepared.updates
    earlier = updates[: updates.index(part)] if part in updates else ()
    files = [prepared.events_file(f"{name}.parquet") for name in ("prepared", *earlier)]
    names = ["user", "item", "time"]
    table = pa.concat_tables(pq.read_table(file, columns=names) for file in files)
    users, items, times = ([table[name].to_numpy()] for name in names)
    seen = prepared.manifest["visible"]["history"].get(part, ())
    view = _view_of_events(prepared, "validation")
    if "validation" in seen and part != "validation" and view is not None:
        labelled = "label" in prepared.manifest["dataset_spec"]
        columns = (*_ACTED, *(("labels",) if view == "groups" else ()))
        for row in read_rows(prepared, view, "validation", columns):
            own = row["item_indices"]
            if view == "groups" and not labelled:  # sampled negatives are no events
                own = own[row["labels"] == 1]
            users.append(np.full(len(own), row["user_index"]))
            items.append(own)
            times.append(np.full(len(own), row["time"]))
    return np.concatenate(users), np.concatenate(items), np.concatenate(times)


def _view_of_events(prepared: Prepared, part: str) -> str | None:
    """A view whose rows hold the events of a part, if there is one."""
    views = prepared.manifest["views"]
    known = (v for v in ("next_items", "groups") if v in views and part in prepared.num_rows(v))
    return next(known, None)


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
        self, columns: Sequence[str] | None = None, *, part: str = ""
    ) -> Iterator[dict[str, Any]]:
        return read_rows(self.prepared(), self.view, part or self.part, columns)

    def user_names(self) -> Mapping[int, str]:
        return user_names(self.prepared(), self.view, self.part)

    @property
    def repeats_count(self) -> bool:
        return self.prepared().repeats_count

    def past_events(self) -> tuple[np.ndarray, np.ndarray]:
        return past_events(self.prepared(), self.part)

    def past_items(self) -> list[np.ndarray]:
        return past_items(self.prepared(), self.part)

    def interactions(self, part: str) -> Interactions:
        return interactions(self.prepared(), part)
