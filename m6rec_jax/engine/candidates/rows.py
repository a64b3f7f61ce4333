"""Texts of unlike lengths into few decoder rows, and where to read each one's result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from m6rec_jax.text import rows
from m6rec_jax.text.labels import Contrast
from m6rec_jax.text.layout import Row
from m6rec_jax.text.vocabulary import Vocabulary


class PackedTexts(NamedTuple):
    """Decoder rows, and for each row the indices of its texts in the list they came from."""

    rows: list[Row]
    indices: list[list[int]]


def pack_texts(
    vocab: Vocabulary,
    texts: Sequence[str],
    target_length: int,
    text_length: int,
    contrast: Contrast | None = None,
) -> PackedTexts:
    """Packs texts into as few rows as their lengths allow.

    Texts of one row get equal shares of it (`rows.packed_candidates`), so texts of like length
    share a row. A text's result does not depend on its neighbours: attention stops at its block.

    Args:
      vocab, texts: the vocabulary; candidates or items.
      target_length: most tokens of a row.
      text_length: most tokens of a text, `[BOS]` and `[EOS]` included.
      contrast: what is asked about each text; None: nothing.

    Raises:
      DataError: a text without words. ConfigError: labels of the contrast that do not fit.
    """
    limit = min(text_length, target_length)
    num_read = len(contrast.tokens(vocab)[0]) if contrast else 0
    lay_out = contrast.lay_out if contrast else rows.packed_candidates
    cut = [min(len(vocab.encode_array(text)) + 2 + num_read, limit) for text in texts]
    indices: list[list[int]] = []
    for i in sorted(range(len(cut)), key=lambda i: cut[i]):
        # Ascending, so this text is the longest so far and sets the share.
        if indices and cut[i] * (len(indices[-1]) + 1) <= target_length:
            indices[-1].append(i)
        else:
            indices.append([i])
    packed = [
        lay_out(
            vocab,
            [texts[i] for i in members],
            target_length,
            candidate_length=min(limit, target_length // len(members)),
        )
        for members in indices
    ]
    return PackedTexts(packed, indices)


def text_ends(decoder_block_ids: np.ndarray) -> np.ndarray:
    """Positions of each text's input `[EOS]` in a row `[target]`: the last one of every block."""
    block_ids = np.asarray(decoder_block_ids)
    return np.flatnonzero((np.diff(block_ids, append=0) != 0) & (block_ids > 0))
