"""Packed candidates that end with their outcome in words: scoring as language modelling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text import rows
from m6rec_jax.text.vocabulary import SubwordSampling, Vocabulary


def with_outcomes(
    vocab: Vocabulary,
    candidates: Sequence[str],
    outcomes: Sequence[str],
    target_length: int,
    *,
    candidate_weight: float = 0.0,
    outcome_weight: float = 1.0,
    sampling: SubwordSampling | None = None,
) -> rows.Row:
    """Lays out `[BOS] candidate outcome [EOS]` for every candidate, one block each.

    The outcome is tokenised by itself, so that its tokens are the same after every candidate, and
    a candidate too long for its share of the row is cut before the outcome, never in it.

    Args:
      vocab: the vocabulary.
      candidates: texts.
      outcomes: words for each; a candidate whose outcome is empty is left out.
      target_length: most tokens of the row.
      candidate_weight: loss weight of the candidates' words.
      outcome_weight: loss weight of the outcome's words. The `[EOS]` after them has weight 0: it
        says nothing about the user.
      sampling: cut the candidates' words at random (training only).

    Returns:
      The decoder features of `rows.packed_candidates`, without labels.

    Raises:
      DataError: no candidate has an outcome.
      ConfigError: the row is too short.
    """
    pairs = [(text, words) for text, words in zip(candidates, outcomes, strict=True) if words]
    if not pairs:
        raise DataError("none of the candidates of a row has an outcome in words")
    endings = [vocab.encode_array(words) for _, words in pairs]
    longest = max(map(len, endings))
    share = target_length // len(pairs)
    if share < longest + 3:
        raise ConfigError(
            f"{len(pairs)} candidates with outcomes of {longest} tokens do not fit the target "
            f"length {target_length}; raise it or lower the group size"
        )
    texts = [text for text, _ in pairs]
    row = rows.packed_candidates(
        vocab, texts, target_length, candidate_length=share - longest, sampling=sampling
    )
    # An input [EOS] ends each candidate: its outcome goes before it.
    blocks = np.repeat(np.arange(1, len(endings) + 1), [len(ids) for ids in endings])
    ends = np.flatnonzero(np.diff(row["decoder_block_ids"], append=0))
    at = np.repeat(ends, [len(ids) for ids in endings])
    outcome = np.concatenate(endings)
    inputs = np.insert(row["decoder_input_tokens"], at, outcome)
    block_ids = np.insert(row["decoder_block_ids"], at, blocks)
    is_outcome = np.insert(np.zeros(len(row["decoder_input_tokens"]), bool), at, True)
    last = np.diff(block_ids, append=0) != 0
    targets = np.where(last, vocab.pad_id, np.roll(inputs, -1)).astype(np.int32)
    target_is_outcome = np.roll(is_outcome, -1) & ~last
    target_is_eos = np.roll(last, -1) & ~last
    weights = np.where(target_is_outcome, outcome_weight, candidate_weight)
    weights[last | target_is_eos] = 0.0
    return row | {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights.astype(np.float32),
        "decoder_block_ids": block_ids,
        "decoder_labels": np.full(len(inputs), -1, np.int32),
        "decoder_item_ids": np.full(len(inputs), -1, np.int32),
        "decoder_item_log_frequency": np.zeros(len(inputs), np.float32),
    }
