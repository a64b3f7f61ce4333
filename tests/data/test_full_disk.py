"""Disks that are full after some files: said, and nothing half-written is taken for whole."""

import contextlib
import errno
import resource
from pathlib import Path

import pytest

from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.store import tfrecords
from m6rec_jax.errors import DataError
from m6rec_jax.io.mapped_arrays import mapped_array

SHOP = Path(__file__).parents[1] / "data" / "shop"


@contextlib.contextmanager
def files_of_at_most(size):
    """The system refuses to let a file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_preparation_goes_on_after_a_full_disk(tmp_path, monkeypatch):
    prepare(SHOP, tmp_path / "whole", progress=False)
    whole = content(tmp_path / "whole")
    write, written = tfrecords.write_shard, []

    def write_shard(path, part, records):
        written.append(path)
        if len(written) == room:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, part, records)

    monkeypatch.setattr(tfrecords, "write_shard", write_shard)
    shards = sum(".tfrecord-" in path.name for path in whole)
    for room in (1, shards // 2, shards):
        out = tmp_path / str(room)
        written.clear()
        with pytest.raises(OSError, match="No space left"):
            prepare(SHOP, out, progress=False)
        assert not any(".tfrecord-" in path.name for path in content(out))
        written.extend([out] * shards)  # from here on there is room
        prepare(SHOP, out, progress=False)
        assert content(out) == whole


def test_a_check_that_has_no_room_leaves_no_clean_folder(tmp_path):
    whole = check_dataset(SHOP, tmp_path / "whole").clean
    size = (whole / "events.parquet").stat().st_size
    with pytest.raises(DataError, match="File too large"), files_of_at_most(size // 2):
        check_dataset(SHOP, tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_room_of_a_mapped_array_is_taken_at_once(tmp_path):
    array = mapped_array(tmp_path / "a.npy", float, (100_000,))
    array[:] = 1
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 800_000
    with pytest.raises(OSError, match="too large"), files_of_at_most(1_000):
        mapped_array(tmp_path / "b.npy", float, (100_000,))
