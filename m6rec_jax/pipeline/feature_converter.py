"""Task features to model features: fixed lengths, optionally several documents per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import seqio
import tensorflow as tf

from m6rec_jax.pipeline import packing
from m6rec_jax.pipeline.features import SEGMENT_FEATURES, TASK_FEATURES, Feature, feature_lengths


def _specs(features: Mapping[str, Feature]) -> dict[str, Any]:
    spec = seqio.FeatureConverter.FeatureSpec
    return {name: spec(dtype=tf.as_dtype(feature.dtype)) for name, feature in features.items()}


class M6RecFeatureConverter(seqio.FeatureConverter):
    """Trims and pads every feature to its length; the preprocessors have laid the rows out.

    Block ids (segments of one document, whose positions restart) are features of the task, since
    only the preprocessor knows where a behaviour ends. With `pack=True` several documents share a
    row, and `encoder_segment_ids` and `decoder_segment_ids` tell which position is whose.

    Args:
      pack: pack documents, see `m6rec_jax.pipeline.packing`.
      packing_window: how many consecutive rows are packed together.
    """

    TASK_FEATURES: ClassVar[Mapping[str, Any]] = _specs(TASK_FEATURES)
    MODEL_FEATURES: ClassVar[Mapping[str, Any]] = _specs(TASK_FEATURES)
    PACKING_FEATURE_DTYPES: ClassVar[Mapping[str, tf.DType]] = {
        name: tf.as_dtype(feature.dtype) for name, feature in SEGMENT_FEATURES.items()
    }

    def __init__(self, pack: bool = False, packing_window: int = 128) -> None:
        # Lengths are static after padding, so run-time assertions would only cost time.
        super().__init__(pack=pack, apply_length_check=False)
        self._packing_window = packing_window

    def __call__(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        """Converts a data set of task features; lengths may be `{"inputs": S, "targets": T}`."""
        return super().__call__(ds, feature_lengths(task_feature_lengths))

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        lengths = feature_lengths(task_feature_lengths)
        if self.pack:
            for name in SEGMENT_FEATURES:
                lengths[name] = lengths[name.replace("segment_ids", "input_tokens")]
        return lengths

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        lengths = dict(task_feature_lengths)

        def pad(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            padded = {}
            for name, feature in TASK_FEATURES.items():
                values = example[name][: lengths[name]]
                missing = lengths[name] - tf.shape(values)[0]
                padding = tf.cast(feature.padding, values.dtype)
                padded[name] = tf.pad(values, [[0, missing]], constant_values=padding)
                padded[name].set_shape([lengths[name]])
            return padded

        ds = ds.map(pad, num_parallel_calls=tf.data.AUTOTUNE)
        return self._packed(ds, lengths) if self.pack else ds

    def _packed(self, ds: tf.data.Dataset, lengths: Mapping[str, int]) -> tf.data.Dataset:
        names = (*TASK_FEATURES, *SEGMENT_FEATURES)
        specs = {**TASK_FEATURES, **SEGMENT_FEATURES}
        model_lengths = self.get_model_feature_lengths(lengths)

        def pack_window(window: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            def numpy_pack(*values: object) -> list[object]:
                rows = packing.pack_rows(
                    dict(zip(TASK_FEATURES, values, strict=True)),  # type: ignore[arg-type]
                    lengths,
                )
                return [rows[name] for name in names]

            packed = tf.numpy_function(
                numpy_pack,
                [window[name] for name in TASK_FEATURES],
                [tf.as_dtype(specs[name].dtype) for name in names],
                stateful=False,
            )
            for name, values in zip(names, packed, strict=True):
                values.set_shape([None, model_lengths[name]])
            return dict(zip(names, packed, strict=True))

        return (
            ds.batch(self._packing_window)
            .map(pack_window, num_parallel_calls=tf.data.AUTOTUNE)
            .unbatch()
        )
