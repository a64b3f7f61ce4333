"""Rows of texts to write: a beginning is given, the rest is learnt (paper, section 2).

encoder   [BOS'] profile | behaviour | ... | what the text is about [EOS']
decoder   input    [BOS] g1 .. gm w1 .. wn [EOS]
          target   g1 .. gm w1 .. wn [EOS] pad
          weights  0  ..  0 1  ..  1  1    0
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import SubwordSampling, Vocabulary


def writing_row(
    vocab: Vocabulary,
    source_segments: Sequence[str],
    prefix: str,
    target_text: str,
    source_length: int,
    target_length: int,
    *,
    text_index: int = -1,
    sampling: SubwordSampling | None = None,
) -> Row:
    """Lays out a text to write.

    The beginning and the rest are cut into tokens each by itself, as `engine.generation` does
    when it is asked to go on from a prefix. A text too long for the row loses its end; the model is
    then not trained to end there.

    Args:
      vocab: the vocabulary.
      source_segments: as for `rows.source_row`.
      prefix: how the text begins, of loss weight 0; may be empty.
      target_text: what comes after it.
      source_length, target_length: the most tokens of source and target.
      text_index: place of the text in its table, put where the input is [EOS].
      sampling: cut words of the source at random (training only).

    Returns:
      The features of `rows.generation_row`.

    Raises:
      DataError: nothing is to be written.
      ConfigError: no room for a token after the prefix.
    """
    source = rows.source_row(vocab, source_segments, source_length, sampling=sampling)
    given, ids = vocab.encode_array(prefix), vocab.encode_array(target_text)
    room = target_length - 2 - len(given)
    if room < 1:
        raise ConfigError(
            f"the prefix {prefix!r} has {len(given)} tokens and leaves no room for a text in "
            f"target_length {target_length}"
        )
    if not len(ids):
        raise DataError(f"there is no text to write: {target_text!r}")
    target, ends = rows.packed_tokens(vocab, [np.concatenate([given, ids[:room]])])
    target["decoder_loss_weights"][: len(given)] = 0
    cut = len(ids) > room
    if cut:
        # The place whose target is [EOS] is the last but one.
        target["decoder_loss_weights"][-2] = 0
    target["decoder_item_ids"][ends] = text_index
    return source | target | {"num_truncated": np.array([cut], np.int32)}
