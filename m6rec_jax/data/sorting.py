"""Sorting record batches by number columns, in memory or through sorted runs on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import gin
import numpy as np
import pyarrow as pa
import pyarrow.ipc

# Of one run, what is in memory at a time while merging, and of what is given out: rows may be long,
# since a group of events holds all that its user acted on before.
_MERGE_ROWS, _BATCH_BYTES = 8_192, 16 << 20


@gin.configurable
def sorted_batches(
    batches: Iterable[pa.RecordBatch],
    keys: Sequence[str],
    *,
    batch_size: int = 65_536,
    memory_rows: int = 4_000_000,
    memory_bytes: int = 512 << 20,
    scratch_dir: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of `batches` in ascending order of `keys`.

    Up to `memory_rows` rows or `memory_bytes` are sorted in memory. More are written as sorted runs
    of that many rows to a temporary folder, which are then merged with a few thousand rows of each
    run in memory; the folder is removed when the iterator ends or is closed.

    Args:
      batches: batches of one schema.
      keys: number columns without nulls; rows equal in all keys come out in any order, so end
        with a unique one.
      batch_size: rows per batch given out, at most; fewer where rows are long.
      memory_rows, memory_bytes: held and sorted at a time, a batch at least. Sorting takes three
        times as much.
      scratch_dir: where the runs go; None for the system's temporary folder.
    """
    held: list[pa.RecordBatch] = []
    num_held = bytes_held = 0
    with tempfile.TemporaryDirectory(prefix="m6rec-sort-", dir=scratch_dir) as folder:
        runs: list[Path] = []
        for batch in batches:
            if num_held and (
                num_held + batch.num_rows > memory_rows or bytes_held + batch.nbytes > memory_bytes
            ):
                runs.append(_write_run(_sort(held, keys), Path(folder) / f"{len(runs)}.arrow"))
                held, num_held, bytes_held = [], 0, 0
            held.append(batch)
            num_held += batch.num_rows
            bytes_held += batch.nbytes
        last = _sort(held, keys) if held else None
        held = []
        if not runs:
            if last is not None:
                yield from _slices(last, batch_size)
            return
        if last is not None:
            runs.append(_write_run(last, Path(folder) / f"{len(runs)}.arrow"))
        last = None
        for merged in _merge([_read_run(path) for path in runs], keys):
            yield from _slices(merged, batch_size)


def _sort(batches: Sequence[pa.RecordBatch], keys: Sequence[str]) -> pa.Table:
    table = pa.Table.from_batches(batches).combine_chunks()
    columns = [table.column(key).to_numpy() for key in keys]
    return table.take(pa.array(np.lexsort(columns[::-1])))


def _slices(table: pa.Table, batch_size: int) -> Iterator[pa.RecordBatch]:
    for batch in table.combine_chunks().to_batches(max_chunksize=batch_size):
        yield from _halved(batch)


def _halved(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in as many parts as its bytes ask for."""
    if batch.num_rows < 2 or batch.nbytes <= _BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _halved(batch.slice(0, half))
    yield from _halved(batch.slice(half))


def _write_run(table: pa.Table, path: Path) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for batch in _slices(table, _MERGE_ROWS):
            writer.write_batch(batch)
    return path


def _read_run(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)


def _merge(runs: list[Iterator[pa.RecordBatch]], keys: Sequence[str]) -> Iterator[pa.Table]:
    """Merges sorted runs: what is not above the lowest last row of all heads can be given out."""
    heads = {index: next(run) for index, run in enumerate(runs)}
    while heads:
        bound = min(
            tuple(batch.column(key)[-1].as_py() for key in keys) for batch in heads.values()
        )
        ready = []
        for index, batch in list(heads.items()):
            count = _num_up_to(batch, keys, bound)
            if count:
                ready.append(batch.slice(0, count))
            if count < batch.num_rows:
                heads[index] = batch.slice(count)
            elif (following := next(runs[index], None)) is not None:
                heads[index] = following
            else:
                del heads[index]
        yield _sort(ready, keys)


def _num_up_to(batch: pa.RecordBatch, keys: Sequence[str], bound: Sequence[float]) -> int:
    """How many of the first rows of a sorted batch are not above `bound`."""
    low, high = 0, batch.num_rows
    for key, value in zip(keys, bound, strict=True):
        # Within [low, high) all earlier keys equal the bound: narrow to where this one does too.
        column = batch.column(key).to_numpy()[low:high]
        start = low + int(np.searchsorted(column, value, "left"))
        stop = low + int(np.searchsorted(column, value, "right"))
        if start == stop:
            return start
        low, high = start, stop
    return high
