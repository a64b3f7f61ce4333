"""Lays out token ids as rows: which id, block, target and weight stands where.

A row is a dictionary of rank-1 arrays, not yet padded; `pad_batch` makes the fixed shapes that the
jitted step sees. `FEATURES` lists every feature with its type and its padding.

    encoder   block 1                    2..              last
              [BOS'] profile w1 .. wn    behaviour ..     [EOS']      (paper, section 1)
    decoder   input    [BOS] w1 .. wn [EOS]               one block per candidate
              target   w1 .. wn [EOS] pad
              weights  1  ..   1   1   0                  nothing follows the input [EOS]

The state where the decoder *input* is [EOS] is what a candidate is judged by, so labels and item
indices stand there and are -1 everywhere else.

Nothing here reads text; `m6rec_jax.text.rows` makes the ids. `special_ids` are
`Vocabulary.special_ids`: [BOS'], [EOS'], [BOS], [EOS].
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from m6rec_jax.errors import ConfigError

Row = dict[str, np.ndarray]
SpecialIds = tuple[int, int, int, int]


class Feature(NamedTuple):
    """A rank-1 feature: its axis, 'inputs', 'targets' or 'row' (one value), type and padding."""

    axis: str
    dtype: type[np.generic]
    padding: int | float


FEATURES: Mapping[str, Feature] = {
    "encoder_input_tokens": Feature("inputs", np.int32, 0),
    "encoder_block_ids": Feature("inputs", np.int32, 0),
    "encoder_segment_ids": Feature("inputs", np.int32, 0),
    "decoder_input_tokens": Feature("targets", np.int32, 0),
    "decoder_target_tokens": Feature("targets", np.int32, 0),
    "decoder_loss_weights": Feature("targets", np.float32, 0.0),
    # What a target is compared with, see `text.labels.Contrast`; 0: nothing.
    "decoder_contrast_tokens": Feature("targets", np.int32, 0),
    "decoder_block_ids": Feature("targets", np.int32, 0),
    "decoder_segment_ids": Feature("targets", np.int32, 0),
    "decoder_labels": Feature("targets", np.int32, -1),
    "decoder_item_ids": Feature("targets", np.int32, -1),
    "decoder_item_log_frequency": Feature("targets", np.float32, 0),
    # A position's, not a row's: packed rows hold documents of several seqio tasks.
    "decoder_job_ids": Feature("targets", np.int32, -1),
    # 1 where a candidate is an item that the user had before; of requests alone.
    "decoder_repeats": Feature("targets", np.int32, 0),
    "task_ids": Feature("row", np.int32, 0),
    "retrieval": Feature("row", np.int32, 0),
    "user_ids": Feature("row", np.int32, -1),
    # Bookkeeping; no model feature.
    "num_dropped": Feature("row", np.int32, 0),
    "num_truncated": Feature("row", np.int32, 0),
}


def source_layout(
    special_ids: SpecialIds, segments: Sequence[np.ndarray], source_length: int
) -> Row:
    """Lays out the encoder's side: [BOS'] profile | behaviour | ... | context | [EOS'].

    Oldest behaviours are dropped until everything fits; see `fit_to_budget`. Segments without a
    token get no block, but an empty profile leaves [BOS'] alone in block 1.

    Args:
      segments: ids of profile, behaviours (oldest first), context; may be empty.
      source_length: the most tokens the row may have, at least 3.

    Returns:
      encoder_input_tokens and encoder_block_ids int32 [n], with n <= source_length; num_dropped
      int32 [1]: how many behaviours did not fit.

    Raises:
      ConfigError: source_length has no room for [BOS'], [EOS'] and a token between them.
    """
    check_source_length(source_length)
    kept, num_dropped = fit_to_budget(segments, source_length - 2, keep_last=2)
    return encoder_features(special_ids, kept) | {"num_dropped": np.array([num_dropped], np.int32)}


def encoder_features(special_ids: SpecialIds, segments: Sequence[np.ndarray]) -> Row:
    """Joins segments into the encoder's features; an empty one after the first gets no block."""
    first, later = segments[:1], [ids for ids in segments[1:] if len(ids)]
    lengths = [1 + sum(map(len, first)), *map(len, later), 1]
    bos, eos = (np.array([id_], np.int32) for id_ in special_ids[:2])
    return {
        "encoder_input_tokens": np.concatenate([bos, *first, *later, eos]),
        "encoder_block_ids": np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths),
    }


def decoder_features(
    special_ids: SpecialIds, texts: Sequence[np.ndarray], read: Sequence[np.ndarray] = ()
) -> tuple[Row, np.ndarray]:
    """Joins texts, none of them empty, into the decoder's features.

    Args:
      texts: ids of each.
      read: ids that follow the [EOS] of each text, in its block; empty: none.

    Returns:
      decoder_input_tokens, decoder_target_tokens, decoder_contrast_tokens (all 0),
      decoder_block_ids, decoder_labels and decoder_item_ids (all -1) int32 [n],
      decoder_item_log_frequency and decoder_loss_weights float32 [n]; and the last place of each
      block, int [texts]: that of its input [EOS] where nothing is read after it.
    """
    bos_id, eos_id = special_ids[2:]
    between = [np.array([eos_id, *ids, bos_id], np.int32) for ids in read]
    between = between or [np.array([eos_id, bos_id], np.int32)] * len(texts)
    parts = [np.array([bos_id], np.int32)]
    for pair in zip(texts, between, strict=True):
        parts += pair
    # Targets are the inputs one place on. At the end of a block that is the [BOS] of the next one
    # (of none, for the last), and [BOS] is the pad id: nothing is to be predicted there.
    joined = np.concatenate(parts)
    inputs, targets = joined[:-1], joined[1:].copy()
    lengths = np.array([len(ids) + len(after) for ids, after in zip(texts, between, strict=True)])
    ends = np.cumsum(lengths) - 1
    weights = np.ones(len(inputs), np.float32)
    weights[ends] = 0
    row = {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights,
        "decoder_contrast_tokens": np.zeros(len(inputs), np.int32),
        "decoder_block_ids": np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths),
        "decoder_labels": np.full(len(inputs), -1, np.int32),
        "decoder_item_ids": np.full(len(inputs), -1, np.int32),
        "decoder_item_log_frequency": np.zeros(len(inputs), np.float32),
    }
    return row, ends


