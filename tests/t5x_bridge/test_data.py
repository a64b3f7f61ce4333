"""t5x reads the very batches of the built-in trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.data.getting.sources import DATA_DIR_VARIABLE
from m6rec_jax.errors import ConfigError
from m6rec_jax.pipeline.batches import BatchIterator
from m6rec_jax.pipeline.features import MODEL_FEATURES
from m6rec_jax.pipeline.registration import register_recommendation_tasks, unregister
from tests.t5x_bridge.needs_t5x import REASON
from tests.tasks import shop

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)

from t5x import utils

from m6rec_jax.t5x_bridge.data import training_dataset

LENGTHS = {"inputs": 64, "targets": 48}


@pytest.fixture
def pretrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mixture with random masks."""
    for prepared in shop.prepare_shop(tmp_path):
        shop.shop_vocabulary(prepared.folder / "vocabulary.model")
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    names = register_recommendation_tasks("bridged_shop", "tiny-shop", split="leave_one_out")
    yield "bridged_shop_pretrain"
    unregister(names)


def config(name: str, **changes: object) -> utils.DatasetConfig:
    values = {"seed": 3, "pack": False, "batch_size": 4, "shuffle": True, "use_cached": False}
    return utils.DatasetConfig(
        mixture_or_task_name=name,
        task_feature_lengths=LENGTHS,
        split="train",
        **(values | changes),
    )


@pytest.mark.parametrize("pack", [False, True])
def test_batches_are_those_of_m6rec_train(pretrain: str, pack: bool) -> None:
    ours = BatchIterator(pretrain, LENGTHS, 4, seed=3, num_shards=1, pack=pack)
    theirs = training_dataset(config(pretrain, pack=pack), 0, 1).as_numpy_iterator()
    for _ in range(5):
        expected, found = next(ours), next(theirs)
        assert set(found) == set(expected)
        assert set(MODEL_FEATURES) <= set(found)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    ours.close()


def test_errors(pretrain: str) -> None:
    with pytest.raises(ConfigError, match="DATA_SEED"):
        training_dataset(config(pretrain, seed=None), 0, 1)
    with pytest.raises(ConfigError, match="BATCH_SIZE = 4 must be a multiple of the 3 processes"):
        training_dataset(config(pretrain), 0, 3)
