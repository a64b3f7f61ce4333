"""Batches read and put on the devices ahead of the step, in a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Self

from m6rec_jax.training.data_state import Batch, DataPosition, ResumableBatches, next_batch

_WAIT = 0.1  # seconds between looks at the stop flag


class InputFeed:
    """Reads `batches` ahead while keeping the position of the batch consumed last.

    Args:
      batches: at the position of `first_batch`.
      place: puts a batch on the devices (called in the feed's thread).
      first_batch: number of batches that the run has consumed before.
      snapshot_period: a state of the data is taken before every batch whose number is a multiple of
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
        self._batches, self._place, self._period = batches, place, snapshot_period
        self._consumed = first_batch
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(depth, 1))
        self._stop = threading.Event()
        self._snapshot_taken = threading.Condition()
        self._snapshots: dict[int, dict[str, bytes]] = {}
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="m6rec-input", daemon=True)
        self._thread.start()

    def next(self) -> Any:
        """The next batch, as `place` returned it.

        Raises:
          Whatever reading it raised.
        """
        item = self._queue.get()
        if item is None:
            assert self._failure is not None  # it was kept before
            raise self._failure
        self._consumed += 1
        return item

    def position(self) -> DataPosition:
        """The position after the batch that `next` returned last."""
        with self._snapshot_taken:
            if self._consumed % self._period == 0:
                # The reader takes this snapshot as soon as it has read the batch before it.
                self._snapshot_taken.wait_for(
                    lambda: self._consumed in self._snapshots or self._failure is not None
                )
            self._snapshot_taken.wait_for(lambda: self._snapshots or self._failure is not None)
            usable = [index for index in self._snapshots if index <= self._consumed]
            if not usable:
                assert self._failure is not None
                raise self._failure
            newest = max(usable)
            for index in usable:
                if index != newest:
                    del self._snapshots[index]
            return DataPosition(self._snapshots[newest], self._consumed - newest)

    def close(self) -> None:
        """Stops reading."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        index = first = self._consumed
        try:
            while not self._stop.is_set():
                if index == first or index % self._period == 0:
                    states = dict(self._batches.state_dict())
                    with self._snapshot_taken:
                        self._snapshots[index] = states
                        self._snapshot_taken.notify_all()
                self._put(self._place(next_batch(self._batches)))
                index += 1
        except BaseException as error:  # handed to the thread that trains
            with self._snapshot_taken:
                self._failure = error
                self._snapshot_taken.notify_all()
            self._put(None)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_WAIT)
                return
            except queue.Full:
                continue
