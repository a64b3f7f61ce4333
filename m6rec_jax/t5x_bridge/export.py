"""Exported models take rows of tokens: `m6rec_jax.text.rows` makes them of text, in Python.

save.create_preprocessor_fn = @row_inputs
save.inference_mode = @CustomInferenceMode()     # of t5x.export_lib
CustomInferenceMode.model_fn_name = 'scores'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import tensorflow as tf

from m6rec_jax.pipeline.features import MODEL_FEATURES
from m6rec_jax.t5x_bridge.data import T5xFeatureConverter


@gin.configurable
def row_inputs(
    batch_size: int | None,
    output_features: Any,
    task_feature_lengths: Mapping[str, int],
    tokenized_inputs: bool,
) -> tuple[Callable[..., dict[str, tf.Tensor]], Sequence[tf.TensorSpec]]:
    """Inputs of the exported function, by the features' own names.

    Args:
      batch_size: None: any.
      output_features, tokenized_inputs: of t5x; tokens are the only inputs.
      task_feature_lengths: `{"inputs": S, "targets": T}`.

    Returns:
      A function of the inputs that names them, and their specs, `[batch, length]` each.
    """
    del output_features, tokenized_inputs
    lengths = T5xFeatureConverter().get_model_feature_lengths(task_feature_lengths)
    specs = [
        tf.TensorSpec([batch_size, lengths[name]], tf.as_dtype(feature.dtype), name=name)
        for name, feature in MODEL_FEATURES.items()
    ]

    def named(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(MODEL_FEATURES, inputs, strict=True))

    return named, specs
