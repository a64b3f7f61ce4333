"""Which exits are chosen: against loops over candidates and all settings."""

import numpy as np
import pytest

from m6rec_jax.engine.task_settings import NEVER, ExitSettings
from m6rec_jax.evaluation.calibration import (
    SCORING_THRESHOLDS,
    ExitScores,
    cheapest,
)
from m6rec_jax.metrics.classification import auc

N, EXITS = 240, 6


@pytest.fixture(scope="module")
def scores() -> ExitScores:
    """Every layer halves the noise, so deep exits are better and change less."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=N)
    noise = rng.normal(size=(N, EXITS)) * 2.0 ** -np.arange(EXITS)
    probabilities = 1 / (1 + np.exp(-(logits[:, None] + noise)))
    labels = (rng.random(N) < 1 / (1 + np.exp(-2 * logits))).astype(np.int64)
    return ExitScores(labels, probabilities, np.arange(N) // 40)


def taken_by_loop(scores: ExitScores, settings: ExitSettings) -> list[int]:
    found = []
    for values in scores.probabilities:
        k = 1
        while k < settings.depth:
            k += 1
            if 1 - abs(values[k - 1] - values[k - 2]) >= settings.threshold:
                break
        found.append(k)
    return found


def test_cheapest_loses_no_more_than_was_said(scores: ExitScores) -> None:
    whole = scores.auc(ExitSettings(NEVER, EXITS))
    assert whole == auc(scores.labels, scores.probabilities[:, -1])
    costs = []
    for max_loss in (0.0, 0.01, 0.1, 0.9):
        chosen = cheapest(scores, max_loss)
        taken = taken_by_loop(scores, chosen)
        assert scores.exits_taken(chosen).tolist() == taken
        quality = auc(scores.labels, scores.probabilities[np.arange(N), np.array(taken) - 1])
        assert scores.auc(chosen) == quality >= whole * (1 - max_loss)
        costs.append(np.mean([max(taken[start : start + 40]) for start in range(0, N, 40)]))
        assert scores.mean_exits(chosen) == costs[-1]
        for depth in range(1, EXITS + 1):
            for threshold in (*SCORING_THRESHOLDS, NEVER):
                other = ExitSettings(threshold, depth)
                if scores.auc(other) >= whole * (1 - max_loss):
                    assert scores.mean_exits(other) >= costs[-1]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 1
