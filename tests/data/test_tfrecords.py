"""Prepared data as TFDS and seqio see them, without our code, and what text survives it."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import VIEWS, PrepareOptions
from m6rec_jax.data.store import tfrecords, views

DAY = 86_400.0
# Text that a careless writer would harm: NUL, emoji, markup, control tokens, a lone newline.
NASTY = "Thing \x00 🎬 </s> <extra_id_0> [EOS] {x}\n"


def log() -> list[tuple[int, int, float, float]]:
    # Times with a fraction, which 32 bits could not hold.
    return [
        (user, (3 * user + place) % 12, 1.6e9 + DAY * place + user + 0.25, 1.0 + (user + place) % 5)
        for place in range(10)
        for user in range(4)
    ]


def plain(value: object) -> object:
    """A TFDS value as the plain Python one that was rendered."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(member) for member in value]
    return value.decode() if isinstance(value, bytes) else value


def key(row: dict) -> str:
    return json.dumps(row, sort_keys=True)


def test_tfds_and_seqio_give_back_what_was_rendered(write_shop, tmp_path: Path) -> None:
    import seqio
    import tensorflow_datasets as tfds

    folder, out = write_shop(log(), name="My shop"), tmp_path / "out"
    items = pq.read_table(folder / "items.parquet")
    titles = [*items.column("title").to_pylist()[:-1], NASTY]
    place = items.column_names.index("title")
    pq.write_table(items.set_column(place, "title", [titles]), folder / "items.parquet")
    prepared = prepare(folder, out, options=PrepareOptions(group_size=3), progress=False)
    # Characters that TFDS refuses in names are mended.
    assert prepared.tfds_folder("groups").parent.name == "My_shop.per_user_temporal.groups"
    for view in VIEWS:
        builder = tfds.builder_from_directory(prepared.tfds_folder(view))
        assert set(builder.info.features) == set(views.COLUMNS[view])
        rows = prepared.num_rows(view)
        source = seqio.TfdsDataSource(
            f"recommender_text/My_shop.per_user_temporal.{view}:1.0.0",
            tfds_data_dir=str(out),
            splits=[*rows],
        )
        for part, count in rows.items():
            assert builder.info.splits[part].num_examples == count
            assert sum(1 for _ in source.get_dataset(part, shuffle=False)) == count
        # They are read without our code.
        assert "m6rec" not in (prepared.tfds_folder(view) / "features.json").read_text()
    assert NASTY in [text.split(" by ")[0] for text in prepared.catalogue().texts]


ROWS = [
    {
        "user_id": NASTY * number,
        "user_index": 1 << 40,
        "time": 1.6e9 + 0.25 * number,
        "history": [NASTY, "", "ü" * 300][: number % 4],
        "candidates": [],
        "item_indices": [0, 127, 128, 1 << 33][: number % 5],
        "labels": [number],
        "ratings": [0.5, math.nan],
    }
    for number in range(20)
]


@pytest.mark.parametrize("shard_bytes", [100, 1 << 20])
def test_tfds_gives_back_what_was_written(tmp_path, monkeypatch, shard_bytes):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfrecords, "_SHARD_BYTES", shard_bytes)
    tfrecords.spool_rows((("groups", "train", row) for row in ROWS), tmp_path)
    target = tmp_path / "recommender_text" / "shop.all.groups" / "1.0.0"
    assert tfrecords.write_spooled(target, "groups", tmp_path) == {"train": len(ROWS)}
    assert (len(list(target.glob("*.tfrecord-*"))) > 1) == (shard_bytes == 100)
    builder = tfds.builder_from_directory(target)
    read, again = (
        [{column: plain(value) for column, value in row.items()} for row in rows]
        for rows in (
            tfds.as_numpy(builder.as_dataset("train")),
            tfrecords.read_shards(target, "groups", "train"),
        )
    )
    assert read != ROWS  # shuffled
    assert sorted(map(key, read)) == sorted(map(key, ROWS))
    assert list(map(key, again)) == list(map(key, read))
