"""Updates: past and day equal everything at once, and what is refused or cut short."""

import itertools
import json
import logging
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data import update as update_module
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.features import neighbours
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.data.features.statistics import DESCRIPTION, FORMAT
from m6rec_jax.data.features.statistics_settings import StatisticsOptions
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions
from m6rec_jax.data.splitting import negatives, splits
from m6rec_jax.data.splitting.event_table import Assignment, assign
from m6rec_jax.data.splitting.splits import CONTEXT, EXCLUDED, STATISTICS_PARTS, TRAIN, Split
from m6rec_jax.data.store.manifest import fingerprint
from m6rec_jax.data.store.prepared import STATISTICS, Prepared
from m6rec_jax.data.update import update
from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.prepared_rows import past_items, read_rows
from tests.data.conftest import TEMPLATE, UNLABELLED_TEMPLATE, declare_parts
from tests.data.fold import ViewFold
from tests.data.test_past_of_rows import item_of
from tests.data.test_shard_run import REPEATS, WRITING, as_text, random_log, records

VIEWS = ("groups", "next_items", "documents")
TABLES = ("users", "items", "events")


class Days:
    """A shop that is prepared, and gets new files day by day; the first day is the past."""

    def __init__(
        self,
        write_shop,
        days,
        split="per_user_temporal",
        labelled=True,
        statistics=None,
        spec=None,
        **options,
    ):
        self.days, self.split, self.statistics = days, split, statistics
        template = {**TEMPLATE, "writing": WRITING} if labelled else UNLABELLED_TEMPLATE
        events = [event for day in days for event in day]
        self.folder = write_shop(events, labelled=labelled, template=template, **spec or {})
        self.out, self.spec = self.folder.parent / "out", self.folder / "dataset.json"
        described = json.loads(self.spec.read_text())
        self.tables, self.there = {}, dict.fromkeys(TABLES, 0)
        for table in TABLES:
            described[table]["file"] = f"{table}-*.parquet"
            self.tables[table] = pq.read_table(path := self.folder / f"{table}.parquet")
            path.unlink()
        self.spec.write_text(json.dumps(described))
        self.options = PrepareOptions(**{"views": VIEWS, "max_events": 5, **options})
        self.add(0)
        self.prepared = self.prepare()

    def add(self, day):
        """Puts the files of a day into the folder: events, and users and items up to theirs."""
        so_far = [event for some in self.days[: day + 1] for event in some]
        users, items, *_ = zip(*so_far, strict=True)
        for table, end in zip(TABLES, (1 + max(users), 1 + max(items), len(so_far)), strict=True):
            if end > (start := self.there[table]):
                some = self.tables[table].slice(start, end - start)
                pq.write_table(some, self.folder / f"{table}-{day}.parquet")
                self.there[table] = end

    def prepare(self):
        how = self.split, self.options, self.statistics
        return prepare(self.folder, self.out, *how, progress=False)

    def update(self):
        return update(self.folder, self.out, self.split, progress=False)

    def fold(self, day):
        """Everything up to a day at once, of which the day's rows are training rows."""
        dataset, parsed = Dataset.open(self.folder), Split.parse(self.split)
        # The data set as it was prepared first.
        files = {f"{t[:-1]}_files": (self.folder / f"{t}-0.parquet",) for t in TABLES}
        past = assign(Dataset(dataset.directory, dataset.spec, **files), parsed).codes
        codes = np.full(len(dataset.events()), EXCLUDED, np.int8)
        codes[: len(past)] = np.where(np.isin(past, STATISTICS_PARTS), CONTEXT, past)
        ends = np.cumsum([len(some) for some in self.days])
        codes[ends[0] : ends[day]] = CONTEXT
        codes[ends[day - 1] : ends[day]] = TRAIN
        held_out = np.zeros(len(dataset.item_records), bool)
        if parsed.kind == "held_out_items":
            ids = [item.id for item in dataset.item_records]
            held_out = splits.is_held_out(ids, **parsed.arguments())
            later = np.arange(len(codes)) >= ends[0]
            codes[later & held_out[dataset.events()["item_index"].to_numpy()]] = EXCLUDED
        return ViewFold(dataset, Assignment(parsed, codes, held_out), self.options, self.statistics)

    def compare(self, day, where):
        """Asserts that rows, statistics and co-occurrence equal the fold's; counts the rows."""
        prepared = Prepared.open(self.out, "shop", self.prepared.manifest.split)
        fold, total, name = self.fold(day), 0, f"update_{day}"
        for view in self.options.views:
            try:
                folded = fold.render(view)
            except DataError:
                assert name not in prepared.num_rows(view)
                continue
            found = of_events(records(prepared.tfds_folder(view), view, name))
            assert found == of_events(map(as_text, folded.rows.get("train", []))), view
            assert prepared.num_rows(view).get(name, 0) >= len(found)
            total += len(found)
            if view == "groups":
                folded.statistics.save(where)
        later = CoOccurrence.load(prepared.folder).later
        np.testing.assert_array_equal(later.toarray(), folded.later)
        for path in where.iterdir():
            assert path.read_bytes() == (prepared.folder / STATISTICS / path.name).read_bytes()
        catalogue, counted = prepared.catalogue(), np.zeros(len(fold.items), np.int64)
        for event in fold.events:
            counted[event.item] += event.part in STATISTICS_PARTS
        assert catalogue.train_counts.tolist() == counted.tolist()
        assert catalogue.held_out.tolist() == fold.assignment.held_out.tolist()
        return total


