"""What t5x reads: the feature converter of its data sets, and the rows of training.

train.get_dataset_fn = @training_dataset
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gin
import tensorflow as tf
from t5x import utils

from m6rec_jax.pipeline.feature_converter import M6RecFeatureConverter
from m6rec_jax.pipeline.features import COUNT_FEATURES
from m6rec_jax.pipeline.preprocessors import training_rows


class T5xFeatureConverter(M6RecFeatureConverter):
    """Rows of model features, as t5x asks for them.

    Differs from the one that our own training uses in what t5x needs: the bookkeeping of rows that
    were too long is gone, since t5x would hand it to the model.

    Args:
      pack: pack documents, see `m6rec_jax.pipeline.packing`.
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
        def without_counts(row: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {name: values for name, values in row.items() if name not in COUNT_FEATURES}

        rows = super()._convert_features(ds, task_feature_lengths)
        return rows.map(without_counts, num_parallel_calls=tf.data.AUTOTUNE)


@gin.configurable
def training_dataset(*args: Any, **kwargs: Any) -> Any:
    """t5x's `get_dataset`; rows may vary at random (sub-word sampling), as in `m6rec train`.

    Args:
      args, kwargs: as t5x gives them.
    """
    with training_rows():
        return utils.get_dataset(*args, **kwargs)
