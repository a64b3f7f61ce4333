"""Where prepared data are read: data that change under a source in use."""

import shutil
from pathlib import Path

import pyarrow as pa
import seqio

from m6rec_jax.data.store import tfrecords, views
from m6rec_jax.pipeline.source import PreparedSource


def test_data_prepared_anew_are_read_anew(number_data: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    source = PreparedSource(lambda: folder)
    for data, first in zip(number_data, (0, 1000), strict=True):
        shutil.copytree(data, folder)
        found = [int(row["number"]) for row in source.get_dataset("test", shuffle=False)]
        assert sorted(found) == [first, first + 1, first + 2]
        shutil.rmtree(folder)


def test_a_sample_has_its_share_of_every_file(tmp_path: Path) -> None:
    """In any number of shards it is the first rows of each, in the split's order."""
    numbers = range(90)
    rows = [
        {"text_id": str(n), "text_index": n, "group": "", "source": [], "question": "", "label": 0}
        for n in numbers
    ]
    table = pa.Table.from_pylist(rows, views.schema("labelled_texts"))
    records = list(tfrecords.examples(table, "labelled_texts"))
    files = [
        tfrecords.write_shard(tmp_path / str(first), "train", records[first:end])
        for first, end in ((0, 45), (45, 60), (60, 90))
    ]
    target = tmp_path / "labelled_texts" / "1.0.0"
    tfrecords.write_view(target, "labelled_texts", files)
    source = PreparedSource(lambda: target)
    shards = [
        source.sample(30).get_dataset("train", shuffle=False, shard_info=seqio.ShardInfo(index, 4))
        for index in range(4)
    ]
    found = [int(row["text_index"]) for shard in shards for row in shard]
    assert found == [*range(15), *range(45, 50), *range(60, 70)]
    assert found == [n for one in source.sample(30).ranges("train") for n in range(*one)]
    assert len(list(source.get_dataset("train", shuffle=False))) == 90
