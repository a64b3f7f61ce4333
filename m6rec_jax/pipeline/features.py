"""The features of a training row: which there are, how long each is.

Axes, types and padding are those of `m6rec_jax.text.layout.FEATURES`. Every feature is rank 1, as
seqio wants it, so several candidates share one decoder row; `decoder_block_ids` numbers them.
Lengths follow t5x's macro: `TASK_FEATURE_LENGTHS = {"inputs": 256, "targets": 64}` gives every
`encoder_*` feature 256 positions, every `decoder_*` feature 64, and every per-row feature one.
"""

from __future__ import annotations

from collections.abc import Mapping

from m6rec_jax.errors import ConfigError
from m6rec_jax.text.layout import FEATURES, Feature

# How many behaviours of a row did not fit, and how many of its texts were cut. Batches count them
# and take them out before the model sees the row.
COUNT_FEATURES: Mapping[str, Feature] = {n: f for n, f in FEATURES.items() if n.startswith("num_")}
# Only in packed rows (several documents in one row): 1, 2, ... per document, 0 for padding.
SEGMENT_FEATURES = {n: f for n, f in FEATURES.items() if n.endswith("segment_ids")}
# What the jitted step sees.
MODEL_FEATURES: Mapping[str, Feature] = {
    name: feature
    for name, feature in FEATURES.items()
    if name not in (*COUNT_FEATURES, *SEGMENT_FEATURES, "decoder_repeats")
}
TASK_FEATURES: Mapping[str, Feature] = {**MODEL_FEATURES, **COUNT_FEATURES}


def feature_lengths(lengths: Mapping[str, int]) -> dict[str, int]:
    """Length of every feature, from `{"inputs": S, "targets": T}` as in gin, or as they are.

    Raises:
      ConfigError: a key is missing or unknown, or a length is not a positive integer.
    """
    if set(lengths) >= set(TASK_FEATURES):
        return dict(lengths)
    if set(lengths) != {"inputs", "targets"} or any(
        type(length) is not int or length < 1 for length in lengths.values()
    ):
        raise ConfigError(
            f"TASK_FEATURE_LENGTHS = {dict(lengths)} must give 'inputs' and 'targets' a positive "
            "whole number each, for instance {'inputs': 256, 'targets': 64}"
        )
    return {name: lengths.get(feature.axis, 1) for name, feature in TASK_FEATURES.items()}
