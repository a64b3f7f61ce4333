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
from m6rec_jax.pipeline.source import numpy_map

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
        model_lengths = self.get_model_feature_lengths(lengths)
        shapes = {name: [None, model_lengths[name]] for name in (*TASK_FEATURES, *SEGMENT_FEATURES)}

        def pack(*values: np.ndarray) -> list[np.ndarray]:
            packed = pack_rows(dict(zip(TASK_FEATURES, values, strict=True)), lengths)
            return [packed[name] for name in shapes]

        def pack_window(window: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return numpy_map(pack, [window[name] for name in TASK_FEATURES], shapes)

        windows = ds.batch(_PACKING_WINDOW)
        return windows.map(pack_window, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


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
    sizes = {
        "inputs": (window["encoder_block_ids"] > 0).sum(axis=1),
        "targets": (window["decoder_block_ids"] > 0).sum(axis=1),
    }
    both = [tuple(map(int, pair)) for pair in zip(*sizes.values(), strict=True)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(both)):
        retrieval = int(window["retrieval"][i, 0])
        key = (int(window["task_ids"][i, 0]), retrieval, i if retrieval else -1)
        groups.setdefault(key, []).append(i)
    capacity = (lengths["encoder_input_tokens"], lengths["decoder_input_tokens"])
    bins = [
        [members[place] for place in places]
        for members in groups.values()
        for places in first_fit([both[i] for i in members], capacity)
    ]
    # In the order of each row's first document, so that packing does not sort by length.
    packed = [_join(window, members, sizes, lengths) for members in sorted(bins)]
    return {name: np.stack([row[name] for row in packed]) for name in packed[0]}


def _join(
    window: Mapping[str, np.ndarray],
    indices: Sequence[int],
    sizes: Mapping[str, np.ndarray],
    lengths: Mapping[str, int],
) -> Batch:
    row: Batch = {}
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
