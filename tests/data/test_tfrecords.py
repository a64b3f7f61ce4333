"""Prepared data as TFDS and seqio see them, without our code, and what text survives it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from m6rec_jax.data import tfrecords, views
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.prepared import Prepared

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


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data_dir")


@pytest.fixture
def prepared(write_shop, out: Path) -> Prepared:
    """Built by the first test that asks, found finished by the others."""
    folder = write_shop(log(), name="My shop")
    items = pq.read_table(folder / "items.parquet")
    titles = [*items.column("title").to_pylist()[:-1], NASTY]
    place = items.column_names.index("title")
    pq.write_table(items.set_column(place, "title", [titles]), folder / "items.parquet")
    return prepare(folder, out, options=PrepareOptions(group_size=3), progress=False)


def test_tfds_gives_back_what_was_rendered(prepared: Prepared, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    # Characters that TFDS refuses in names are mended.
    assert prepared.tfds_folder("groups").parent.name == "My_shop.per_user_temporal.groups"
    for view in views.VIEWS:
        builder = tfds.builder_from_directory(prepared.tfds_folder(view))
        assert set(builder.info.features) == set(views.COLUMNS[view])
        for part, count in prepared.num_rows(view).items():
            assert builder.info.splits[part].num_examples == count
    builder = tfds.builder_from_directory(prepared.tfds_folder("catalogue"))
    texts = [row["text"].decode() for row in tfds.as_numpy(builder.as_dataset("train"))]
    assert texts == prepared.catalogue().texts  # in the order of the items table
    assert NASTY in [text.split(" by ")[0] for text in texts]


ROWS = [
    {
        "group_id": -number,
        "user_id": NASTY * number,
        "user_index": 1 << 40,
        "time": 1.6e9 + 0.25 * number,
        "history": [NASTY, "", "ü" * 300][: number % 4],
        "candidates": [],
        "item_indices": [0, 127, 128, 1 << 33][: number % 5],
        "labels": [number],
        "ratings": [0.5, 4.0],
    }
    for number in range(20)
]


@pytest.mark.parametrize("shard_bytes", [100, 1 << 20])
def test_tfds_gives_back_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfrecords, "_SHARD_BYTES", shard_bytes)
    writer = views.RowWriter(tmp_path, "groups", buffer_rows=7)
    for row in ROWS:
        writer.write("train", row)
    writer.close()
    target = tmp_path / "recommender_text" / "shop.all.groups" / "1.0.0"
    tfrecords.build_view(tmp_path, target, "groups")
    assert (len(list(target.glob("*.tfrecord-*"))) > 1) == (shard_bytes == 100)
    builder = tfds.builder_from_directory(target)
    read = [
        {column: plain(value) for column, value in row.items()}
        for row in tfds.as_numpy(builder.as_dataset("train"))
    ]
    assert read != ROWS  # shuffled
    assert sorted(map(key, read)) == sorted(map(key, ROWS))
    assert builder.info.dataset_size == sum(
        path.stat().st_size - 16 * length
        for path, length in zip(
            sorted(target.glob("*.tfrecord-*")),
            builder.info.splits["train"].shard_lengths,
            strict=True,
        )
    )


def test_seqio_reads_it_without_our_code(prepared: Prepared, out: Path) -> None:
    code = f"""
import json, seqio, sys
found = {{}}
for view in {views.VIEWS!r}:
    splits = ["train"] if view == "catalogue" else ["train", "validation", "test"]
    source = seqio.TfdsDataSource(
        f"recommender_text/My_shop.per_user_temporal.{{view}}:1.0.0",
        tfds_data_dir={str(out)!r},
        splits=splits,
    )
    found[view] = {{
        split: sum(1 for _ in source.get_dataset(split, shuffle=False)) for split in splits
    }}
assert not [name for name in sys.modules if name.startswith("m6rec")]
print(json.dumps(found))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=out
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found == {view: prepared.num_rows(view) for view in views.VIEWS}


def test_missing_ratings_survive(write_shop, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    folder = write_shop(log(), labelled=False, name="bought")
    prepared = prepare(
        folder, tmp_path / "out", options=PrepareOptions(views=("groups",)), progress=False
    )
    dataset = tfds.builder_from_directory(prepared.tfds_folder("groups")).as_dataset("test")
    for row in tfds.as_numpy(dataset):
        assert row["labels"].tolist() == [1, 0, 0]  # two items are left that the user did not buy
        assert all(map(math.isnan, row["ratings"].tolist()))
