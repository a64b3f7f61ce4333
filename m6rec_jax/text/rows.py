"""Text to rows: the one preprocessor that training and serving share.

Each function tokenises text with a `Vocabulary` and lays the ids out as `m6rec_jax.text.layout`
describes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text import layout
from m6rec_jax.text.layout import Row
from m6rec_jax.text.vocabulary import EOS_ID, Vocabulary

# A text, or its token ids, int32 `[n]`, where a seqio task has tokenised it.
Text = str | np.ndarray


def source_row(vocab: Vocabulary, segments: Sequence[Text], source_length: int) -> Row:
    """Tokenises and lays out the encoder's side; see `layout.source_layout`."""
    tokens = [_ids(vocab, segment) for segment in segments]
    return layout.source_layout(vocab.special_ids, tokens, source_length)


def rows_of_texts(lengths: Sequence[int], target_length: int) -> list[slice]:
    """Which texts share a decoder row, in their order, so that none is cut.

    `lengths` are tokens of each text, `[BOS]`, `[EOS]` and whatever is read included.
    """
    starts, room = [0], target_length
    for place, length in enumerate(lengths):
        if length > room:
            starts.append(place)
            room = target_length
        room -= length
    return list(itertools.starmap(slice, itertools.pairwise([*starts, len(lengths)])))


def candidate_share(number: int, target_length: int, candidate_length: int | None = None) -> int:
    """The most tokens of one of a row's candidates: an even share unless `candidate_length` says.

    Raises ConfigError where the row is too short for that many.
    """
    share = target_length // number if candidate_length is None else candidate_length
    if share < 3 or share * number > target_length:
        raise ConfigError(
            f"{number} candidates of {share} tokens do not fit target_length {target_length} with "
            "[BOS], [EOS] and a word for each; raise target_length or lower the group size"
        )
    return share


def packed_candidates(
    vocab: Vocabulary,
    candidates: Sequence[str],
    target_length: int,
    labels: Sequence[int] | np.ndarray | None = None,
    item_ids: Sequence[int] | np.ndarray | None = None,
    item_log_frequency: Sequence[float] | np.ndarray | None = None,
    *,
    candidate_length: int | None = None,
    read: Sequence[np.ndarray] = (),
) -> Row:
    """Tokenises candidates for one history and packs them into one decoder row, one block each.

    A candidate longer than its share of the row loses its end, never its [EOS].

    Args:
      target_length: the most tokens the row may have.
      labels: class of each candidate, -1: none.
      item_ids: row of each candidate in the items table, -1: none.
      item_log_frequency: log of each candidate's share of the events.
      candidate_length: the most tokens of one candidate, [BOS] and [EOS] included. None is an even
        share, target_length // len(candidates). Name it where a long text must be cut alike
        whatever stands beside it (`rows_of_texts`).
      read: token ids that follow each candidate (`layout.decoder_features`).

    Returns:
      The features of `layout.decoder_features`, the values at the ends of blocks, and
      num_truncated int32 [1]: how many were cut.

    Raises:
      DataError: no candidates, one without text, or labels or item_ids of another number.
      ConfigError: the row is too short for that many candidates.
    """
    tokens = [vocab.encode_array(text) for text in candidates]
    for place, ids in enumerate(tokens):
        if len(ids) == 0:
            raise DataError(f"candidate {place} has no text to score: {candidates[place]!r}")
    number = len(tokens)
    if number == 0:
        raise DataError("a row needs at least one candidate")
    share = candidate_length or candidate_share(number, target_length)
    num_truncated = sum(len(ids) > share - 2 for ids in tokens)
    cut = [ids[: share - 2] for ids in tokens]
    row, ends = layout.decoder_features(vocab.special_ids, cut, read)
    length = len(row["decoder_input_tokens"])
    if length > target_length:
        raise ConfigError(
            f"{number} texts take {length} tokens and do not fit target_length {target_length}; "
            "raise it, or lower candidate_length"
        )
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
    source_segments: Sequence[Text],
    target_text: Text,
    source_length: int,
    target_length: int,
    *,
    prefix: str = "",
    text_index: int = -1,
) -> Row:
    """Lays out "continue this": a text generated from the source after a prefix (paper, section 2).

        input    [BOS] g1 .. gm w1 .. wn [EOS]
        target   g1 .. gm w1 .. wn [EOS] pad
        weights  0  ..  0 1  ..  1  1    0

    Prefix and text are tokenised each by itself, as `engine.decoding.generation` does. A text too
    long for the row is cut; the model is then not trained to predict [EOS] there.

    Args:
      target_text: what to generate after the prefix; token ids may be none, an empty answer.
      source_length, target_length: the most tokens of source and target, at least 3.
      prefix: has loss weight 0; may be empty.
      text_index: of the text in its table, put where the input is [EOS].

    Raises:
      DataError: the target has no text.
      ConfigError: a length is too short, or the prefix leaves no room for a token.
    """
    source = source_row(vocab, source_segments, source_length)
    given, ids = vocab.encode_array(prefix), _ids(vocab, target_text)
    room = target_length - 2 - len(given)
    if room < 1:
        raise ConfigError(
            f"the prefix has {len(given)} tokens and leaves no room for a text in target_length "
            f"{target_length}"
        )
    if not len(ids) and isinstance(target_text, str):
        raise DataError("there is no text to generate")
    row, ends = layout.decoder_features(vocab.special_ids, [np.concatenate([given, ids[:room]])])
    row["decoder_loss_weights"][: len(given)] = 0
    is_cut = len(ids) > room
    if is_cut:
        # The place whose target is [EOS] is the last but one.
        row["decoder_loss_weights"][-2] = 0
    row["decoder_item_ids"][ends] = text_index
    return source | row | {"num_truncated": np.array([is_cut], np.int32)}


def without_end(ids: np.ndarray) -> np.ndarray:
    """Token ids up to the first [EOS], as seqio decodes them."""
    ends = np.flatnonzero(ids == EOS_ID)
    return ids[: ends[0]] if len(ends) else ids


def _ids(vocab: Vocabulary, text: Text) -> np.ndarray:
    return text if isinstance(text, np.ndarray) else vocab.encode_array(text)


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """A text without a random `share` of its words, but with at least one of them.

    So the model cannot learn items by heart, by one word of their titles, and has something to say
    of items it was not trained on: words are treated as DropoutNet (Volkovs et al., NeurIPS 2017)
    treats features. Draws one number a word.
    """
    words = text.split()
    if not words:
        return text
    draws = rng.random(len(words))
    kept = [word for word, draw in zip(words, draws, strict=True) if draw >= share]
    return " ".join(kept) if kept else words[int(np.argmax(draws))]
