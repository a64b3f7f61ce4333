"""The position of the training data as part of a checkpoint.

The data of a run is cut into shards, a number fixed at the first launch. Each shard has an iterator
with a state of its own; each process owns several shards and saves their states. Resuming on
another number of processes hands every shard, with its state, to exactly one process.

A state is expensive (tf.data writes its shuffle buffer), so it is taken only now and then: a
position is such a snapshot and the number of batches that were *consumed* after it. Batches that
were prefetched and never trained on do not count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from m6rec_jax.errors import CheckpointError, DataError

Batch = dict[str, np.ndarray]
POSITION_KEY = "position"
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)")


class ResumableBatches(Protocol):
    """What the loop needs of `pipeline.BatchIterator` (or of any other source of batches)."""

    def __next__(self) -> Batch:
        """This process's rows of the next global batch, `{feature: [rows, length]}`."""

    def state_dict(self) -> Mapping[str, bytes]:
        """States after the last batch returned: `shard-00003-of-00008` → bytes for each shard of
        this process, plus names of their own that are equal in all processes."""

    def load_state_dict(self, states: Mapping[str, bytes], /) -> None:
        """Continues from states that hold at least this process's shards."""


@dataclass(frozen=True, slots=True)
class DataPosition:
    """`skip` batches after the snapshot `states`."""

    states: Mapping[str, bytes]
    skip: int

    def to_item(self, process_index: int) -> dict[str, bytes]:
        """What this process writes: its shards; process 0 also what is common to all."""
        if process_index:
            return {name: state for name, state in self.states.items() if _SHARD.fullmatch(name)}
        return {**self.states, POSITION_KEY: json.dumps({"skip": self.skip}).encode()}

    @property
    def num_shards(self) -> int:
        """Of the whole run; 1 for a source that does not name shards."""
        return max(
            (int(match[2]) for match in map(_SHARD.fullmatch, self.states) if match), default=1
        )


def position_from_item(item: Mapping[str, bytes], num_shards: int | None) -> DataPosition:
    """Reads the position that all processes of a run wrote together.

    Args:
      item: name → bytes.
      num_shards: as the manifest has it.

    Raises:
      CheckpointError: a shard's state is missing, or the position.
    """
    states = dict(item)
    try:
        position = DataPosition(states, int(json.loads(states.pop(POSITION_KEY))["skip"]))
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint's data item has no readable '{POSITION_KEY}': {error}"
        ) from error
    saved = {int(match[1]) for match in map(_SHARD.fullmatch, states) if match}
    if saved and (missing := sorted(set(range(num_shards or 0)) - saved)):
        raise CheckpointError(
            f"the checkpoint has states of data shards {sorted(saved)}; missing: {missing}"
        )
    return position


def resume(batches: ResumableBatches, position: DataPosition) -> None:
    """Moves fresh batches to a saved position.

    Raises:
      CheckpointError: another number of shards than at the first launch, or states that do not fit.
    """
    present, saved = DataPosition(batches.state_dict(), 0).num_shards, position.num_shards
    if present != saved:
        raise CheckpointError(
            f"this run was started with {saved} data shards and is now configured with {present}. "
            "The number is fixed at the first launch (BatchIterator.num_shards): reading the saved "
            f"positions as {present} shards would skip and repeat rows. Set it back to {saved}; it "
            "may be spread over any number of processes that divides it"
        )
    batches.load_state_dict(position.states)
    for _ in range(position.skip):
        next_batch(batches)


def next_batch(batches: ResumableBatches) -> Batch:
    """The next batch.

    Raises:
      DataError: the source has ended; training data must be endless.
    """
    try:
        return next(batches)
    except StopIteration:
        raise DataError(
            "the training batches ended before TRAIN_STEPS; training data must repeat"
        ) from None
