"""Updates: past and day equal everything at once, and what is refused or cut short."""

import itertools
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from tests.data.test_past_of_rows import item_of
from tests.data.test_shard_run import REPEATS, WRITING, folded, random_log, records
from tests.data.view_fold import ViewFold

Log = list[tuple[int, int, float, float]]
VIEWS = ("groups", "next_items", "documents")


class Days:
    """A shop that is prepared, and gets new files day by day.

    Args:
      write_shop: the fixture.
      days: the events of each; the first ones are the past.
      split: by name.
      labelled, spec: of the shop.
      statistics, options: of its preparation.
    """

    def __init__(
        self,
        write_shop: Any,
        days: list[Log],
        split: str = "per_user_temporal",
        labelled: bool = True,
        statistics: StatisticsOptions | None = None,
        spec: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.days, self.split = days, split
        template = {**TEMPLATE, "writing": WRITING} if labelled else UNLABELLED_TEMPLATE
        events = [event for day in days for event in day]
        self.folder = write_shop(events, labelled=labelled, template=template, **spec or {})
        self.out = self.folder.parent / "out"
        spec = json.loads((self.folder / "dataset.json").read_text())
        for table in ("users", "items", "events"):
            spec[table]["file"] = f"{table}-*.parquet"
        (self.folder / "dataset.json").write_text(json.dumps(spec))
        self.tables = {}
        for table in ("users", "items", "events"):
            path = self.folder / f"{table}.parquet"
            self.tables[table] = pq.read_table(path)
            path.unlink()
        self.there = dict.fromkeys(self.tables, 0)
        self.options = PrepareOptions(**{"views": VIEWS, "max_events": 5, **options})
        self.statistics = statistics
        self.add(0)
        self.prepared = prepare(
            self.folder, self.out, split, self.options, statistics, progress=False
        )

    def add(self, day: int) -> None:
        """Puts the files of a day into the folder: events, and users and items up to theirs."""
        so_far = [event for some in self.days[: day + 1] for event in some]
        ends = {
            "users": 1 + max(user for user, *_ in so_far),
            "items": 1 + max(item for _, item, *_ in so_far),
            "events": len(so_far),
        }
        for table, end in ends.items():
            if end > self.there[table]:
                some = self.tables[table].slice(self.there[table], end - self.there[table])
                pq.write_table(some, self.folder / f"{table}-{day}.parquet")
                self.there[table] = end

    def update(self) -> Prepared:
        return update(self.folder, self.out, self.split, progress=False)

    def fold(self, day: int) -> ViewFold:
        """Everything up to a day at once, of which the day's rows are training rows."""
        dataset = Dataset.open(self.folder)
        parsed = Split.parse(self.split)
        codes = np.full(len(dataset.events()), EXCLUDED, np.int8)
        past = assign(self.past_alone(), parsed).codes
        codes[: len(past)] = np.where(np.isin(past, STATISTICS_PARTS), CONTEXT, past)
        ends = np.cumsum([len(some) for some in self.days])
        codes[ends[0] : ends[day]] = CONTEXT
        codes[ends[day - 1] : ends[day]] = TRAIN
        held_out = np.zeros(len(dataset.item_records), bool)
        if parsed.kind == "held_out_items":
            ids = [item.id for item in dataset.item_records]
            held_out = splits.is_held_out(ids, **parsed.arguments())
            items = dataset.events()["item_index"].to_numpy()
            later = np.arange(len(codes)) >= ends[0]
            codes[later & held_out[items]] = EXCLUDED
        return ViewFold(dataset, Assignment(parsed, codes, held_out), self.options, self.statistics)

    def past_alone(self) -> Dataset:
        """The data set as it was prepared first."""
        dataset = Dataset.open(self.folder)
        files = {
            f"{table}_files": (self.folder / f"{name}-0.parquet",)
            for table, name in (("user", "users"), ("item", "items"), ("event", "events"))
        }
        return Dataset(dataset.directory, dataset.spec, **files)

    def compare(self, day: int, where: Path) -> int:
        """Asserts that rows, statistics and co-occurrence equal the fold's; counts the rows."""
        prepared = Prepared.open(self.out, "shop", self.prepared.manifest.split)
        fold, total, name = self.fold(day), 0, f"update_{day}"
        for view in set(self.options.views):
            (where / view).mkdir(parents=True)
            try:
                _, statistics = fold.render(view, where / view)
            except DataError:
                assert name not in prepared.num_rows(view)
                continue
            found = [of_events(records(prepared.tfds_folder(view), view, name))]
            found.append(of_events(folded(where / view, "train")))
            assert found[0] == found[1], view
            assert prepared.num_rows(view).get(name, 0) >= len(found[0])
            total += len(found[0])
            if view == "groups":
                statistics.save(where / STATISTICS)
            if view == "next_items":
                counts = [CoOccurrence.load(f).later for f in (prepared.folder, where / view)]
                assert (counts[0] != counts[1]).nnz == 0
        for path in (where / STATISTICS).iterdir():
            there = prepared.folder / STATISTICS / path.name
            assert path.read_bytes() == there.read_bytes(), path
        return total


def of_events(rows: list[str]) -> list[str]:
    """Rows without items as documents."""
    found = []
    for text in rows:
        row = json.loads(text)
        if row.get("kind") != "item":
            found.append(json.dumps(row, sort_keys=True))
    return sorted(found)


def days_of(seed: int, number: int = 2) -> list[Log]:
    """A random log, cut at moments."""
    log = sorted(random_log(seed), key=lambda event: event[2])
    times = sorted({time for *_, time, _ in log})
    cuts = [times[len(times) * (6 + 2 * day) // (6 + 2 * number)] for day in range(number)]
    bounds = [-1.0, *cuts, float("inf")]
    return [
        [event for event in log if low <= event[2] < high]
        for low, high in itertools.pairwise(bounds)
    ]


SPLITS = (
    "per_user_temporal",
    "global_temporal",
    "held_out_items:fraction=0.3,seed=1",
    "few_shot:n=10,seed=1,history=sampled",
)


@pytest.mark.parametrize("seed", range(8))
def test_past_and_days_equal_all_at_once(
    write_shop, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "DENSE_ITEMS", (0, 4096)[seed % 2])
    monkeypatch.setattr(negatives, "NEGATIVES", 2)
    statistics = StatisticsOptions(
        neighbour_window=(3, 1000)[seed % 2],
        factor_growth=(0.03, 0.5)[seed % 2],
    )
    labelled = seed % 4 != 3
    days = Days(
        write_shop,
        days_of(seed),
        SPLITS[seed % len(SPLITS)],
        labelled,
        statistics,
        {"repeats": REPEATS[seed % 4 // 2]},
        views=(*VIEWS, *(("explanations", "titles") if labelled else ())),
        group_size=1 + seed % 4,
        next_items_size=1 + seed % 3,
        negative_power=0.0,
    )
    held_out = days.prepared.catalogue().held_out
    assert days.prepared.manifest.counts["held_out_items"] == held_out.sum()
    assert held_out.any() == days.split.startswith("held_out_items")
    before = {path: path.read_bytes() for path in days.out.rglob("*.tfrecord-*")}
    for day in (1, 2):
        days.add(day)
        prepared = days.update()
        assert days.compare(day, tmp_path / f"fold {day}") > 10
        assert prepared.updates[-1] == f"update_{day}"
        catalogue = prepared.catalogue()
        dataset = Dataset.open(days.folder)
        assert [item.id for item in catalogue.items] == [i.id for i in dataset.item_records]
        counted = np.zeros(len(catalogue.items), np.int64)
        fold = days.fold(day)
        for event, code in zip(
            fold.dataset.events().to_pylist(), fold.assignment.codes, strict=True
        ):
            if code in STATISTICS_PARTS:
                counted[event["item_index"]] += 1
        assert catalogue.train_counts.tolist() == counted.tolist()
        assert catalogue.held_out.tolist() == fold.assignment.held_out.tolist()
    # What was there is there, byte for byte.
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_past_of_an_updates_rows(write_shop) -> None:
    """As files of events tell it, and as it is rendered into the histories of rows."""
    log = [
        (user, (user + 5 * turn) % 12, float(8 * turn + user), 3.0 + (turn + user) % 3)
        for turn in range(10)
        for user in range(4)
    ]
    days = Days(
        write_shop, [log[:24], log[24:32], log[32:]], views=("next_items",), next_items_size=1
    )
    for day in (1, 2):
        days.add(day)
        prepared = days.update()
    rows = list(read_rows(prepared, "next_items", "update_2"))
    assert len(rows) > 4
    for row, past in zip(rows, past_items(prepared, "update_2"), strict=True):
        rendered = [item_of(text) for text in row["history"][1:-1]]
        assert rendered == past.tolist()[-days.options.max_events :]


def simple(write_shop, split: str = "per_user_temporal") -> Days:
    """A past of two users and a day with a new user and a new item."""
    past = [
        (user, item, 100.0 * item + user, 3.0 + item % 3) for item in range(10) for user in (0, 1)
    ]
    day = [(0, 10, 2000.0, 5.0), (2, 1, 2000.0, 4.0), (1, 3, 2100.0, 1.0)]
    return Days(write_shop, [past, day], split, views=("groups", "next_items"))


def test_an_update_of_new_users_and_items(write_shop, caplog) -> None:
    days = simple(write_shop)
    first = days.update()
    assert first.updates == ()  # no file is new
    counted = first.statistics().totals.events
    days.add(1)
    aside = (days.folder / "events-1.parquet").rename(days.folder.parent / "events-1.parquet")
    assert days.update().manifest == first.manifest
    assert "users-1.parquet, items-1.parquet: added with the next new events" in caplog.text
    aside.rename(days.folder / "events-1.parquet")
    with caplog.at_level(logging.INFO):
        prepared = days.update()
    (entry,) = prepared.manifest.updates
    # Of all files so far: new users and items have a part in the rows.
    whole = prepared.manifest.files
    assert [len(files) for files in whole.values()] == [2, 2, 2]
    assert (entry.name, entry.fingerprint) == ("update_1", fingerprint(whole))
    assert prepared.manifest.counts["events"]["update_1"] == 3
    assert prepared.manifest.last_time == 2100.0
    # Nobody had an item again before, so that it is ignored that u1 does now.
    for view, number in {"groups": 2, "next_items": 2}.items():
        assert prepared.num_rows(view)["update_1"] == number
    assert prepared.manifest.counts["users"] == 3
    assert prepared.statistics().totals.events == counted + 3
    # Once more: nothing is new.
    assert days.update().manifest == prepared.manifest
    assert not (prepared.folder / "unfinished").exists()
    # The same events under another name.
    shutil.copy(days.folder / "events-1.parquet", days.folder / "events-2.parquet")
    with pytest.raises(DataError, match=r"events-2\.parquet, row 0, .* is not later than 2100"):
        days.update()
    (days.folder / "events-2.parquet").unlink()
    # Preparing again makes one data set of all.
    with caplog.at_level(logging.INFO):
        whole = prepare(days.folder, days.out, days.split, days.options, progress=False)
    assert "the parts of its updates go" in caplog.text
    assert whole.updates == ()
    assert days.update().manifest == whole.manifest


def test_new_events_that_do_not_train_are_left_out(write_shop) -> None:
    """As a column says, or as users are drawn."""
    parts = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4 + ["train", "train", "test"]

    def with_parts(*events: Any, **spec: Any) -> Path:
        folder = write_shop(*events, **spec)
        declare_parts(folder, parts)
        return folder

    days = simple(with_parts, "by_column")
    days.add(1)
    assert days.update().manifest.counts["events"]["update_1"] == 2
    users = [f"u{user}" for user in range(8)]
    seed = next(s for s in range(99) if len(set(splits.by_name(users, seed=s))) == 3)
    past = [
        (user, item, 100.0 * item + user, 5.0 - item % 3) for item in range(6) for user in range(8)
    ]
    day = [(user, 7, 2000.0 + user, 5.0) for user in range(8)]
    other, split = {"folder": "other"}, f"by_user:seed={seed}"
    days = Days(write_shop, [past, day], split, spec=other, views=("next_items",))
    days.add(1)
    trained = (splits.by_name(users, seed=seed) == TRAIN).sum()
    assert days.update().num_rows("next_items")["update_1"] == trained < 8


def rewrite(days: Days, name: str, **columns: Any) -> None:
    """Puts other values into a file of events."""
    table = pq.read_table(days.folder / name)
    for column, values in columns.items():
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    pq.write_table(table, days.folder / name)


def test_what_is_refused(write_shop) -> None:
    days = simple(write_shop)
    before = days.prepared.manifest
    days.add(1)
    new, spec = days.folder / "events-1.parquet", days.folder / "dataset.json"
    whole, described = pq.read_table(new), json.loads(spec.read_text())

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            days.update()
        assert Prepared.open(days.out, "shop", "per_user_temporal").manifest == before
        pq.write_table(whole, new)
        spec.write_text(json.dumps(described))

    rewrite(days, new.name, time=[2000.0, 901.0, 2100.0])
    refused(r"events-1\.parquet, row 1, column 'time'.* not later than 901")
    rewrite(days, new.name, item_id=["i10", "i77", "i3"])
    refused(r"events-1\.parquet, row 1, .*'i77'")
    same = {"user_id": ["u0"] * 3, "item_id": ["i1"] * 3, "time": [2e3] * 3}
    rewrite(days, new.name, **same, rating=[4.0, 4.0, 5.0])
    refused("rows 0 and 1 of the events are the same event")
    statistics = days.prepared.folder / STATISTICS / DESCRIPTION
    written = statistics.read_text()
    statistics.write_text(written.replace(FORMAT, "m6rec-statistics-1"))
    refused("format 'm6rec-statistics-1'")
    statistics.write_text(written)
    for changed in (
        {"label": {"at_least": 3}},
        {"repeats": "count"},
        {"splits": {"per_user_temporal": {"train": 0.5}}},
    ):
        spec.write_text(json.dumps(described | changed))
        refused(r"dataset\.json has changed")
    first = days.folder / "items-0.parquet"
    old = pq.read_table(first)
    pq.write_table(old.slice(0, 9), first)
    refused(r"items-0\.parquet was prepared and has changed")
    pq.write_table(old, first)
    new.rename(days.folder / "events--1.parquet")
    refused(r"events-0\.parquet was prepared and .* another place")


def test_views_of_other_settings_get_no_part(write_shop, caplog) -> None:
    days = simple(write_shop)
    options = PrepareOptions(views=("next_items",), max_events=4)
    prepare(days.folder, days.out, days.split, options, progress=False)
    days.add(1)
    with caplog.at_level(logging.WARNING):
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


def test_an_update_that_is_killed(write_shop) -> None:
    """Before files take their places, nothing has changed; then, nothing counts as prepared."""
    days = simple(write_shop)
    days.add(1)
    before = days.prepared.manifest
    for renamed in (0, 3):
        command = [sys.executable, "-c", KILLED, str(days.folder), str(days.out), str(renamed)]
        assert subprocess.run(command).returncode == -signal.SIGKILL
        assert (days.prepared.folder / "unfinished").exists()
        if not renamed:
            assert Prepared.open(days.out, "shop", days.split).manifest == before
            assert not list(days.out.rglob("*update_1*.tfrecord-*-of-*"))
    with pytest.raises(DataError, match=r"holds no prepared 'shop"):
        days.update()
    prepared = prepare(days.folder, days.out, days.split, days.options, progress=False)
    assert len(prepared.catalogue().items) == 11
    assert not list(prepared.tfds_folder("groups").glob("*update_1*"))


def test_what_comes_during_an_update_is_not_taken_for_prepared(write_shop, monkeypatch) -> None:
    days = simple(write_shop)
    days.add(1)
    path, whole_run = days.folder / "events-1.parquet", update_module.run

    def late(*arguments, **options):
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
        return whole_run(*arguments, **options)

    monkeypatch.setattr(update_module, "run", late)
    assert days.update().manifest.counts["events"]["update_1"] == 3
    with pytest.raises(DataError, match=r"events-1\.parquet was prepared and has changed"):
        days.update()
