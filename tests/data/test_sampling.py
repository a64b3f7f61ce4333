"""Samples of data sets are cores: nobody and nothing in them is rare."""

import collections

import numpy as np
import pyarrow.parquet as pq
import pytest

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.dataset.sampling import sample_dataset
from m6rec_jax.data.splitting.splits import PART_NAMES
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.templates import DatasetTemplate
from tests.data.conftest import declare_parts


@pytest.fixture
def shop(write_shop):
    rng = np.random.default_rng(0)
    events = [
        (user, int(item), float(time), float(rng.integers(1, 6)))
        for user in range(30)
        for time, item in enumerate(rng.choice(40, rng.integers(1, 12), replace=False))
    ]
    return write_shop(events, num_users=32, num_items=40)


def core(events, min_user, min_item):
    """Rows of a k-core, by the definition."""
    while True:
        users = collections.Counter(user for user, *_ in events)
        items = collections.Counter(item for _, item, *_ in events)
        kept = [e for e in events if users[e[0]] >= min_user and items[e[1]] >= min_item]
        if len(kept) == len(events):
            return kept
        events = kept


def rows(folder):
    table = Dataset.open(folder).events()
    columns = (table.column(name).to_pylist() for name in ("user_id", "item_id", "time", "value"))
    return list(zip(*columns, strict=True))


def test_a_sample_of_all_users_is_the_core(shop, tmp_path):
    """Whose items are rare without the users that go, and so on, six times."""
    folder = sample_dataset(shop, tmp_path, min_user_events=5, min_item_events=4)
    assert folder == tmp_path / "shop-small"
    expected = core(rows(shop), 5, 4)
    assert 0 < len(expected) < len(rows(shop))
    assert rows(folder) == expected  # and in the same order
    dataset = Dataset.open(folder)
    assert {u.id for u in dataset.user_records} == {user for user, *_ in expected}
    assert {i.id for i in dataset.item_records} == {item for _, item, *_ in expected}
    original = Dataset.open(shop)
    assert dataset.spec.template == original.spec.template
    assert dataset.item_records[0] in original.item_records


def test_events_keep_the_parts_that_a_column_names(shop, tmp_path):
    """Also where they are read in more than one batch."""
    drawn = np.random.default_rng(1).choice([*PART_NAMES], len(rows(shop)))
    declare_parts(shop, drawn.tolist())
    events = shop / "events.parquet"
    pq.write_table(pq.read_table(events), events, row_group_size=7)
    folder = sample_dataset(shop, tmp_path, min_user_events=4, min_item_events=3)
    parts = dict(zip(rows(shop), Dataset.open(shop).event_parts().tolist(), strict=True))
    kept = Dataset.open(folder).event_parts().tolist()
    assert kept == [parts[row] for row in rows(folder)]
    assert 7 < len(kept) < len(parts)


def test_no_other_data_set_is_written_over(shop, write_shop, tmp_path):
    """Also not the source, whose folder may have another name than the data set."""
    twin = write_shop([(0, 1, 2.0, 4.0)], name="ratings", folder="ratings-small")
    events = (twin / "events.parquet").read_bytes()
    with pytest.raises(ConfigError, match="was not made by sampling; it stays as it is"):
        sample_dataset(twin, tmp_path, min_user_events=1, min_item_events=1)
    with pytest.raises(ConfigError, match="was not made by sampling; it stays as it is"):
        sample_dataset(shop, tmp_path, "ratings-small", min_user_events=1)
    assert (twin / "events.parquet").read_bytes() == events
    # A sample made otherwise is made anew.
    for users in (10, 11):
        sample_dataset(shop, tmp_path, users=users, min_user_events=1, min_item_events=1)
        assert len(Dataset.open(tmp_path / "shop-small").user_records) == users


def test_users_are_drawn_by_their_ids(shop, tmp_path):
    folder = sample_dataset(shop, tmp_path, "ten", users=10, min_user_events=3, min_item_events=2)
    found = rows(folder)
    assert core(found, 3, 2) == found
    assert len({user for user, *_ in found}) <= 10
    other = sample_dataset(shop, tmp_path, "other", users=10, seed=1)
    assert {user for user, *_ in rows(other)} != {user for user, *_ in found}
    # The order of the users table plays no part.
    users = pq.read_table(shop / "users.parquet")
    pq.write_table(users.take(list(range(users.num_rows))[::-1]), shop / "users.parquet")
    again = sample_dataset(shop, tmp_path, "again", users=10, min_user_events=3, min_item_events=2)
    assert sorted(rows(again)) == sorted(found)


def test_values_of_a_sample(shop, tmp_path):
    folder = sample_dataset(
        shop, tmp_path, "valued", min_item_events=2, min_value=2, value_scale=0.5
    )
    expected = core([event for event in rows(shop) if event[3] >= 2], 1, 2)
    assert rows(folder) == [(*others, value / 2) for *others, value in expected]
    spec, original = (Dataset.open(path).spec for path in (folder, shop))
    assert spec.label.at_least == original.label.at_least / 2
    # What was liked and what an event is called stay as they were.
    values = np.arange(1.0, 6.0)
    assert (spec.label.labels(values / 2) == original.label.labels(values)).all()
    before, after = (DatasetTemplate.parse(of.template).outcome for of in (original, spec))
    assert [after(value / 2) for value in values] == [before(value) for value in values]


def test_a_sample_that_is_there_is_left_alone(shop, tmp_path):
    folder = sample_dataset(shop, tmp_path, min_item_events=2)
    first = (folder / "events.parquet").stat().st_mtime_ns
    sample_dataset(shop, tmp_path, min_item_events=2)
    assert (folder / "events.parquet").stat().st_mtime_ns == first
    sample_dataset(shop, tmp_path, min_item_events=3)
    assert (folder / "events.parquet").stat().st_mtime_ns != first


def test_impossible_samples(shop, write_shop, tmp_path):
    with pytest.raises(DataError, match=r"nothing is left of .*'min_user_events': 99"):
        sample_dataset(shop, tmp_path, min_user_events=99, users=2)
    for options in ({"users": 0}, {"value_scale": 0}, {"min_item_events": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}': 0"):
            sample_dataset(shop, tmp_path, **options)
    assert not (tmp_path / "shop-small").exists()
    clicks = write_shop([(0, 0, 0.0, None), (0, 1, 1.0, None)], labelled=False)
    with pytest.raises(ConfigError, match="have no values"):
        sample_dataset(clicks, tmp_path, value_scale=0.5)
