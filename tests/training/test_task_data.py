"""Task data that do not fit the model are refused before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.model import PromptConfig
from m6rec_jax.pipeline.evaluation_batches import EvaluationBatches
from m6rec_jax.training.task_data import check_labels, tell_what_is_cut
from tests.training import shop_run


def test_a_vocabulary_larger_than_the_embedding_names_both_and_the_fix(tmp_path: Path) -> None:
    shop_run.write_shop(tmp_path / "data")
    size = shop_run.register(tmp_path / "data").size
    with pytest.raises(ConfigError, match=rf"shop.model\) has {size} ids.*VOCAB_SIZE = {size}"):
        shop_run.shop_train(tmp_path / "data", tmp_path / "run", 1, spare_rows=-128)


def test_what_is_cut_is_measured_on_the_part_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop_run.write_shop(tmp_path)
    shop_run.register(tmp_path)
    read = []
    measure = EvaluationBatches.__init__

    def measured(own: EvaluationBatches, *given: Any, **options: Any) -> None:
        read.append(options["split"])
        measure(own, *given, **options)

    monkeypatch.setattr(EvaluationBatches, "__init__", measured)
    gin.bind_parameter("BatchIterator.split", "validation")
    try:
        tell_what_is_cut(shop_run.MIXTURE, shop_run.LENGTHS)
    finally:
        gin.clear_config()
    assert set(read) == {"validation"}


def test_a_label_without_a_class_is_refused() -> None:
    """It would train as a loss of 0, and count."""
    labels = np.array([[-1, 1, -1], [2, -1, 0], [-1, -1, -1]], np.int32)
    batch = {"decoder_labels": labels, "task_ids": np.array([[0], [1], [2]], np.int32)}
    sizes = {"num_tasks": 3, "num_prompts": 3, "num_options": 3, "head": "option"}
    check_labels(batch, PromptConfig(**sizes, task_num_options=(2, 3, 0)))
    with pytest.raises(ConfigError, match=r"prompt row 1 has the label 2, .* num_options = 2 cl"):
        check_labels(batch, PromptConfig(**sizes, task_num_options=(3, 2, 0)))
    with pytest.raises(ConfigError, match=r"prompt row 0 has the label 1, .* num_options = 0 cl"):
        check_labels(batch, PromptConfig(**sizes, task_num_options=(0, 3, 0)))
    with pytest.raises(ConfigError, match=r"prompt row 1 has the label 2"):
        check_labels(batch, PromptConfig(num_tasks=3, num_options=2, head="linear"))
    check_labels(batch, PromptConfig())  # language alone
    check_labels({"task_ids": batch["task_ids"]}, PromptConfig(**sizes))
