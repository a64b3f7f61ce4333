"""Positions count what was consumed, and every shard goes to exactly one process."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from m6rec_jax.errors import CheckpointError, DataError
from m6rec_jax.training.data_state import DataPosition, position_from_item, resume
from m6rec_jax.training.input_feed import InputFeed
from tests.training.toy_run import ToyBatches


def make(process: int = 0, processes: int = 1, num_shards: int = 4) -> ToyBatches:
    return ToyBatches(
        "toy", {}, 8, process_index=process, process_count=processes, num_shards=num_shards
    )


def consumed_by(source: ToyBatches, count: int, **settings: Any) -> DataPosition:
    with InputFeed(source, lambda batch: batch, **settings) as feed:
        for _ in range(count):
            feed.next()
        return feed.position()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_position_is_the_consumed_one(count: int) -> None:
    reference = make()
    expected = [next(reference) for _ in range(count + 3)]
    source = make()
    position = consumed_by(source, count, snapshot_period=4, depth=3)
    assert position.skip == count % 4, "a snapshot lies at every multiple of the period"
    fresh = make()
    resume(fresh, position)
    for batch in expected[count:]:
        again = next(fresh)
        for name in batch:
            np.testing.assert_array_equal(batch[name], again[name])


def test_snapshots_are_taken_seldom() -> None:
    """A state of a real pipeline holds its shuffle buffer; one per step would be ruinous."""
    source = make()
    consumed_by(source, 40, snapshot_period=20, depth=2)
    assert source.num_state_dicts <= 4


def test_batches_are_read_ahead() -> None:
    source = make()
    with InputFeed(source, lambda batch: batch, depth=2) as feed:
        feed.next()
        deadline = time.monotonic() + 5
        while source.num_batches < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert source.num_batches == 3, "one consumed, two ready"


def test_resuming_elsewhere_in_the_run_keeps_the_period() -> None:
    source = make()
    for _ in range(6):
        next(source)
    position = consumed_by(source, 3, first_batch=6, snapshot_period=4)
    assert position.skip == 1  # 9 consumed, snapshot at 8


def test_errors_of_the_reader_reach_the_trainer() -> None:
    class Broken(ToyBatches):
        def __next__(self) -> dict[str, np.ndarray]:
            if self.num_batches == 2:
                raise DataError("row 17 is bad")
            return super().__next__()

    with InputFeed(Broken("toy", {}, 8), lambda batch: batch) as feed:
        feed.next()
        feed.next()
        with pytest.raises(DataError, match="row 17"):
            feed.next()
    assert not [t for t in threading.enumerate() if t.name.startswith("m6rec-input")]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2), (1, 4)])
def test_other_number_of_processes(before: int, after: int) -> None:
    """Each process saves its shards; together they are one item, read by any number of others."""
    item: dict[str, bytes] = {}
    for process in range(before):
        position = consumed_by(make(process, before), 5, snapshot_period=4)
        written = position.to_item(process)
        assert not set(item) & set(written), "no name is written by two processes"
        item |= written
    reference = make()
    expected = [next(reference) for _ in range(8)][5:]
    resumed = [make(process, after) for process in range(after)]
    owned = [shard for source in resumed for shard in source.shards]
    assert sorted(owned) == [0, 1, 2, 3]
    for source in resumed:
        resume(source, position_from_item(item, 4))
    for batch in expected:
        parts = [next(source) for source in resumed]
        for name in batch:
            together = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(together, batch[name])


def test_a_missing_shard_is_named() -> None:
    item = consumed_by(make(), 2).to_item(0)
    del item["shard-00002-of-00004"]
    with pytest.raises(CheckpointError, match=r"missing: \[2\]"):
        position_from_item(item, 4)
