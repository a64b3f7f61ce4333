"""Where prepared data are read: data that change under a source in use."""

import shutil
from pathlib import Path

import pyarrow as pa
import seqio

from m6rec_jax.data.store import tfrecords
from m6rec_jax.pipeline.source import PreparedSource


def test_data_prepared_anew_are_read_anew(number_data: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    source = PreparedSource(lambda: folder)
    for data, first in zip(number_data, (0, 1000), strict=True):
        shutil.copytree(data, folder)
        found = [int(row["number"]) for row in source.get_dataset("test", shuffle=False)]
        assert sorted(found) == [first, first + 1, first + 2]
        shutil.rmtree(folder)


def test_the_first_rows_of_a_split_of_several_files(tmp_path: Path) -> None:
    """In any number of shards they are those that the whole split begins with, in its order."""
    numbers = range(90)
    table = pa.table(
        {"item_id": map(str, numbers), "item_index": numbers, "text": ["item"] * len(numbers)}
    )
    records = list(tfrecords.examples(table, "catalogue"))
    files = [
        tfrecords.write_shard(tmp_path / str(file), "train", records[file * 30 : file * 30 + 30])
        for file in range(3)
    ]
    target = tmp_path / "catalogue" / "1.0.0"
    tfrecords.write_view(target, "catalogue", files)
    source = PreparedSource(lambda: target)
    shards = [
        source.first(70).get_dataset("train", shuffle=False, shard_info=seqio.ShardInfo(index, 2))
        for index in range(2)
    ]
    assert [int(row["item_index"]) for shard in shards for row in shard] == list(range(70))
    assert len(list(source.get_dataset("train", shuffle=False))) == 90
