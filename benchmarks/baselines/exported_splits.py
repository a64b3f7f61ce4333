"""Reads what `export_splits` wrote: rows and split assignments, without m6rec_jax.data.

The folder has three Parquet files; every row number below is an index into them:

    users.parquet   user_id, then the attribute columns
    items.parquet   item_id, then the attribute columns (lists stay lists)
    events.parquet  user, item (indices), time (unix seconds), value (stars),
                    per_user_temporal and leave_one_out ('train', 'validation' or 'test')

Events are ordered by user, time and the row's place in the file the data set came in: most rows of
MovieLens share user and timestamp with another, so the tie-break is part of the split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from m6rec_jax.errors import DataError

PARTS = ("train", "validation", "test")
LIKED = 4.0


@dataclass(frozen=True)
class ExportedSplits:
    """The exported tables.

    Attributes:
      users, items: attribute tables; row number = index.
      user, item: int64 [events], indices.
      time: float64 [events]. value: float64 [events].
      label: int64 [events], 1 where the user gave 4 stars or more.
      per_user_temporal, leave_one_out: [events], one of `PARTS`.
    """

    users: pa.Table
    items: pa.Table
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    value: np.ndarray
    label: np.ndarray
    per_user_temporal: np.ndarray
    leave_one_out: np.ndarray

    def rows(self, split: str, part: str) -> np.ndarray:
        """Indices of the events in `part` of `split`, in the table's order."""
        return np.flatnonzero(getattr(self, split) == part)


def read_exported(folder: Path) -> ExportedSplits:
    """Reads the folder that `python -m benchmarks.baselines.export_splits` wrote.

    Raises:
      DataError: the folder is not there, or its events are out of order.
    """
    events_file = folder / "events.parquet"
    if not events_file.exists():
        raise DataError(
            f"{events_file} does not exist; write it with the project's own environment: "
            "python -m benchmarks.baselines.export_splits"
        )
    events = pq.read_table(events_file)
    column = {name: events.column(name).to_numpy() for name in events.column_names}
    order = np.lexsort((column["time"], column["user"]))
    if not np.array_equal(order, np.arange(len(order))):
        raise DataError(f"{events_file}: events are not ordered by user and time; export again")
    return ExportedSplits(
        users=pq.read_table(folder / "users.parquet"),
        items=pq.read_table(folder / "items.parquet"),
        user=column["user"].astype(np.int64),
        item=column["item"].astype(np.int64),
        time=column["time"].astype(np.float64),
        value=column["value"].astype(np.float64),
        label=(column["value"] >= LIKED).astype(np.int64),
        per_user_temporal=column["per_user_temporal"].astype(str),
        leave_one_out=column["leave_one_out"].astype(str),
    )
