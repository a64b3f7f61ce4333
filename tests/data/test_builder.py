"""The TFDS builder: what is rendered comes back from TFDS and seqio, without our code, the same."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from m6rec_jax.data import views
from m6rec_jax.data.prepare import PrepareOptions, prepare
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.errors import DataError

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


def rows_of(prepared: Prepared, view: str, part: str) -> list[dict]:
    path = prepared.folder / "rendered" / view / f"{part}.parquet"
    return pq.read_table(path).to_pylist() if path.is_file() else []


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
    return prepare(
        folder, out, options=PrepareOptions(group_size=3, keep_rendered=True), progress=False
    )


def test_tfds_gives_back_what_was_rendered(prepared: Prepared) -> None:
    import tensorflow_datasets as tfds

    # Characters that TFDS refuses in names are mended.
    assert prepared.tfds_folder("groups").parent.name == "My_shop.per_user_temporal.groups"
    for view in views.VIEWS:
        builder = tfds.builder_from_directory(prepared.tfds_folder(view))
        assert set(builder.info.features) == set(views.COLUMNS[view])
        for part, count in prepared.num_rows(view).items():
            assert builder.info.splits[part].num_examples == count
            read = [
                {column: plain(value) for column, value in row.items()}
                for row in tfds.as_numpy(builder.as_dataset(part))
            ]
            rendered = rows_of(prepared, view, part)
            if view == "catalogue":
                assert read == rendered  # in the order of the items table
                assert NASTY in [row["text"].split(" by ")[0] for row in read]
            assert sorted(map(key, read)) == sorted(map(key, rendered))
    assert any(row["time"] % 1 == 0.25 for row in rows_of(prepared, "groups", "train"))


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


def test_the_same_input_gives_the_same_records(prepared: Prepared, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    from m6rec_jax.data.recommender_text import recommender_text_dataset_builder as module

    # Also the way `tfds build --config '{...}'` makes a config.
    raw = {
        "name": "My_shop.per_user_temporal.groups",
        "rendered": str(prepared.folder / "rendered" / "groups"),
    }
    config = module.Builder.builder_config_cls(**raw)
    builder = module.Builder(config=config, data_dir=str(tmp_path))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    records = sorted(Path(builder.data_dir).glob("*.tfrecord*"))
    assert records
    for path in records:
        assert path.read_bytes() == (prepared.tfds_folder("groups") / path.name).read_bytes()


def test_clear_errors(tmp_path: Path) -> None:
    from m6rec_jax.data.recommender_text import recommender_text_dataset_builder as module

    with pytest.raises(DataError, match=r"no view 'group' \(did you mean 'groups'"):
        module.Builder(
            config=module.RecommenderTextConfig(name="shop.leave_one_out.group"),
            data_dir=str(tmp_path),
        )
    config = module.RecommenderTextConfig(name="shop.leave_one_out.groups", rendered=str(tmp_path))
    builder = module.Builder(config=config, data_dir=str(tmp_path / "out"))
    with pytest.raises(DataError, match="no rendered Parquet files in"):
        builder.download_and_prepare()


def test_missing_ratings_survive(write_shop, tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    folder = write_shop(log(), labelled=False, name="bought")
    prepared = prepare(
        folder, tmp_path / "out", options=PrepareOptions(views=("groups",)), progress=False
    )
    assert not (prepared.folder / "rendered").exists()
    dataset = tfds.builder_from_directory(prepared.tfds_folder("groups")).as_dataset("test")
    for row in tfds.as_numpy(dataset):
        assert row["labels"].tolist() == [1, 0, 0]  # two items are left that the user did not buy
        assert all(map(math.isnan, row["ratings"].tolist()))
