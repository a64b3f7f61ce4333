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
    feature_lengths,
)
from m6rec_jax.pipeline.source import numpy_map
from m6rec_jax.text.layout import FEATURES, Feature, Row, pad_batch

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
                lengths[name] = lengths[_of_tokens(name)]
        return lengths

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        # Of all features, whatever a subclass leaves out.
        lengths = M6RecFeatureConverter.get_model_feature_lengths(self, task_feature_lengths)

        def pad(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            padded = {}
            for name, feature in TASK_FEATURES.items():
                values = example[name][: lengths[name]]
                missing = lengths[name] - tf.shape(values)[0]
                padding = tf.cast(feature.padding, values.dtype)
                padded[name] = tf.pad(values, [[0, missing]], constant_values=padding)
                padded[name].set_shape([lengths[name]])
            return padded

        def pack(*values: np.ndarray) -> list[np.ndarray]:
            packed = pack_rows(dict(zip(TASK_FEATURES, values, strict=True)), lengths)
            return [packed[name] for name in (*TASK_FEATURES, *SEGMENT_FEATURES)]

        def pack_window(window: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            shapes = {name: [None, lengths[name]] for name in (*TASK_FEATURES, *SEGMENT_FEATURES)}
            return numpy_map(pack, [window[name] for name in TASK_FEATURES], shapes)

        ds = ds.map(pad, num_parallel_calls=tf.data.AUTOTUNE)
        if not self.pack:
            return ds
        windows = ds.batch(_PACKING_WINDOW)
        return windows.map(pack_window, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def first_fit(sizes: Sequence[tuple[int, int]], capacity: tuple[int, int]) -> list[list[int]]:
    """Assigns items to bins, longest first, each to the first bin with room in both dimensions; one
    larger than `capacity` gets its own. Returns per bin its item indices, ascending.
    """
    bins: list[list[int]] = []
    room: list[np.ndarray] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sum(sizes[i]), i)):
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


def pack_rows(window: Mapping[str, np.ndarray], lengths: Mapping[str, int]) -> Row:
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
        axis: (window[f"{tower}_block_ids"] > 0).sum(axis=1).tolist()
        for axis, tower in (("inputs", "encoder"), ("targets", "decoder"))
    }
    both = list(zip(*sizes.values(), strict=True))
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, (task, retrieval) in enumerate(
        zip(window["task_ids"][:, 0].tolist(), window["retrieval"][:, 0].tolist(), strict=True)
    ):
        groups.setdefault((task, retrieval, i if retrieval else -1), []).append(i)
    capacity = (lengths["encoder_input_tokens"], lengths["decoder_input_tokens"])
    bins = [
        [members[place] for place in places]
        for members in groups.values()
        for places in first_fit([both[i] for i in members], capacity)
    ]
    # In the order of each row's first document, so that packing does not sort by length.
    rows = [_joined(window, members, sizes) for members in sorted(bins)]
    return pad_batch(rows, {name: lengths[_of_tokens(name)] for name in rows[0]})


def _of_tokens(name: str) -> str:
    """The feature that a segment feature is as long as; another feature itself."""
    return name.replace("segment_ids", "input_tokens")


def _joined(
    window: Mapping[str, np.ndarray], members: Sequence[int], sizes: Mapping[str, Sequence[int]]
) -> Row:
    """The documents of one row, one after the other, not padded."""
    row: Row = {}
    for name, feature in MODEL_FEATURES.items():
        if feature.axis == "row":
            row[name] = window[name][members[0]]
        else:
            row[name] = np.concatenate([window[name][i, : sizes[feature.axis][i]] for i in members])
    for name, feature in SEGMENT_FEATURES.items():
        numbers = np.arange(1, len(members) + 1)
        row[name] = np.repeat(numbers, [sizes[feature.axis][i] for i in members])
    if len(members) > 1:
        row["user_ids"] = np.full(1, FEATURES["user_ids"].padding)
    return row | {name: window[name][list(members)].sum(axis=0) for name in COUNT_FEATURES}
