"""What a split made of a data set: the part of every event, one byte each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from m6rec_jax.data import splits
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.splits import Split


@dataclasses.dataclass(frozen=True)
class UserEvents:
    """All events of one user in the user's order (time, then position in the file), each `[n]`."""

    user: int
    rows: np.ndarray
    items: np.ndarray
    times: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What a split made of a data set.

    Attributes:
      split: the split.
      codes: part code of each row of the events table `[rows]` int8.
      held_out: which items are held out `[items]` bool; all False but for 'held_out_items'.
      num_cold_users: users with test events and no training events.
    """

    split: Split
    codes: np.ndarray
    held_out: np.ndarray
    num_cold_users: int

    def counts(self) -> dict[str, int]:
        """Rows of each part."""
        return splits.part_counts(self.codes)


def users_in_order(dataset: Dataset, **sorting: Any) -> Iterator[UserEvents]:
    """Streams the users who have events, in the order of the users table."""
    names = ("user_index", "row", "item_index", "time", "value")
    held: dict[str, np.ndarray] = {name: np.zeros(0) for name in names}
    for batch in dataset.events_sorted("user", with_ids=False, **sorting):
        columns = {
            name: np.concatenate([held[name], batch.column(name).to_numpy(zero_copy_only=False)])
            for name in names
        }
        users = columns["user_index"]
        starts = [0, *(np.flatnonzero(users[1:] != users[:-1]) + 1).tolist()]
        for start, end in itertools.pairwise(starts):
            yield _user_events(columns, start, end)
        # The next batch may hold more of the last user's events.
        held = {name: column[starts[-1] :] for name, column in columns.items()}
    if len(held["row"]):
        yield _user_events(held, 0, len(held["row"]))


def _user_events(columns: Mapping[str, np.ndarray], start: int, end: int) -> UserEvents:
    return UserEvents(
        user=int(columns["user_index"][start]),
        rows=columns["row"][start:end].astype(np.int64),
        items=columns["item_index"][start:end].astype(np.int64),
        times=columns["time"][start:end].astype(np.float64),
        values=columns["value"][start:end].astype(np.float64),
    )
