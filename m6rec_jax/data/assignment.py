"""Assigns every event of a data set to a part, streaming: one byte per event stays in memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from m6rec_jax.data import splits
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.splits import CONTEXT, TEST, TRAIN, Split
from m6rec_jax.errors import DataError


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


def assign(dataset: Dataset, split: Split, **sorting: Any) -> Assignment:
    """Gives every event of `dataset` its part.

    Args:
      dataset: an open data set.
      split: which split.
      **sorting: `memory_rows`, `scratch_dir` of `sorting.sorted_batches`.

    Raises:
      DataError: a part that is empty, options the split cannot fulfil, or an event that is there
        twice.
    """
    declared = dataset.spec.splits
    base = split.base(declared)
    if (base or split).kind == "by_group":
        raise DataError(
            f"split {split.name!r} is one of texts (a folder with corpus.json); "
            f"{dataset.directory} holds users, items and events"
        )
    codes, cold = _assign_plain(dataset, base or split, **sorting)
    held_out = np.zeros(dataset.items.num_rows, bool)
    if split.kind == "held_out_items":
        ids = [item.id for item in dataset.item_records]
        held_out = splits.is_held_out(ids, **split.arguments())
        rows_held_out = np.zeros(len(codes), bool)
        for batch in dataset.iter_events(with_ids=False):
            items = batch.column("item_index").to_numpy()
            rows_held_out[batch.column("row").to_numpy()] = held_out[items]
        codes = splits.without_held_out(codes, rows_held_out)
    elif split.kind == "few_shot":
        codes = splits.few_shot(codes, **split.arguments())
    splits.check_parts(codes, split.name)
    return Assignment(split, codes, held_out, cold)


def train_counts(dataset: Dataset, codes: np.ndarray) -> np.ndarray:
    """Training events of each item `[items]` int64, under part codes `[rows]`."""
    counts = np.zeros(dataset.items.num_rows, np.int64)
    for batch in dataset.iter_events(with_ids=False):
        training = codes[batch.column("row").to_numpy()] == TRAIN
        np.add.at(counts, batch.column("item_index").to_numpy()[training], 1)
    return counts


def _assign_plain(dataset: Dataset, split: Split, **sorting: Any) -> tuple[np.ndarray, int]:
    """Codes `[rows]` and the number of cold users, for a split that starts from no other."""
    num_rows = sum(batch.num_rows for batch in dataset.iter_events(with_ids=False))
    codes = np.full(num_rows, splits.EXCLUDED, np.int8)
    function = splits.KINDS[split.kind]
    arguments = split.arguments()
    if split.kind == "global_temporal":
        times = np.empty(num_rows)
        for batch in dataset.iter_events(with_ids=False):
            times[batch.column("row").to_numpy()] = batch.column("time").to_numpy()
        codes = function(times, **arguments)
    num_cold = 0
    for user in users_in_order(dataset, **sorting):
        _check_repeated(dataset, user)
        if split.kind != "global_temporal":
            codes[user.rows] = function(np.zeros(len(user.rows)), user.times, **arguments)
        parts = codes[user.rows]
        num_cold += bool((parts == TEST).any() and not np.isin(parts, (TRAIN, CONTEXT)).any())
    return codes, num_cold


def _check_repeated(dataset: Dataset, user: UserEvents) -> None:
    """Raises DataError where a user has an event twice: it would be its own past, or its own test.

    Here, since the events of one user are together, and memory need not hold those of all.
    """
    order = np.lexsort((user.rows, user.values, user.items, user.times))
    # A user's values are numbers or, in data without values, all missing.
    keys = np.stack([user.times, user.items, np.nan_to_num(user.values)])[:, order]
    (same,) = np.nonzero((keys[:, 1:] == keys[:, :-1]).all(axis=0))
    if len(same):
        first, second = user.rows[order[same[0] : same[0] + 2]]
        raise DataError(
            f"{dataset.directory}: rows {first} and {second} of the events are the same event "
            f"(user {dataset.user_records[user.user].id!r}, item "
            f"{dataset.item_records[user.items[order[same[0]]]].id!r}, time and value); "
            "`m6rec data check --quarantine` sets repeated ones aside"
        )
