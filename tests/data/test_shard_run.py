"""What is made shard by shard equals what the fold makes event by event, to the letter."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.data import shard_run
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.features import neighbours
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.shard_job import Job
from m6rec_jax.data.shard_run import run
from m6rec_jax.data.splitting import negatives
from m6rec_jax.data.splitting.event_table import EventTable
from m6rec_jax.data.splitting.splits import PARTS, STATISTICS_PARTS, Split
from m6rec_jax.data.store import tfrecords, views
from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import put_in_place
from tests.data.conftest import TEMPLATE, UNLABELLED_TEMPLATE
from tests.data.fold import ViewFold

NUM_USERS, NUM_ITEMS = 8, 12
WRITING = {
    "explanations": {
        "about": "{title}",
        "text": "[{shared_tags}, like {shared_tags_in}]",
        "liked": "{title}",
    },
    "titles": {"prefix": "[{tags}]:", "text": "{title}"},
}


@pytest.fixture(autouse=True)
def little_at_once(monkeypatch) -> None:
    """Several slices of the timeline, and several batches in each."""
    monkeypatch.setattr(shard_run, "_SLICE_GROUPS", 9)
    monkeypatch.setattr(neighbours, "_PAIRS_AT_ONCE", 20)
    monkeypatch.setattr(neighbours, "_EVENTS_AT_ONCE", 7)


def random_log(seed: int) -> list[tuple[int, int, float, float]]:
    """Events at few moments, some items again and again, values with a long fraction."""
    random = np.random.default_rng(seed)
    size = int(random.integers(60, 160))
    keys = {
        (int(user), int(item), float(3600 * time))
        for user, item, time in zip(
            random.integers(NUM_USERS, size=size),
            (NUM_ITEMS * random.random(size) ** 2).astype(int),
            random.integers(40, size=size) ** 2,
            strict=True,
        )
    }
    return [(*key, float(random.choice([1, 2.7, 3.1, 4, 5.3]))) for key in sorted(keys)]


def records(folder: Path, view: str, part: str) -> list[str]:
    """The rows of a part that `run` wrote, read without its code."""
    import tensorflow as tf

    kinds = views.COLUMNS[view]
    found = []
    for path in sorted(folder.glob(f"*-{part}.tfrecord-*")):
        for raw in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            row = {}
            for name, feature in tf.train.Example.FromString(raw).features.feature.items():
                kind, many = kinds[name]
                lists = (feature.bytes_list, feature.int64_list, feature.float_list)
                values = [value for some in lists for value in some.value]
                if kind == "str":
                    values = [value.decode() for value in values]
                if kind == "time":
                    values = np.frombuffer(b"".join(values), np.float64).tolist()
                row[name] = values if many else values[0]
            assert set(row) == set(kinds)
            found.append(as_text(row))
    return sorted(found)


def as_text(row: dict) -> str:
    """A row, but for its place in a table, which the fold does not know."""
    return json.dumps({name: row[name] for name in row if name != "text_index"}, sort_keys=True)


class Both:
    """One data set, made in both ways.

    Args:
      dataset: an open one.
      split: by name.
      folder: for everything.
      options, statistics: of the preparation.
      num_shards: how many there are.
    """

    def __init__(self, dataset, split, folder, options, statistics=None, num_shards=1):
        options = dataclasses.replace(options, max_events=options.max_events or 50)
        self.folder, self.options = folder, options
        parsed = Split.parse(split, dataset.spec.splits)
        scratch = folder / "temporary"
        scratch.mkdir(parents=True)
        with EventTable(dataset, folder / "table") as events:
            assignment = events.assign(parsed)
            self.fold = ViewFold(dataset, assignment, options, statistics)
            settings = options, self.fold.statistics_options, assignment.held_out
            job = Job(scratch, dataset, parsed.visible_parts, *settings)
            shared = folder / "shared"
            files, self.rates = run(job, events, num_shards, list(options.views), shared, True)
            put_in_place({shared: folder})
        for view, of_view in files.items():
            tfrecords.write_view(folder / view / "1.0.0", view, of_view)
        shutil.rmtree(scratch)

    def compare(self) -> None:
        """Asserts that rows, statistics and co-occurrence are equal."""
        for view in self.options.views:
            folded = self.fold.render(view)
            assert view != "groups" or folded.rates == self.rates
            for part in PARTS:
                made = records(self.folder / view / "1.0.0", view, part)
                assert made == sorted(map(as_text, folded.rows.get(part, []))), (view, part)
        if not views.COUNTED.isdisjoint(self.options.views):
            later = CoOccurrence.load(self.folder).later
            np.testing.assert_array_equal(later.toarray(), folded.later)
        statistics = self.fold.statistics()
        for event in self.fold.counted():
            statistics.update(*event)
        statistics.save(self.folder / "folded")
        for path in sorted((self.folder / "folded").iterdir()):
            assert path.read_bytes() == (self.folder / "statistics" / path.name).read_bytes(), path


REPEATS = ("count", "ignore")
SPLITS = (
    "per_user_temporal",
    "leave_one_out",
    "global_temporal",
    "held_out_items:fraction=0.3,seed=1",
    "few_shot:n=20,seed=1",
    "few_shot:n=20,seed=1,history=sampled",
    "half_of_the_users",
    "few_shot:n=20,seed=1,of=half_of_the_users",
)
DECLARED = {"half_of_the_users": {"kind": "by_user", "train": 0.5, "validation": 0.2, "seed": 1}}


@pytest.mark.parametrize("seed", range(8))
def test_rows_and_statistics_of_labelled_events(write_shop, tmp_path, seed, monkeypatch):
    monkeypatch.setattr(neighbours, "DENSE_ITEMS", (0, 4096)[seed % 2])
    template = {
        **TEMPLATE,
        "writing": WRITING,
        "context": "{weekday} {part_of_day}[, {user_count} events]",
    }
    folder = write_shop(
        random_log(seed), template=template, splits=DECLARED, repeats=REPEATS[seed % 3 // 2]
    )
    options = PrepareOptions(
        views=("groups", "next_items", "documents", "explanations", "titles"),
        group_size=1 + seed % 4,
        max_events=5,
        next_items_size=1 + seed % 3,
    )
    statistics = StatisticsOptions(
        neighbour_window=(3, 1000)[seed % 2], factor_growth=(0.03, 0.5)[seed % 2]
    )
    Both(Dataset.open(folder), SPLITS[seed], tmp_path, options, statistics).compare()


@pytest.mark.parametrize("seed", range(8))
def test_rows_and_statistics_of_purchases(write_shop, tmp_path, seed, monkeypatch):
    """Half of them say how many were bought."""
    monkeypatch.setattr(negatives, "NEGATIVES", (2, 4)[seed % 2])
    valued = seed % 2 == 1
    told = "[, mean {item_mean_value}][, taste {user_taste_difference}]" if valued else ""
    template = {
        **UNLABELLED_TEMPLATE,
        "candidate": UNLABELLED_TEMPLATE["candidate"] + "[, {item_popularity_rank}]" + told,
    }
    folder = write_shop(
        random_log(seed),
        labelled=False,
        valued=valued,
        template=template,
        splits=DECLARED,
        repeats=REPEATS[seed % 3 // 2],
    )
    options = PrepareOptions(
        views=("groups", "next_items", "documents"),
        group_size=(4, 10, 15)[seed % 3],
        negative_power=(0.5, 0.0, 1.0)[seed % 3],
        max_events=4,
    )
    statistics = StatisticsOptions(neighbour_window=(3, 1000)[seed % 2])
    Both(Dataset.open(folder), SPLITS[seed], tmp_path, options, statistics).compare()


def test_shards_change_no_row(write_shop, tmp_path: Path, monkeypatch) -> None:
    """Nor does the number of processes change a byte."""
    dataset = Dataset.open(write_shop(random_log(0)))
    options = PrepareOptions(views=("groups", "next_items", "documents"))
    split = "per_user_temporal"
    one = Both(dataset, split, tmp_path / "one", options)
    some = Both(dataset, split, tmp_path / "some", options, num_shards=5)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    alone = Both(dataset, split, tmp_path / "alone", options, num_shards=5)
    assert one.rates == some.rates
    for view in options.views:
        for part in PARTS:
            found = [records(both.folder / view / "1.0.0", view, part) for both in (one, some)]
            assert found[0] == found[1]
    files = sorted(p.relative_to(some.folder) for p in some.folder.rglob("*") if p.is_file())
    assert len(files) > 20
    for file in files:
        assert (some.folder / file).read_bytes() == (alone.folder / file).read_bytes(), file
    for file in sorted((one.folder / "statistics").iterdir()):
        assert file.read_bytes() == (some.folder / "statistics" / file.name).read_bytes()


def test_shards_without_events(write_shop, tmp_path: Path) -> None:
    options = PrepareOptions(views=("groups", "next_items", "documents"))
    split = "few_shot:n=1,seed=1,history=sampled,of=leave_one_out"
    log = [(user, item, float(time), value) for user, item, time, value in random_log(2)]
    log += [(0, item, 1e6 + item, 4.0) for item in range(3)]
    dataset = Dataset.open(write_shop([event for event in log if event[0] in (0, 2, 5)]))
    Both(dataset, split, tmp_path, options, num_shards=8).compare()


def test_parts_of_any_kind(write_shop, tmp_path: Path) -> None:
    """Parts that no split makes: every mixture of them within a user's events."""
    log = random_log(3)
    dataset = Dataset.open(write_shop(log))
    codes = np.random.default_rng(0).integers(-1, 4, len(log)).astype(np.int8)
    split = Split.parse("per_user_temporal")
    options = PrepareOptions(views=("groups", "next_items", "documents"), max_events=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventTable, "_part_sql", lambda events, _: events.lookup("row", codes))
        Both(dataset, split.name, tmp_path, options).compare()
    assert np.isin(STATISTICS_PARTS, codes).all()


def test_a_machine_that_does_not_see_the_folders_says_so(write_shop, tmp_path: Path) -> None:
    """Under Ray, where nothing but the job travels to a worker."""
    dataset, gone = Dataset.open(write_shop(random_log(0))), tmp_path / "gone"
    options = PrepareOptions(), StatisticsOptions(), np.zeros(NUM_ITEMS, bool)
    assert Job(tmp_path, dataset, {}, *options).opened().folder == tmp_path
    with pytest.raises(DataError, match=f"{gone} is not there on "):
        Job(gone, dataset, {}, *options).opened()
