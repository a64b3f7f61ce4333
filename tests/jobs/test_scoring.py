"""What scores stand beside, where few samples are trained on and histories are whole."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.splitting.event_table import assign
from m6rec_jax.data.splitting.splits import PARTS, STATISTICS_PARTS, TRAIN, Split
from m6rec_jax.jobs.scoring import ScoringPredictions, mean_baselines, scoring_metrics
from m6rec_jax.metrics.baselines import MeanBaselines
from m6rec_jax.pipeline.prepared_rows import interactions
from tests.tasks import shop


def test_one_label_has_no_auc_and_ends_nothing(caplog) -> None:
    """Of rare conversions the rows of a validation may hold none."""
    some = np.zeros(4, np.int64)
    found = scoring_metrics(ScoringPredictions(*[some] * 4, np.full(4, 0.25), np.zeros(4)))
    assert found["log_loss"] == pytest.approx(-np.log(0.75))
    assert "auc" not in found
    assert "all 4 labels are 0" in caplog.text
    fitted = MeanBaselines.fit(some, some, some, 1, 1)
    assert set(fitted.scoring_metrics(some, some, some)["item_mean"]) == {"log_loss"}


@pytest.mark.parametrize(
    ("split", "part"),
    [
        *itertools.product(
            ["leave_one_out", "few_shot:n=4,seed=1,of=leave_one_out"], ["train", "test"]
        ),
        # Where users are split, rows see the user's events of their own part, as of then.
        ("by_user:train=0.4,validation=0.3", "validation"),
    ],
)
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
    code = PARTS.index(part)
    visible = {*STATISTICS_PARTS, *Split.parse(split).visible_parts[code]} - ({code} - {TRAIN})
    seen = [e for e, code in zip(events, codes, strict=True) if code in visible]
    mean = np.mean([e["value"] >= 4 for e in seen])
    for user in range(len(dataset.users)):
        likes = [e["value"] >= 4 for e in seen if e["user_index"] == user]
        assert found.user_means[user] == pytest.approx((sum(likes) + 5 * mean) / (len(likes) + 5))