def pad_batch(
    rows: Sequence[Mapping[str, np.ndarray]],
    lengths: Mapping[str, int],
    batch_size: int | None = None,
) -> Row:
    """Fills rows up to the lengths of features and stacks them: each [batch, length].

    Rows of padding are added up to `batch_size`; None adds none.
    """
    size = len(rows) if batch_size is None else batch_size
    batch: Row = {}
    for name, length in lengths.items():
        padded = np.full((size, length), FEATURES[name].padding, FEATURES[name].dtype)
        for place, row in enumerate(rows):
            padded[place, : len(row[name])] = row[name]
        batch[name] = padded
    return batch


def check_source_length(source_length: int) -> None:
    """Raises ConfigError for fewer than 3 tokens: [BOS'], [EOS'] and one between."""
    if source_length < 3:
        raise ConfigError(
            f"source_length {source_length} has no room for [BOS'], [EOS'] and a token between "
            "them; it must be at least 3"
        )


def fit_to_budget(
    segments: Sequence[np.ndarray], budget: int, keep_last: int = 1
) -> tuple[list[np.ndarray], int]:
    """Drops whole oldest segments until the rest fits; shortens the kept ones only if it must.

    The behaviours that stay are the newest ones, without a gap. None is cut: half a title is
    worse than none, and a cut segment would miss the cache of encoded segments. When the protected
    segments alone are too long, all behaviours go and the longest protected segments are cut at
    their end, down to a common length.

    Args:
      segments: token ids of each, oldest first.
      budget: the most tokens of the kept segments together.
      keep_last: how many segments at the end are never dropped; at the start it is one.

    Returns:
      (kept, num_dropped): the kept segments in their order, and how many were dropped.
    """
    lengths = [len(segment) for segment in segments]
    total = sum(lengths)
    if total <= budget:
        return list(segments), 0
    oldest = 1
    while oldest < len(segments) - keep_last and total > budget:
        total -= lengths[oldest]
        oldest += 1
    kept = [*segments[:1], *segments[oldest:]]
    if total > budget:
        limits = _common_limits([len(segment) for segment in kept], budget)
        kept = [segment[:limit] for segment, limit in zip(kept, limits, strict=True)]
    return kept, oldest - 1


def _common_limits(lengths: Sequence[int], budget: int) -> list[int]:
    """Shares `budget` so that short segments stay whole and long ones end up equally long.

    Earlier segments get the tokens that an even division leaves over.
    """
    level = bisect.bisect_right(
        range(max(lengths)), budget, key=lambda level: np.minimum(lengths, level).sum()
    )
    limits = np.minimum(lengths, level - 1)
    longer = np.flatnonzero(np.greater(lengths, level - 1))
    limits[longer[: budget - limits.sum()]] += 1
    return limits.tolist()
