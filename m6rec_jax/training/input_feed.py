"""Batches read and put on the devices ahead of the step, in a thread of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from m6rec_jax.training.data_state import Batch, DataPosition, ResumableBatches, next_batch


class InputFeed:
    """Reads `batches` ahead, from the first call of `next` on, and keeps the position of the last
    one consumed.

    Args:
      batches: at the position of `first_batch`.
      place: puts a batch on the devices (called in the feed's thread).
      first_batch: number of batches that the run has consumed before.
      snapshot_period: a state of the data is taken after every batch whose number is a multiple of
        this; usually the period of checkpoints, so that nothing has to be skipped on resuming.
      depth: batches held ready.
    """

    def __init__(
        self,
        batches: ResumableBatches,
        place: Callable[[Batch], Any],
        *,
        first_batch: int = 0,
        snapshot_period: int = 1000,
        depth: int = 2,
    ) -> None:
        self._batches, self._place = batches, place
        self._period, self._depth = snapshot_period, depth
        self._read = self._consumed = self._snapshot_at = first_batch
        self._snapshot = dict(batches.state_dict())
        self._thread = ThreadPoolExecutor(1, "m6rec-input")
        self._ahead: deque[Future[Any]] = deque()

    def next(self) -> Any:
        """The next batch, as `place` returned it; raises whatever reading it raised."""
        while len(self._ahead) <= self._depth:
            self._ahead.append(self._thread.submit(self._next))
        placed, snapshot = self._ahead.popleft().result()
        self._consumed += 1
        if snapshot is not None:
            self._snapshot, self._snapshot_at = snapshot, self._consumed
        return placed

    def position(self) -> DataPosition:
        """The position after the batch that `next` returned last."""
        return DataPosition(self._snapshot, self._consumed - self._snapshot_at)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _next(self) -> tuple[Any, dict[str, bytes] | None]:
        """A batch on the devices, and the state of the data after it, where one is due."""
        batch = next_batch(self._batches)
        self._read += 1
        due = self._read % self._period == 0
        return self._place(batch), dict(self._batches.state_dict()) if due else None
