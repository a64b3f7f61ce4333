"""What a split made of a data set: the part of every event, one byte each."""

from __future__ import annotations

import dataclasses

import numpy as np

from m6rec_jax.data import splits
from m6rec_jax.data.splits import Split


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
