"""What t5x reads: the feature converter of its data sets, and the rows of training.

train.get_dataset_fn = @training_dataset
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gin
import tensorflow as tf
from t5x import utils

from m6rec_jax.errors import ConfigError
from m6rec_jax.pipeline.batches import training_shard
from m6rec_jax.pipeline.feature_converter import M6RecFeatureConverter
from m6rec_jax.pipeline.features import COUNT_FEATURES
from m6rec_jax.pipeline.task_rows import find_provider


class T5xFeatureConverter(M6RecFeatureConverter):
    """Rows of model features, as t5x asks for them.

    Differs from the one that our own training uses in what t5x needs: the bookkeeping of rows that
    were too long is gone, since t5x would hand it to the model.

    Args:
      pack: pack documents, see `m6rec_jax.pipeline.feature_converter`.
      use_custom_packing_ops: t5x says it; packing is our own in either case.
    """

    MODEL_FEATURES: ClassVar[Mapping[str, Any]] = {
        name: spec
        for name, spec in M6RecFeatureConverter.MODEL_FEATURES.items()
        if name not in COUNT_FEATURES
    }

    def __init__(self, pack: bool = False, use_custom_packing_ops: bool = False) -> None:
        del use_custom_packing_ops
        super().__init__(pack=pack)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        lengths = super().get_model_feature_lengths(task_feature_lengths)
        return {name: length for name, length in lengths.items() if name not in COUNT_FEATURES}

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        return _without_counts(super()._convert_features(ds, task_feature_lengths))


@gin.configurable
def training_dataset(
    cfg: utils.DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any = None,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
    """The batches of `m6rec train`: with the same seed, and as many shards, the very same ones.

    t5x's own `get_dataset` would keep small data sets in memory, and therefore in every checkpoint
    of the position in the data, and knows no rows that vary at random (sub-word sampling).

    Args:
      cfg: t5x's `DatasetConfig`; its `seed` must be set, and `shuffle` is taken to be.
      shard_id, num_shards: of this process, as t5x has them.
      feature_converter_cls, num_epochs, continue_from_last_checkpoint: as t5x gives them; batches
        are of `T5xFeatureConverter` and never end.

    Raises:
      ConfigError: no seed, no such task, or a batch that the shards do not divide.
    """
    del feature_converter_cls, num_epochs, continue_from_last_checkpoint
    if cfg.seed is None:
        raise ConfigError("train/utils.DatasetConfig.seed = None; set DATA_SEED to a number")
    if cfg.batch_size % num_shards:
        raise ConfigError(
            f"BATCH_SIZE = {cfg.batch_size} must be a multiple of the {num_shards} processes that "
            "load data"
        )
    batches = training_shard(
        find_provider(cfg.mixture_or_task_name),
        cfg.task_feature_lengths,
        cfg.batch_size // num_shards,
        split=cfg.split,
        seed=cfg.seed,
        shard=shard_id,
        num_shards=num_shards,
        pack=cfg.pack,
    )
    return _without_counts(batches)


def _without_counts(rows: tf.data.Dataset) -> tf.data.Dataset:
    def of_model(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: values for name, values in row.items() if name not in COUNT_FEATURES}

    return rows.map(of_model, num_parallel_calls=tf.data.AUTOTUNE)
