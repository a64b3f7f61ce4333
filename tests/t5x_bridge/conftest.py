"""A task without data (nothing is read before it is used), and gin as it was."""

from __future__ import annotations

from collections.abc import Iterator

import gin
import pytest

import m6rec_jax.objectives  # noqa: F401  gin knows its settings only then
from m6rec_jax.pipeline.registration import register_recommendation_tasks, unregister
from m6rec_jax.text.vocabulary import Vocabulary


@pytest.fixture
def task(shop_vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A scoring task."""
    monkeypatch.setenv("M6REC_VOCABULARY", str(shop_vocabulary.model_file))
    names = register_recommendation_tasks("bridged", "nowhere")
    yield "bridged_ctr"
    unregister(names)


@pytest.fixture(autouse=True)
def objectives() -> Iterator[None]:
    """Language modelling and classification together, whose denominators differ."""
    gin.clear_config()
    gin.bind_parameter("total_loss.classification_weight", 0.5)
    yield
    gin.clear_config()
