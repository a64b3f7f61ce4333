"""How much of a run validations take, and on which rows they are."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.training.metric_log import read_metrics
from m6rec_jax.training.options import Validation
from m6rec_jax.training.validation import MOST_ROWS, TRAINING_COST, plan_validation
from tests.training.toy_run import ROWS, toy_train, toy_validation


def test_validations_are_at_most_a_fifth_of_a_run() -> None:
    """Every validation of the steps of a run is counted, at every size."""
    choices = ([1, 7, 100, 500], [1, 99, 100, 101, 1000, 1999], [4, 32], [1, 2], [0.0, 40.0, 3e3])
    affordable = 0
    for period, steps, batch, passes, fixed, first in itertools.product(*choices, [False, True]):
        plan = plan_validation(
            period, steps, batch, passes=passes, fixed_cost=fixed, first=first, least_rows=1
        )
        times = sum(step % plan.period == 0 or step == steps for step in range(1, steps + 1))
        cost = (times + first) * (plan.rows * passes + fixed)
        work = TRAINING_COST * steps * batch
        assert plan.period % period == 0
        assert 1 <= plan.rows <= MOST_ROWS
        assert plan.rows == 1 or cost <= 0.2 * (cost + work), (period, steps, batch, plan)
        affordable += plan.rows > 1
    assert affordable > 300


def test_the_rows_asked_for_reach_both_passes(tmp_path: Path) -> None:
    class Metrics:
        sample = 0

        def __call__(self, *_: object) -> dict[str, float]:
            return {"seen": float(self.sample)}

    asked: list[int] = []

    def batches(*arguments: object, sample: int, **options: object) -> list[dict[str, np.ndarray]]:
        asked.append(sample)
        return toy_validation()

    given = {"validation": batches, "evaluate": Metrics(), "eval_period": 4}
    toy_train(tmp_path, 4, **given)
    assert asked == [ROWS]  # the least; a fifth of 4 steps is less
    seen = [line["validation/seen"] for line in read_metrics(tmp_path) if "validation/seen" in line]
    assert seen == [ROWS]


@pytest.mark.parametrize(
    ("name", "given", "mode"),
    [
        ("validation/loss", None, "min"),
        ("validation/loss/films", None, "min"),
        ("validation/books/generation_perplexity", None, "min"),
        ("validation/calibration_error", None, "min"),
        ("validation/ndcg@10", None, "max"),
        ("validation/silent_share", "min", "min"),
    ],
)
def test_what_is_best_goes_by_the_name(name: str, given: str | None, mode: str) -> None:
    assert Validation(period=1, best_metric=name, best_mode=given).mode == mode
