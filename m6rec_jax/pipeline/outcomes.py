"""Packed candidates and what came of each, in words: scoring as language modelling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text import rows
from m6rec_jax.text.vocabulary import SubwordSampling, Vocabulary


def outcomes_in_words(
    ratings: Sequence[float], labels: Sequence[int], outcome: Callable[[float], str]
) -> list[str]:
    """What came of each candidate, "" where nobody can say.

    Args:
      ratings: values of the events; NaN where they have none, and of sampled negatives.
      labels: 0 or 1 of each. A sampled negative is none of the events that `outcome` tells of.
      outcome: words for an event's value, NaN included.
    """
    return [
        "" if math.isnan(rating) and not label else outcome(float(rating))
        for rating, label in zip(ratings, labels, strict=True)
    ]


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
    """Lays out `[BOS] candidate [EOS] outcome` for every candidate, one block each.

    So the outcome is predicted from the state at `[EOS]`, where scoring has its classes. It is
    tokenised by itself, so that its tokens are the same after every candidate; its last one is only
    predicted, never read, so an outcome of one token makes rows that look exactly as scoring's. A
    candidate too long for its share of the row is cut, never its outcome.

    Args:
      vocab: the vocabulary.
      candidates: texts.
      outcomes: words for each; a candidate whose outcome is empty is left out.
      target_length: most tokens of the row.
      candidate_weight: loss weight of the candidates' words (and of `[EOS]` after them).
      outcome_weight: loss weight of the outcome's words.
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
    if share < longest + 2:
        raise ConfigError(
            f"{len(pairs)} candidates with outcomes of {longest} tokens do not fit the target "
            f"length {target_length}; raise it or lower the group size"
        )
    texts = [text for text, _ in pairs]
    row = rows.packed_candidates(
        vocab, texts, target_length, candidate_length=share - longest + 1, sampling=sampling
    )
    ends = np.flatnonzero(np.diff(row["decoder_block_ids"], append=0))
    # All but the last token of an outcome are read, after the `[EOS]` of their candidate.
    read = [ids[:-1] for ids in endings]
    lengths = [len(ids) for ids in read]
    at = np.repeat(ends + 1, lengths)
    inputs = np.insert(row["decoder_input_tokens"], at, np.concatenate(read))
    block_ids = np.insert(
        row["decoder_block_ids"], at, np.repeat(np.arange(len(read)) + 1, lengths)
    )
    targets = np.insert(row["decoder_target_tokens"], at, 0)
    weights = np.insert(row["decoder_loss_weights"] * candidate_weight, at, 0.0)
    # Each outcome is predicted from the `[EOS]` on, which moved with the tokens put in before it.
    places = ends + np.cumsum([0, *lengths[:-1]])
    for place, ids in zip(places, endings, strict=True):
        targets[place : place + len(ids)] = ids
        weights[place : place + len(ids)] = outcome_weight
    return row | {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights.astype(np.float32),
        "decoder_block_ids": block_ids,
        "decoder_labels": np.full(len(inputs), -1, np.int32),
        "decoder_item_ids": np.full(len(inputs), -1, np.int32),
        "decoder_item_log_frequency": np.zeros(len(inputs), np.float32),
    }
