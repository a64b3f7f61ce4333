"""Task features to model features: fixed lengths, optionally several documents per row.

Packing puts several short documents into one row, so that pretraining does not compute padding.
`encoder_segment_ids` and `decoder_segment_ids` number the documents of a row (seqio's meaning:
1, 2, ... per document, 0 for padding); the model lets no document attend to another. Packing is a
pure function of a window of consecutive rows, so a resumed iterator packs the same rows again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.pipeline.features import (
    COUNT_FEATURES,
    MODEL_FEATURES,
    SEGMENT_FEATURES,
    TASK_FEATURES,
    Feature,
    feature_lengths,
)

Batch = dict[str, np.ndarray]
_PACKING_WINDOW = 128  # consecutive rows that are packed together


def _specs(features: Mapping[str, Feature]) -> dict[str, Any]:
    spec = seqio.FeatureConverter.FeatureSpec
    return {name: spec(dtype=tf.as_dtype(feature.dtype)) for name, feature in features.items()}


class M6RecFeatureConverter(seqio.FeatureConverter):
    """Trims and pads every feature to its length; the preprocessors have laid the rows out.

    Block ids (segments of one document, whose positions restart) are features of the task, since
    only the preprocessor knows where a behaviour ends.

    Args:
      pack: put several documents into a row, see the module's docstring.
    """

    TASK_FEATURES: ClassVar[Mapping[str, Any]] = _specs(TASK_FEATURES)
    MODEL_FEATURES: ClassVar[Mapping[str, Any]] = _specs(TASK_FEATURES)
    PACKING_FEATURE_DTYPES: ClassVar[Mapping[str, tf.DType]] = {
        name: tf.as_dtype(feature.dtype) for name, feature in SEGMENT_FEATURES.items()
    }

    def __init__(self, pack: bool = False) -> None:
        # Lengths are static after padding, so run-time assertions would only cost time.
        super().__init__(pack=pack, apply_length_check=False)

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
                rows = pack_rows(
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
            ds.batch(_PACKING_WINDOW)
            .map(pack_window, num_parallel_calls=tf.data.AUTOTUNE)
            .unbatch()
        )


def first_fit(sizes: Sequence[tuple[int, ...]], capacity: tuple[int, ...]) -> list[list[int]]:
    """Assigns items to bins, longest first, each to the first bin with room in every dimension.

    An item larger than `capacity` gets a bin of its own. Returns per bin its item indices, in
    increasing order.
    """
    order = sorted(range(len(sizes)), key=lambda i: (-sum(sizes[i]), i))
    bins: list[list[int]] = []
    room: list[np.ndarray] = []
    for i in order:
        size = np.asarray(sizes[i])
        for items, left in zip(bins, room, strict=True):
            if (size <= left).all():
                items.append(i)
                left -= size
                break
        else:
            bins.append([i])
            room.append(np.asarray(capacity) - size)
    return [sorted(items) for items in bins]


def pack_rows(window: Mapping[str, np.ndarray], lengths: Mapping[str, int]) -> Batch:
    """Packs a window of padded rows into fewer rows.

    Args:
      window: `{feature: [n, length]}`, every task feature, padded at the end.
      lengths: length of every task feature in the result.

    Returns:
      `{feature: [m, length]}` with m <= n, all task features and the two segment features. Only
      rows of the same task and kind share a row; retrieval rows stay alone, because a user has
      one embedding. A row of several documents has `user_ids` -1, its counts are summed.
    """
    source_sizes = (window["encoder_block_ids"] > 0).sum(axis=1)
    target_sizes = (window["decoder_block_ids"] > 0).sum(axis=1)
    packed: list[Batch] = []
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(source_sizes)):
        retrieval = int(window["retrieval"][i, 0])
        key = (int(window["task_ids"][i, 0]), retrieval, i if retrieval else -1)
        groups.setdefault(key, []).append(i)
    capacity = (lengths["encoder_input_tokens"], lengths["decoder_input_tokens"])
    for members in groups.values():
        sizes = [(int(source_sizes[i]), int(target_sizes[i])) for i in members]
        for chosen in first_fit(sizes, capacity):
            indices = [members[j] for j in chosen]
            packed.append(_join(window, indices, source_sizes, target_sizes, lengths))
    # Keep the order of each row's first document, so that packing does not sort by length.
    packed.sort(key=lambda row: int(row.pop("first")[0]))
    return {name: np.stack([row[name] for row in packed]) for name in packed[0]}


def _join(
    window: Mapping[str, np.ndarray],
    indices: Sequence[int],
    source_sizes: np.ndarray,
    target_sizes: np.ndarray,
    lengths: Mapping[str, int],
) -> Batch:
    row: Batch = {"first": np.asarray(indices[:1])}
    sizes = {"inputs": source_sizes, "targets": target_sizes}
    for name, feature in MODEL_FEATURES.items():
        if feature.axis == "row":
            row[name] = window[name][indices[0]]
            continue
        values = [window[name][i, : sizes[feature.axis][i]] for i in indices]
        row[name] = _padded(np.concatenate(values), lengths[name], feature.padding)
    for name, feature in SEGMENT_FEATURES.items():
        segments = [np.full(sizes[feature.axis][i], k + 1) for k, i in enumerate(indices)]
        length = lengths[name.replace("segment_ids", "input_tokens")]
        row[name] = _padded(np.concatenate(segments).astype(feature.dtype), length, 0)
    if len(indices) > 1:
        row["user_ids"] = np.full(1, MODEL_FEATURES["user_ids"].padding, np.int32)
    for name in COUNT_FEATURES:
        row[name] = window[name][list(indices)].sum(axis=0, dtype=np.int32)
    return row


def _padded(values: np.ndarray, length: int, padding: float) -> np.ndarray:
    result = np.full(length, padding, values.dtype)
    result[: len(values)] = values[:length]
    return result
