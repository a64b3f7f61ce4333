"""Text to rows of tokens within a TensorFlow graph: `text.rows` and `text.layout`, without Python.

Whatever a text holds, its tokens are those of the Python tokenizer, and no text gives a control id
(`Vocabulary.text_model`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_text as tf_text

from m6rec_jax.text.vocabulary import Vocabulary


class TextRows(NamedTuple):
    """Rows of a decoder, one text each.

    Attributes:
      tokens, blocks: int32 `[batch, texts, length]`.
      ends: int32 `[batch, texts]`, where each one's `[EOS]` stands.
      present: bool `[batch, texts]`, False for padding and for texts without words.
    """

    tokens: Any
    blocks: Any
    ends: Any
    present: Any


class TextGraph(tf.Module):
    """The tokenizer and the layout of rows, as functions to be traced.

    Args:
      vocabulary: the model's.
      source_length: tokens of a history's row, S.
      text_length: tokens of a candidate's row, `[BOS]` and `[EOS]` included.
    """

    def __init__(self, vocabulary: Vocabulary, source_length: int, text_length: int) -> None:
        super().__init__()
        self._tokenizer = tf_text.SentencepieceTokenizer(
            model=vocabulary.text_model, out_type=tf.int32
        )
        self._ids = vocabulary.special_ids
        self.source_length, self.text_length = source_length, text_length

    def tokens(self, texts: Any) -> tuple[Any, Any]:
        """Strings `[batch, n]` to int32 `[batch, n, longest]` and their lengths `[batch, n]`.

        Bytes that are no UTF-8 are read as U+FFFD.
        """
        shape = tf.shape(texts)
        flat = tf.strings.unicode_transcode(
            tf.reshape(texts, [-1]), "UTF-8", "UTF-8", errors="replace"
        )
        ragged = self._tokenizer.tokenize(flat)
        padded = ragged.to_tensor()
        # One column at least, so that nothing below meets an empty axis.
        padded = tf.pad(padded, [[0, 0], [0, 1]])
        lengths = tf.cast(ragged.row_lengths(), tf.int32)
        return (
            tf.reshape(padded, [shape[0], shape[1], -1]),
            tf.reshape(lengths, [shape[0], shape[1]]),
        )

    def source(self, history: Any, count: Any, limit: Any) -> tuple[Any, Any]:
        """A history's row, as `layout.source_layout` lays it out.

        Args:
          history: strings `[batch, segments]`: profile, behaviours (oldest first), context.
          count: int32 `[batch]`, segments of each; what comes after is padding.
          limit: int32 `[batch]`, most tokens of each row.

        Returns:
          `encoder_input_tokens` and `encoder_block_ids`, int32 `[batch, S]`.
        """
        tokens, lengths = self.tokens(history)
        place = tf.range(tf.shape(history)[1])[None]
        lengths = tf.where(place < count[:, None], lengths, 0)
        budget = (limit - 2)[:, None]
        # Tokens that are left when the oldest behaviour kept is the one at each place.
        newer = tf.cumsum(lengths, axis=1, reverse=True)
        first = lengths[:, :1]
        fits = first + newer <= budget
        last = tf.maximum(count - 2, 1)[:, None]
        oldest = tf.minimum(
            last,
            1 + tf.reduce_sum(tf.cast(~fits[:, 1:], tf.int32), axis=1, keepdims=True),
        )
        kept = tf.where((place == 0) | (place >= oldest), lengths, 0)
        kept = self._cut(kept, budget)

        within = tf.range(tf.shape(tokens)[2])[None, None] < kept[:, :, None]
        # An empty profile leaves [BOS'] alone in block 1; other empty segments get no block.
        later = tf.cast((kept > 0) & (place > 0), tf.int32)
        block = 1 + tf.cumsum(later, axis=1)
        blocks = tf.broadcast_to(block[:, :, None], tf.shape(tokens))
        batch = tf.shape(history)[0]

        def row(values: Any, first: Any, last: Any) -> Any:
            flat, mask = (tf.reshape(x, [batch, -1]) for x in (values, within))
            joined = tf.concat([first, tf.ragged.boolean_mask(flat, mask), last], axis=1)
            return joined.to_tensor(shape=[None, self.source_length])

        ones = tf.ones([batch, 1], tf.int32)
        return (
            row(tokens, ones * self._ids[0], ones * self._ids[1]),
            row(blocks, ones, 2 + tf.reduce_sum(later, axis=1, keepdims=True)),
        )

    def _cut(self, lengths: Any, budget: Any) -> Any:
        """As `layout.fit_to_budget`: long segments are cut alike, earlier ones get what is left."""
        levels = tf.range(self.source_length + 1)[None]
        held = tf.reduce_sum(tf.minimum(lengths[:, :, None], levels[:, None]), axis=1)
        level = tf.reduce_sum(tf.cast(held <= budget, tf.int32), axis=1, keepdims=True) - 1
        spare = budget - tf.gather(held, level, axis=1, batch_dims=1)
        longer = tf.cast(lengths > level, tf.int32)
        gets_one = longer * tf.cast(tf.cumsum(longer, axis=1) <= spare, tf.int32)
        return tf.minimum(lengths, level) + gets_one

    def candidates(self, texts: Any, count: Any, limit: Any) -> TextRows:
        """One decoder row per text, as `rows.packed_candidates` lays it out.

        Args:
          texts: strings `[batch, texts]`.
          count: int32 `[batch]`, texts of each; what comes after is padding.
          limit: int32 `[batch]`, most tokens of each text, `[BOS]` and `[EOS]` included.
        """
        tokens, lengths = self.tokens(texts)
        place = tf.range(tf.shape(texts)[1])[None]
        present = (place < count[:, None]) & (lengths > 0)
        kept = tf.minimum(lengths, limit[:, None] - 2)
        width = self.text_length - 2
        tokens = tf.pad(tokens, [[0, 0], [0, 0], [0, width]])[:, :, :width]
        within = tf.range(width)[None, None] < kept[:, :, None]
        bos, eos = self._ids[2:]
        ends = kept + 1
        position = tf.range(self.text_length)[None, None]
        body = tf.pad(tf.where(within, tokens, 0), [[0, 0], [0, 0], [1, 1]])
        row = tf.where(position == 0, bos, tf.where(position == ends[:, :, None], eos, body))
        blocks = tf.cast((position <= ends[:, :, None]) & present[:, :, None], tf.int32)
        return TextRows(row * blocks, blocks, ends, present)

    def text(self, tokens: Any) -> Any:
        """int32 `[batch, length]`, `[EOS]` last, to strings `[batch]`."""
        # Pieces of text alone: [EOS] and padding have ids that decoding would spell out.
        ragged = tf.ragged.boolean_mask(tokens, (tokens != 0) & (tokens != self._ids[3]))
        return self._tokenizer.detokenize(ragged)
