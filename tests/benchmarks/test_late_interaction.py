"""The study's engines score as those without a cache do; its figures are those counted by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from benchmarks import late_interaction
from m6rec_jax.engine.candidates.scoring import Scorer


class Clock:
    """Stands for `time`."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_every_variant_scores_as_without_a_cache(
    shop_vocabulary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_interaction, "S", 32)
    models = late_interaction.configs(4, 8, shop_vocabulary.size)
    chosen = {name: models[name] for name in ("full", "1 late", "3 late, ends")}
    engines = late_interaction.scorers(chosen, shop_vocabulary)
    asked: Any = [["a film", "another one"]], [["Film A", "Film B"]]
    for name, (scorer, cache) in engines.items():
        assert (cache is None) == (name == "full")
        found = scorer.score_requests(*asked)[0]
        if cache is None:
            continue
        without = dataclasses.replace(scorer.options, segments=None)
        plain = Scorer(scorer.model, scorer.variables, shop_vocabulary, without)
        np.testing.assert_allclose(found, plain.score_requests(*asked)[0], atol=1e-4)
        for again in (False, True):
            before = [pool.computed for pool in (cache.source, cache.candidates)]
            scorer.score_requests(*asked)
            new = np.subtract([cache.source.computed, cache.candidates.computed], before)
            assert not new.any() if not again else new.all()
            cache.source.clear()
            cache.candidates.clear()


class Timed:
    """A scorer and its cache: an answer takes so long, and longer when the cache is empty."""

    def __init__(self, clock: Clock, seconds: list[float], cold: float = 0.0) -> None:
        self.clock, self.seconds, self.cold, self.is_cold = clock, seconds, cold, False
        self.source = self.candidates = self

    def clear(self) -> None:
        self.is_cold = True

    def score_requests(self, histories: Any, candidates: Any) -> None:
        self.clock.now += self.cold if self.is_cold else self.seconds.pop(0)
        self.is_cold = False


def test_figures_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first turn, which compiles, does not count."""
    clock = Clock()
    monkeypatch.setattr(late_interaction, "time", clock)
    full = Timed(clock, [99.0, 8.0, 6.0, 10.0])
    late = Timed(clock, [77.0, 2.0, 1.0, 4.0], cold=5.0)
    engines: Any = {"full": (full, None), "late": (late, late)}
    assert late_interaction.measure(engines, [], [], turns=3) == {
        "full": pytest.approx(
            {"request_milliseconds": 8000, "request_p95_milliseconds": 9800, "times_faster": 1}
        ),
        "late": pytest.approx(
            {
                "request_milliseconds": 2000,
                "request_p95_milliseconds": 3800,
                "times_faster": 4,
                "cold_milliseconds": 5000,
            }
        ),
    }
