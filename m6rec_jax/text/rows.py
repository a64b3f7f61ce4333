"""Rows: the one preprocessor that training and serving share (design decisions 1, 3 and 9).

A row is a dictionary of rank-1 arrays, not yet padded; `pad_batch` makes the fixed shapes that the
jitted step sees. `FEATURES` lists every feature with its type and its padding.

    encoder   block 1                    2..              last
              [BOS'] profile w1 .. wn    behaviour ..     [EOS']      (paper, section 1)
    decoder   input    [BOS] w1 .. wn [EOS]               one block per candidate
              target   w1 .. wn [EOS] pad
              weights  1  ..   1   1   0                  nothing follows the input [EOS]

The state where the decoder *input* is [EOS] is what a candidate is judged by, so labels and item
indices stand there and are -1 everywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import gin
import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text.budget import fit_to_budget
from m6rec_jax.text.infilling import draw_spans, longest_text, span_counts
from m6rec_jax.text.vocabulary import SubwordSampling, Vocabulary

Row = dict[str, np.ndarray]
# The ids of one text, or of each of its segments.
Tokens = np.ndarray | Sequence[int] | Sequence[Sequence[int]] | Sequence[np.ndarray]


class Feature(NamedTuple):
    """What a feature is made of: its type, and the value that fills it up."""

    dtype: type[np.generic]
    padding: int | float


FEATURES: Mapping[str, Feature] = {
    "encoder_input_tokens": Feature(np.int32, 0),
    "encoder_block_ids": Feature(np.int32, 0),
    "encoder_segment_ids": Feature(np.int32, 0),
    "decoder_input_tokens": Feature(np.int32, 0),
    "decoder_target_tokens": Feature(np.int32, 0),
    "decoder_loss_weights": Feature(np.float32, 0.0),
    "decoder_block_ids": Feature(np.int32, 0),
    "decoder_segment_ids": Feature(np.int32, 0),
    "decoder_labels": Feature(np.int32, -1),
    "decoder_item_ids": Feature(np.int32, -1),
    "decoder_item_log_frequency": Feature(np.float32, 0),
    "decoder_job_ids": Feature(np.int32, -1),
    "task_ids": Feature(np.int32, 0),
    "retrieval": Feature(np.int32, 0),
    "user_ids": Feature(np.int32, -1),
    # Bookkeeping; no model feature.
    "num_dropped": Feature(np.int32, 0),
    "num_truncated": Feature(np.int32, 0),
}


def source_row(
    vocab: Vocabulary,
    segments: Sequence[str],
    source_length: int,
    *,
    keep_first: int = 1,
    keep_last: int = 2,
    sampling: SubwordSampling | None = None,
) -> Row:
    """Lays out the encoder's side: [BOS'] profile | behaviour | ... | context | [EOS'].

    Whole oldest behaviours are dropped until everything fits; see `fit_to_budget`. The newest one
    stays, if need be without its end: a long message is better known in part than not at all.
    Segments without a token get no block, but an empty profile leaves [BOS'] alone in block 1.

    Args:
      vocab: the vocabulary.
      segments: profile, behaviours (oldest first), context; what `history_segments` returns. May be
        empty: then the row is [BOS'] | [EOS'].
      source_length: the most tokens the row may have, at least 3.
      keep_first: segments at the start that are never dropped.
      keep_last: segments at the end that are never dropped.
      sampling: cut words into pieces at random (training only).

    Returns:
      encoder_input_tokens int32 [n] and encoder_block_ids int32 [n], with n <= source_length;
      num_dropped int32 [1]: how many behaviours did not fit.

    Raises:
      ConfigError: source_length has no room for [BOS'], [EOS'] and a token between them.
    """
    _check_source_length(source_length)
    tokens = [vocab.encode_array(segment, sampling=sampling) for segment in segments]
    kept, num_dropped = fit_to_budget(tokens, source_length - 2, keep_first, keep_last)
    return _source(vocab, kept) | {"num_dropped": np.array([num_dropped], np.int32)}


def packed_candidates(
    vocab: Vocabulary,
    candidates: Sequence[str],
    target_length: int,
    labels: Sequence[int] | np.ndarray | None = None,
    item_ids: Sequence[int] | np.ndarray | None = None,
    item_log_frequency: Sequence[float] | np.ndarray | None = None,
    *,
    candidate_length: int | None = None,
    sampling: SubwordSampling | None = None,
) -> Row:
    """Packs candidates for one history into one decoder row, one block each.

    A candidate longer than its share of the row loses the end of its text, never its [EOS].

    Args:
      vocab: the vocabulary.
      candidates: one text per candidate.
      target_length: the most tokens the row may have.
      labels: class of each candidate; -1 or None where there is none.
      item_ids: row of each candidate in the items table; -1 or None where there is none.
      item_log_frequency: log of each candidate's share of the events; None where none is needed.
      candidate_length: the most tokens of one candidate, [BOS] and [EOS] included. None is an even
        share, target_length // len(candidates). Name it where rows hold different numbers of
        candidates and a long text must be cut alike in all of them.
      sampling: cut words into pieces at random (training only).

    Returns:
      decoder_input_tokens, decoder_target_tokens, decoder_block_ids, decoder_labels,
      decoder_item_ids int32 [n], decoder_item_log_frequency and decoder_loss_weights float32 [n],
      with n <= target_length; num_truncated int32 [1]: how many candidates were cut.

    Raises:
      DataError: no candidates, a candidate without text, or labels or item_ids of another number.
      ConfigError: the row is too short for that many candidates.
    """
    number = len(candidates)
    if number == 0:
        raise DataError("a row needs at least one candidate")
    share = target_length // number if candidate_length is None else candidate_length
    if share < 3 or share * number > target_length:
        raise ConfigError(
            f"{number} candidates of {share} tokens do not fit target_length {target_length} with "
            "[BOS], [EOS] and a word for each; raise target_length or lower the group size"
        )
    tokens = [vocab.encode_array(text, sampling=sampling) for text in candidates]
    num_truncated = 0
    for place, ids in enumerate(tokens):
        if len(ids) == 0:
            raise DataError(f"candidate {place} has no text to score: {candidates[place]!r}")
        if len(ids) > share - 2:
            tokens[place] = ids[: share - 2]
            num_truncated += 1
    row, ends = packed_tokens(vocab, tokens)
    for name, values in (
        ("decoder_labels", labels),
        ("decoder_item_ids", item_ids),
        ("decoder_item_log_frequency", item_log_frequency),
    ):
        if values is not None:
            if len(values) != number:
                raise DataError(
                    f"{len(values)} {name.removeprefix('decoder_')} for {number} candidates"
                )
            row[name][ends] = values
    return row | {"num_truncated": np.array([num_truncated], np.int32)}


def generation_row(
    vocab: Vocabulary,
    source_segments: Sequence[str],
    target_text: str,
    source_length: int,
    target_length: int,
    *,
    sampling: SubwordSampling | None = None,
) -> Row:
    """Lays out "continue this": the target text is generated from the source (paper, section 2).

    A target too long for the row is cut at its end. The cut text does not end there, so the model
    is not trained to predict [EOS] after it.

    Args:
      vocab: the vocabulary.
      source_segments: as for `source_row`; may be empty, for text generated from nothing.
      target_text: what to generate.
      source_length: the most source tokens, at least 3.
      target_length: the most target tokens, at least 3.
      sampling: cut words of the source into pieces at random (training only). The target always
        has its likeliest pieces: those are what generation should produce.

    Returns:
      What `source_row` and `packed_candidates` return, with one block in the decoder.

    Raises:
      DataError: the target has no text.
      ConfigError: a length is below 3.
    """
    source = source_row(vocab, source_segments, source_length, sampling=sampling)
    target = packed_candidates(vocab, [target_text], target_length)
    if target["num_truncated"][0]:
        # The place whose target is [EOS] is the last but one.
        target["decoder_loss_weights"][-2] = 0
    return source | target


@gin.configurable
def text_infilling_row(
    vocab: Vocabulary,
    tokens: Tokens,
    source_length: int,
    target_length: int,
    rng: np.random.Generator,
    *,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> Row:
    """Masks short spans, to be restored one after the other (paper, section 1: text infilling).

    As in T5, a span becomes one sentinel in the source, and the target is every sentinel followed
    by the tokens it stands for:

        source  [BOS'] liked <extra_id_0> , 3 <extra_id_1> ago [EOS']
        target  <extra_id_0> Fargo (1996) <extra_id_1> days

    A text too long for either side is shortened first: of one segment a random stretch is taken,
    of several whole oldest behaviours are dropped (`fit_to_budget`). A span may reach over the end
    of a segment; the sentinel stands where it begins.

    Args:
      vocab: the vocabulary; its number of sentinels bounds the number of spans.
      tokens: the token ids of one text, or of each of its segments.
      source_length: the most source tokens, at least 3.
      target_length: the most target tokens, at least 4.
      rng: where the spans come from.
      noise_density: share of the tokens to mask, between 0 and 1.
      mean_span_length: tokens of a span on average, at least 1.

    Returns:
      The features of `source_row` (num_dropped counts segments) and of `packed_candidates`.

    Raises:
      DataError: there are no tokens.
      ConfigError: a length, density or span length out of range, or no sentinels.
    """
    _check_source_length(source_length)
    if target_length < 4:
        raise ConfigError(
            f"target_length {target_length} has no room for [BOS], a sentinel, a token and [EOS]; "
            "it must be at least 4"
        )
    if not 0 < noise_density < 1 or mean_span_length < 1 or not vocab.sentinel_ids:
        raise ConfigError(
            "text infilling needs a noise_density between 0 and 1, a mean_span_length of at least "
            "1 and a vocabulary with sentinels; got "
            f"{noise_density}, {mean_span_length} and {len(vocab.sentinel_ids)} sentinels"
        )
    segments = _as_segments(tokens)
    if not any(map(len, segments)):
        raise DataError("there is no text to mask spans of")
    shape = (noise_density, mean_span_length, len(vocab.sentinel_ids))
    room = longest_text(source_length - 2, target_length - 2, *shape)
    kept, num_dropped = fit_to_budget(segments, room)
    if len(segments) == 1 or not any(map(len, kept)):
        # A long text, or a behaviour that alone is longer than the row: any stretch of it will do.
        newest = max(place for place, ids in enumerate(segments) if len(ids))
        ids = segments[newest]
        start = int(rng.integers(max(len(ids) - room, 0) + 1))
        kept, num_dropped = [ids[start : start + room]], len(segments) - 1

    text = np.concatenate(kept)
    masked, starts = draw_spans(len(text), *span_counts(len(text), *shape), rng)
    sentinels = np.array(vocab.sentinel_ids[: np.count_nonzero(starts)], np.int32)
    source = text.copy()
    source[starts] = sentinels
    left = ~masked | starts
    # What is left of each segment; one that a span swallowed is empty and gets no block.
    bounds = np.cumsum([len(segment) for segment in kept])[:-1]
    blocks = [
        part[keep]
        for part, keep in zip(np.split(source, bounds), np.split(left, bounds), strict=True)
    ]
    target = np.insert(text[masked], np.flatnonzero(starts[masked]), sentinels)
    row = _source(vocab, blocks) | packed_tokens(vocab, [target])[0]
    return row | {
        "num_dropped": np.array([num_dropped], np.int32),
        "num_truncated": np.zeros(1, np.int32),
    }


def pad_batch(
    rows: Sequence[Mapping[str, np.ndarray]],
    lengths: Mapping[str, int],
    batch_size: int | None = None,
) -> Row:
    """Fills rows up to fixed lengths and stacks them.

    Args:
      rows: features of each row, each of rank 1.
      lengths: the length of each feature to return; others are left out.
      batch_size: add rows of nothing but padding up to this number, so that a last, smaller batch
        does not compile another program; None adds none.

    Returns:
      The features of `lengths`, each [batch, length], in the types of `FEATURES`.

    Raises:
      DataError: a feature is missing, unknown, not of rank 1, or longer than its length; or there
        are more rows than batch_size.
    """
    size = len(rows) if batch_size is None else batch_size
    if len(rows) > size:
        raise DataError(f"{len(rows)} rows do not fit a batch of {size}")
    batch: Row = {}
    for name, length in lengths.items():
        if name not in FEATURES:
            raise DataError(f"there is no feature '{name}'; known: {', '.join(FEATURES)}")
        dtype, padding = FEATURES[name]
        padded = np.full((size, length), padding, dtype)
        for place, row in enumerate(rows):
            values = row.get(name)
            if values is None:
                raise DataError(f"row {place} lacks the feature '{name}'")
            if values.ndim != 1 or len(values) > length:
                raise DataError(
                    f"feature '{name}' of row {place} has shape {list(values.shape)}, "
                    f"which does not fit [{length}]"
                )
            padded[place, : len(values)] = values
        batch[name] = padded
    return batch


def _check_source_length(source_length: int) -> None:
    if source_length < 3:
        raise ConfigError(
            f"source_length {source_length} has no room for [BOS'], [EOS'] and a token between "
            "them; it must be at least 3"
        )


def _as_segments(tokens: Tokens) -> list[np.ndarray]:
    if len(tokens) and np.ndim(tokens[0]) == 0:
        return [np.asarray(tokens, np.int32)]
    return [np.asarray(segment, np.int32) for segment in tokens]


def _source(vocab: Vocabulary, segments: Sequence[np.ndarray]) -> Row:
    """Joins encoded segments into the encoder's features; a later empty one gets no block."""
    first, later = segments[:1], [ids for ids in segments[1:] if len(ids)]
    lengths = [1 + sum(map(len, first)), *map(len, later), 1]
    bos, eos = _single(vocab.source_bos_id), _single(vocab.source_eos_id)
    return {
        "encoder_input_tokens": np.concatenate([bos, *first, *later, eos]),
        "encoder_block_ids": np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths),
    }


def packed_tokens(vocab: Vocabulary, candidates: Sequence[np.ndarray]) -> tuple[Row, np.ndarray]:
    """Joins encoded texts, none of them empty, into the decoder's features.

    Returns:
      The features of `packed_candidates` but num_truncated, without labels and items; and the place
      of each text's input [EOS], int [candidates].
    """
    bos, between = _single(vocab.bos_id), np.array([vocab.eos_id, vocab.bos_id], np.int32)
    parts = [bos]
    for ids in candidates:
        parts += (ids, between)
    # Targets are the inputs one place on. After an input [EOS] that is the [BOS] of the next text
    # (of none, for the last), and [BOS] is the pad id: nothing is to be predicted there.
    joined = np.concatenate(parts)
    inputs, targets = joined[:-1], joined[1:].copy()
    lengths = np.array([len(ids) + 2 for ids in candidates])
    ends = np.cumsum(lengths) - 1
    weights = np.ones(len(inputs), np.float32)
    weights[ends] = 0
    row = {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": weights,
        "decoder_block_ids": np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths),
        "decoder_labels": np.full(len(inputs), -1, np.int32),
        "decoder_item_ids": np.full(len(inputs), -1, np.int32),
        "decoder_item_log_frequency": np.zeros(len(inputs), np.float32),
    }
    return row, ends


def _single(id_: int) -> np.ndarray:
    return np.array([id_], np.int32)
