"""The baselines get the project's own rows and splits."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.baselines.export_splits import export
from benchmarks.baselines.exported_splits import read_exported
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.splitting import splits
from tests.data.conftest import write_shop
from tests.data.plain_splits import plain_split

__all__ = ["write_shop"]


@pytest.fixture
def dataset(write_shop) -> Dataset:
    """Two users whose events stand mixed and share times, so that the tie-break matters."""
    rng = np.random.default_rng(0)
    log = [
        (user, item, float(rng.integers(1, 4)), float(rng.integers(1, 6)))
        for item in range(20)
        for user in (1, 0)
    ]
    return Dataset.open(write_shop(log, num_users=2, num_items=20))


def test_export_keeps_order_labels_and_splits(dataset: Dataset, tmp_path: Path) -> None:
    counts = export(dataset, tmp_path / "out")
    assert counts["per_user_temporal"] == {"train": 32, "validation": 4, "test": 4}
    assert counts["leave_one_out"] == {"train": 36, "validation": 2, "test": 2}
    data = read_exported(tmp_path / "out")
    assert data.users.column("user_id").to_pylist() == ["u0", "u1"]
    assert data.items.column("tags").to_pylist()[0] == ["red", "green"]

    # By hand: a user's rows by time, and among equal times as the file has them.
    events = dataset.events().to_pylist()
    expected = sorted(events, key=lambda row: (row["user_index"], row["time"], row["row"]))
    assert data.item.tolist() == [row["item_index"] for row in expected]
    assert data.label.tolist() == [int(row["value"] >= 4) for row in expected]
    assert data.leave_one_out[19] == "test"
    assert data.leave_one_out[18] == "validation"

    # Split in the order of the file, as our own pipeline does, every row falls into the same part.
    table = dataset.events()
    codes = plain_split(
        "per_user_temporal",
        table.column("user_index").to_numpy(),
        table.column("time").to_numpy(),
    )
    ours = {
        (row["user_index"], row["item_index"]): splits.PARTS[code]
        for row, code in zip(events, codes, strict=True)
    }
    theirs = dict(
        zip(
            zip(data.user.tolist(), data.item.tolist(), strict=True),
            data.per_user_temporal.tolist(),
            strict=True,
        )
    )
    assert theirs == ours