def of_events(rows):
    """Rows without items as documents."""
    return sorted(text for text in rows if json.loads(text).get("kind") != "item")


def days_of(seed):
    """A random log, cut at two moments."""
    log = sorted(random_log(seed), key=lambda event: event[2])
    times = sorted({time for *_, time, _ in log})
    bounds = [-1.0, *(times[len(times) * part // 10] for part in (6, 8)), float("inf")]
    return [[e for e in log if low <= e[2] < high] for low, high in itertools.pairwise(bounds)]


SPLITS = (
    "per_user_temporal",
    "global_temporal",
    "held_out_items:fraction=0.3,seed=1",
    "few_shot:n=10,seed=1,history=sampled",
)


@pytest.mark.parametrize("seed", range(4))
def test_past_and_days_equal_all_at_once(write_shop, tmp_path, seed, monkeypatch):
    monkeypatch.setattr(neighbours, "DENSE_ITEMS", (0, 4096)[seed % 2])
    monkeypatch.setattr(negatives, "NEGATIVES", 2)
    growth = (0.03, 0.5)[seed % 2]
    days = Days(
        write_shop,
        days_of(seed),
        SPLITS[seed],
        labelled=seed != 3,
        statistics=StatisticsOptions(neighbour_window=(3, 1000)[seed % 2], factor_growth=growth),
        spec={"repeats": REPEATS[seed // 2]},
        views=VIEWS if seed == 3 else (*VIEWS, "explanations", "titles"),
        group_size=1 + seed,
        next_items_size=1 + seed % 3,
        negative_power=0.0,
    )
    before = {path: path.read_bytes() for path in days.out.rglob("*.tfrecord-*")}
    for day in (1, 2):
        days.add(day)
        assert days.update().updates[-1] == f"update_{day}"
        assert days.compare(day, tmp_path / f"fold {day}") > 10
    # What was there is there, byte for byte.
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_past_of_an_updates_rows(write_shop):
    """As files of events tell it, and as it is rendered into the histories of rows."""
    log = [
        (user, (user + 5 * turn) % 12, float(8 * turn + user), 3.0 + (turn + user) % 3)
        for turn in range(10)
        for user in range(4)
    ]
    some = [log[:24], log[24:32], log[32:]]
    days = Days(write_shop, some, views=("next_items",), next_items_size=1)
    for day in (1, 2):
        days.add(day)
        prepared = days.update()
    rows = list(read_rows(prepared, "next_items", "update_2"))
    assert len(rows) > 4
    for row, past in zip(rows, past_items(prepared, "update_2"), strict=True):
        rendered = [item_of(text) for text in row["history"][1:-1]]
        assert rendered == past.tolist()[-days.options.max_events :]


@pytest.fixture
def simple(write_shop):
    """A past of two users and a day with a new user and a new item, which is there."""
    return simple_days(write_shop)


def simple_days(write_shop, split="per_user_temporal", later=False):
    past = [(u, item, 100.0 * item + u, 3.0 + item % 3) for item in range(10) for u in (0, 1)]
    day = [(0, 10, 2000.0, 5.0), (2, 1, 2000.0, 4.0), (1, 3, 2100.0, 1.0)]
    days = Days(write_shop, [past, day], split, views=("groups", "next_items"))
    if not later:
        days.add(1)
    return days


def test_an_update_of_new_users_and_items(simple, caplog):
    first, new = simple.prepared, simple.folder / "events-1.parquet"
    counted = first.statistics().totals.events
    aside = new.rename(simple.folder.parent / new.name)
    assert simple.update().manifest == first.manifest
    assert "users-1.parquet, items-1.parquet: added with the next new events" in caplog.text
    aside.rename(new)
    prepared = simple.update()
    (entry,) = prepared.manifest.updates
    # Of all files so far: new users and items have a part in the rows.
    whole = prepared.manifest.files
    assert [len(files) for files in whole.values()] == [2, 2, 2]
    assert (entry.name, entry.fingerprint) == ("update_1", fingerprint(whole))
    assert prepared.manifest.counts["events"]["update_1"] == 3
    assert (prepared.manifest.counts["users"], prepared.manifest.last_time) == (3, 2100.0)
    # Nobody had an item again before, so that it is ignored that u1 does now.
    assert [prepared.num_rows(view)["update_1"] for view in ("groups", "next_items")] == [2, 2]
    assert prepared.statistics().totals.events == counted + 3
    # Once more: nothing is new.
    assert simple.update().manifest == prepared.manifest
    assert not (prepared.folder / "unfinished").exists()
    # The same events under another name.
    again = simple.folder / "events-2.parquet"
    shutil.copy(new, again)
    with pytest.raises(DataError, match=r"events-2\.parquet, row 0, .* is not later than 2100"):
        simple.update()
    again.unlink()
    # Preparing again makes one data set of all.
    with caplog.at_level(logging.INFO):
        whole = simple.prepare()
    assert "the parts of its updates go" in caplog.text
    assert whole.updates == ()
    assert simple.update().manifest == whole.manifest


def test_new_events_that_do_not_train_are_left_out(write_shop):
    """As a column says, or as users are drawn."""
    parts = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4 + ["train", "train", "test"]

    def with_parts(*events, **spec):
        declare_parts(folder := write_shop(*events, **spec), parts)
        return folder

    by_column = simple_days(with_parts, "by_column")
    assert by_column.update().manifest.counts["events"]["update_1"] == 2
    users = [f"u{user}" for user in range(8)]
    seed = next(s for s in range(99) if len(set(splits.by_name(users, seed=s))) == 3)
    past = [(u, item, 100.0 * item + u, 5.0 - item % 3) for item in range(6) for u in range(8)]
    day, spec = [(user, 7, 2000.0 + user, 5.0) for user in range(8)], {"folder": "other"}
    split = f"by_user:seed={seed}"
    days = Days(write_shop, [past, day], split, spec=spec, views=("next_items",))
    days.add(1)
    trained = (splits.by_name(users, seed=seed) == TRAIN).sum()
    assert days.update().num_rows("next_items")["update_1"] == trained < 8


def column(name, values):
    """Puts other values into the new file of events."""

    def change(folder):
        table = pq.read_table(path := folder / "events-1.parquet")
        place = table.schema.get_field_index(name)
        array = pa.array(values, table.schema.field(name).type)
        pq.write_table(table.set_column(place, name, array), path)

    return change


def declare(**changes):
    def change(folder):
        path = folder / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def same_event(folder):
    for name, value in {"user_id": "u0", "item_id": "i1", "time": 2e3}.items():
        column(name, [value] * 3)(folder)
    column("rating", [4.0, 4.0, 5.0])(folder)


def fewer_items(folder):
    path = folder / "items-0.parquet"
    pq.write_table(pq.read_table(path).slice(0, 9), path)


def old_statistics(folder):
    (path,) = folder.parent.rglob(DESCRIPTION)
    path.write_text(path.read_text().replace(FORMAT, "m6rec-statistics-1"))


REFUSED = (
    (column("time", [2000.0, 901.0, 2100.0]), r"events-1\.parquet, row 1, .* later than 901"),
    (column("item_id", ["i10", "i77", "i3"]), r"events-1\.parquet, row 1, .*'i77'"),
    (same_event, "rows 0 and 1 of the events are the same event"),
    (old_statistics, "format 'm6rec-statistics-1'"),
    (declare(label={"at_least": 3}), r"dataset\.json has changed"),
    (declare(repeats="count"), r"dataset\.json has changed"),
    (declare(splits={"per_user_temporal": {"train": 0.5}}), r"dataset\.json has changed"),
    (fewer_items, r"items-0\.parquet was prepared and has changed"),
    (
        lambda folder: (folder / "events-1.parquet").rename(folder / "events--1.parquet"),
        r"events-0\.parquet was prepared and .* another place",
    ),
)


def test_what_is_refused(simple, tmp_path_factory):
    for number, (change, message) in enumerate(REFUSED):
        where = tmp_path_factory.mktemp("refused") / str(number)
        shutil.copytree(simple.folder.parent, where)
        change(where / "shop")
        with pytest.raises(DataError, match=message):
            update(where / "shop", where / "out", simple.split, progress=False)
        now = Prepared.open(where / "out", "shop", simple.split)
        assert now.manifest == simple.prepared.manifest


def test_views_of_other_settings_get_no_part(write_shop, caplog):
    days = simple_days(write_shop, later=True)
    days.options = PrepareOptions(views=("next_items",), max_events=4)
    days.prepare()
    days.add(1)
    prepared = days.update()
    assert "groups: no new part" in caplog.text
    assert "update_1" not in prepared.num_rows("groups")
    assert prepared.num_rows("next_items")["update_1"] == 2


# Ends without any clean-up where a file or folder is to be renamed once more than so often.
KILLED = """
import os, signal, sys
from pathlib import Path
from m6rec_jax.data.update import update
rename, left = Path.rename, iter(range(int(sys.argv[3])))
def killed(path, target):
    next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = killed
update(sys.argv[1], sys.argv[2], progress=False)
"""


def test_an_update_that_is_killed(simple):
    """Before files take their places, nothing has changed; then, nothing counts as prepared."""
    before = simple.prepared
    for renamed in (0, 3):
        command = [sys.executable, "-c", KILLED, str(simple.folder), str(simple.out), str(renamed)]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        assert (before.folder / "unfinished").exists()
        if not renamed:
            now = Prepared.open(simple.out, "shop", simple.split)
            assert now.manifest == before.manifest
            assert not list(simple.out.rglob("*update_1*.tfrecord-*-of-*"))
    with pytest.raises(DataError, match=r"holds no prepared 'shop"):
        simple.update()
    prepared = simple.prepare()
    assert len(prepared.catalogue().items) == 11
    assert not list(prepared.tfds_folder("groups").glob("*update_1*"))


def test_what_comes_during_an_update_is_not_taken_for_prepared(simple, monkeypatch):
    path, whole_run = simple.folder / "events-1.parquet", update_module.run

    def late(*arguments, **options):
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
        return whole_run(*arguments, **options)

    monkeypatch.setattr(update_module, "run", late)
    assert simple.update().manifest.counts["events"]["update_1"] == 3
    with pytest.raises(DataError, match=r"events-1\.parquet was prepared and has changed"):
        simple.update()
