"""What scores stand beside, where few samples are trained on and histories are whole."""

from types import SimpleNamespace

import numpy as np
import pytest

from m6rec_jax.data.event_table import assign
from m6rec_jax.data.reading import Dataset
from m6rec_jax.data.splits import STATISTICS_PARTS, TEST, TRAIN, Split
from m6rec_jax.jobs.scoring import mean_baselines
from m6rec_jax.pipeline.prepared_rows import interactions
from tests.tasks import shop


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("split", ["leave_one_out", "few_shot:n=4,seed=1,of=leave_one_out"])
def test_a_users_own_likes_are_those_of_the_history(split, part, tmp_path) -> None:
    (prepared,) = shop.prepare_shop(tmp_path, (split,))
    data = SimpleNamespace(
        prepared=lambda: prepared,
        interactions=lambda part: interactions(prepared, part),
        repeats_count=False,
        part=part,
    )
    evaluation = SimpleNamespace(data=data, once=lambda _, make: make())
    found = mean_baselines(evaluation)  # type: ignore[arg-type]
    dataset = Dataset.open(tmp_path / "tiny-shop")
    codes = assign(dataset, Split.parse(split)).codes
    events = dataset.events().to_pylist()
    train = [e["value"] >= 4 for e, code in zip(events, codes, strict=True) if code == TRAIN]
    assert found.global_mean == pytest.approx(np.mean(train))
    visible = {
        *STATISTICS_PARTS,
        *Split.parse(split).visible_parts[TEST if part == "test" else TRAIN],
    }
    seen = [e for e, code in zip(events, codes, strict=True) if code in visible]
    mean = np.mean([e["value"] >= 4 for e in seen])
    for user in range(len(dataset.users)):
        likes = [e["value"] >= 4 for e in seen if e["user_index"] == user]
        assert found.user_means[user] == pytest.approx((sum(likes) + 5 * mean) / (len(likes) + 5))
