import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m6rec_jax.data import sorting
from m6rec_jax.data.sorting import sorted_batches


def batches_of(keys, size):
    """Batches of `size` rows with columns user, time, row and a name."""
    rows = [
        {"user": user, "time": time, "row": row, "name": f"n{row}"}
        for row, (user, time) in enumerate(keys)
    ]
    schema = pa.schema(
        [("user", pa.int64()), ("time", pa.float64()), ("row", pa.int64()), ("name", pa.string())]
    )
    for start in range(0, len(rows), size):
        yield pa.RecordBatch.from_pylist(rows[start : start + size], schema=schema)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0, -1.0])), max_size=80),
    st.integers(1, 20),
    st.integers(1, 30),
    st.integers(1, 25),
)
def test_agrees_with_python_sort_whatever_the_sizes(keys, size, memory_rows, batch_size):
    expected = [row for *_, row in sorted((u, t, row) for row, (u, t) in enumerate(keys))]
    found = list(
        sorted_batches(
            batches_of(keys, size),
            ("user", "time", "row"),
            memory_rows=memory_rows,
            batch_size=batch_size,
        )
    )
    assert [row for batch in found for row in batch.column("row").to_pylist()] == expected
    assert [n for batch in found for n in batch.column("name").to_pylist()] == [
        f"n{row}" for row in expected
    ]
    assert all(0 < batch.num_rows <= batch_size for batch in found)


def test_runs_larger_than_the_merge_window_are_merged():
    generator = np.random.default_rng(0)
    keys = list(zip(generator.integers(0, 50, 60_000).tolist(), [0.0] * 60_000, strict=True))
    found = sorted_batches(batches_of(keys, 5_000), ("user", "row"), memory_rows=20_000)
    rows = np.concatenate([batch.column("row").to_numpy() for batch in found])
    users = np.array([user for user, _ in keys])
    assert np.array_equal(rows, np.argsort(users, kind="stable"))


def test_long_rows_are_counted_by_their_bytes(monkeypatch):
    """Here the last rows, of 80,000 bytes, are a hundred times as long as all others together."""
    monkeypatch.setattr(sorting, "_BATCH_BYTES", 100_000)
    lengths = [10] * 500 + [10_000] * 40
    random = np.random.default_rng(0)
    places = random.permutation(len(lengths))
    written = []
    write = sorting._write_run
    monkeypatch.setattr(
        sorting,
        "_write_run",
        lambda table, path: written.append(table.nbytes) or write(table, path),
    )
    batches = [
        pa.RecordBatch.from_pydict(
            {"place": [int(place)], "items": [np.arange(lengths[place]).tolist()]}
        )
        for place in places
    ]
    found = list(sorted_batches(batches, ("place",), memory_bytes=300_000))
    assert [place for batch in found for place in batch.column("place").to_pylist()] == list(
        range(len(lengths))
    )
    assert len(written) > 10
    assert max(written) <= 300_000
    assert max(batch.nbytes for batch in found) <= 100_000
    assert max(batch.num_rows for batch in found) > 50, "short rows go together"


def test_memory_is_bounded_while_merging(tmp_path):
    keys = [(row * 7919 % 40_000, 0.0) for row in range(40_000)]
    held = pa.total_allocated_bytes()
    most = 0
    for batch in sorted_batches(
        batches_of(keys, 1_000), ("user",), memory_rows=2_000, batch_size=500
    ):
        most = max(most, pa.total_allocated_bytes() - held)
        del batch
    # 40,000 rows take about 1.3 MB; the 20 runs of 2,000 rows are read a piece at a time.
    assert most < 3_000_000


@pytest.mark.parametrize("consume", [0, 1, None])
def test_scratch_files_are_removed_when_done_or_closed(tmp_path, consume):
    keys = [(row % 5, 0.0) for row in range(100)]
    iterator = sorted_batches(
        batches_of(keys, 10), ("user", "row"), memory_rows=20, batch_size=10, scratch_dir=tmp_path
    )
    if consume is None:
        list(iterator)
    else:
        for _ in range(consume):
            next(iterator)
            assert list(tmp_path.glob("m6rec-sort-*/*.arrow"))
        iterator.close()
    assert list(tmp_path.iterdir()) == []


def test_no_batches_give_no_batches():
    assert list(sorted_batches([], ("user",))) == []
