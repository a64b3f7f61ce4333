"""The study's engines score the same, whatever they cache."""

from typing import Any

import numpy as np
import pytest

from benchmarks import late_interaction


def test_every_variant_is_measured(shop_vocabulary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_interaction, "S", 32)
    models = late_interaction.configs(4, 8, shop_vocabulary.size)
    chosen = {name: models[name] for name in ("full", "3 late, ends")}
    engines = late_interaction.scorers(chosen, shop_vocabulary)
    history, candidates = ["a film", "another one"], ["Film A", "Film B"]
    found = late_interaction.measure(engines, history, candidates, turns=1)
    assert found["full"]["times_faster"] == 1
    assert found["3 late, ends"]["cold_milliseconds"] > 0
    scorer, cache = engines["3 late, ends"]
    warm = scorer.score_requests([history], [candidates])[0]
    assert cache is not None
    cache.clear()
    np.testing.assert_allclose(scorer.score_requests([history], [candidates])[0], warm, atol=1e-6)
