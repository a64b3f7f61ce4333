"""Puts several short documents into one row, so that pretraining does not compute padding.

Documents of one row are told apart by `encoder_segment_ids` and `decoder_segment_ids` (seqio's
meaning: 1, 2, ... per document, 0 for padding); the model lets no document attend to another.
Packing works on windows of consecutive rows and is a pure function of the window, so a resumed
iterator packs the same rows again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from m6rec_jax.pipeline.features import COUNT_FEATURES, MODEL_FEATURES, SEGMENT_FEATURES

Batch = dict[str, np.ndarray]


def first_fit(sizes: Sequence[tuple[int, ...]], capacity: tuple[int, ...]) -> list[list[int]]:
    """Assigns items to bins, longest first, each to the first bin with room.

    Args:
      sizes: per item, its length in every dimension.
      capacity: of a bin, in every dimension. An item larger than that gets a bin of its own.

    Returns:
      Per bin, its item indices, in increasing order.
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
