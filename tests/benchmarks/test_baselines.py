"""The baselines' arithmetic, on data small enough to work out by hand or in another way."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.baselines import retrieval
from benchmarks.baselines.exported_splits import ExportedSplits, read_exported
from m6rec_jax.data.features import co_occurrence
from m6rec_jax.data.features.co_occurrence import CoOccurrence
from m6rec_jax.errors import DataError


def small(num_users: int = 6, num_items: int = 12, per_user: int = 10) -> ExportedSplits:
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(num_users), per_user)
    item = np.concatenate([rng.permutation(num_items)[:per_user] for _ in range(num_users)])
    value = rng.integers(1, 6, len(user)).astype(float)
    place = np.tile(np.arange(per_user), num_users)
    part = np.select([place < 8, place < 9], ["train", "validation"], "test")
    return ExportedSplits(
        users=pa.table({"user_id": [str(u) for u in range(num_users)]}),
        items=pa.table({"item_id": [str(i) for i in range(num_items)]}),
        user=user,
        item=item,
        time=place.astype(float),
        value=value,
        label=(value >= 4).astype(np.int64),
        per_user_temporal=part,
        leave_one_out=part,
    )


def test_ease_solves_the_regression_of_each_item() -> None:
    """Column j of EASE is the ridge regression of item j on all the others."""
    data = small()
    train = retrieval.interactions(data, "train")
    penalty, j = 3.0, 4
    others = np.delete(np.arange(train.shape[1]), j)
    x = train[:, others].astype(np.float64)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(len(others)), x.T @ train[:, j])
    scores = retrieval.ease(train, train, penalty)
    np.testing.assert_allclose(scores[:, j], x @ weights, atol=1e-6)


def test_item_knn_sums_cosines_of_the_nearest() -> None:
    data = small()
    train = retrieval.interactions(data, "train")
    neighbours, target = 3, 5
    cosine = np.array(
        [
            train[:, i] @ train[:, target] / np.sqrt(train[:, i].sum() * train[:, target].sum())
            if i != target
            else 0.0
            for i in range(train.shape[1])
        ]
    )
    nearest = np.argsort(-cosine, kind="stable")[:neighbours]
    expected = train[:, nearest] @ cosine[nearest]
    scores = retrieval.item_knn(train, train, neighbours)
    np.testing.assert_allclose(scores[:, target], expected, rtol=1e-5)


def test_co_occurrence_is_the_packages(monkeypatch) -> None:
    """Two implementations of one definition: over a square array, and event by event."""
    data = small()
    scores = retrieval.co_occurrence(data, ("train", "validation"), 3, 4, 2.0)
    for name, value in (("WINDOW", 3), ("RECENT", 4), ("SMOOTHING", 2.0)):
        monkeypatch.setattr(co_occurrence, name, value)
    rows = data.rows("leave_one_out", "train")
    users, items = data.user[rows], data.item[rows]
    counted = CoOccurrence.counted(users, items, data.items.num_rows)
    for user in range(data.users.num_rows):
        own = (data.user == user) & (data.leave_one_out != "test")
        found = counted.related(data.item[own].tolist())
        expected = np.zeros(data.items.num_rows)
        expected[found.items] = found.shares * (1 + 1 / 2 + 1 / 3 + 1 / 4)
        left = np.setdiff1d(np.arange(data.items.num_rows), data.item[own])
        np.testing.assert_allclose(scores[user, left], expected[left], atol=1e-9)


def write_export(folder: Path, data: ExportedSplits) -> None:
    pq.write_table(data.users, folder / "users.parquet")
    pq.write_table(data.items, folder / "items.parquet")
    names = ("user", "item", "time", "value", "per_user_temporal", "leave_one_out")
    pq.write_table(pa.table({n: getattr(data, n) for n in names}), folder / "events.parquet")


def test_export_out_of_order_or_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="export_splits"):
        read_exported(tmp_path)
    data = small()
    data.time[3] = 99.0
    write_export(tmp_path, data)
    with pytest.raises(DataError, match="not ordered"):
        read_exported(tmp_path)
