"""Rows for zero-shot scoring: sentences about candidates, of which some tokens count."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import gin
import numpy as np
import tensorflow as tf

from m6rec_jax.pipeline.preprocessors import Example, Lengths, map_rows, row_ids
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text import rows
from m6rec_jax.text.counted_sentences import CountedSentence, counted_candidates
from m6rec_jax.text.rows import Row


@gin.configurable
def likelihood_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    item_texts: Callable[[], Sequence[str]],
    sentence: str = "{item}",
    counted: Collection[str] = ("candidate",),
    candidate_length: int | None = None,
) -> tf.data.Dataset:
    """`groups` view: one history, a sentence about each of its candidates.

        likelihood_rows.sentence = '{candidate}. liked.'
        likelihood_rows.counted = ('after',)

    Args:
      ds: rows with `history`, `candidates`, `labels`, `item_indices`, `user_index`.
      sequence_length: `{"inputs": S, "targets": T}`.
      vocabulary: of the task.
      task_name: whose row of the prompt bank is used.
      item_texts: returns the items as the catalogue tells them, in the order of the items table.
      sentence: with one field: `{candidate}`, told with its statistics as scoring sees it, or
        `{item}`, told as in the catalogue.
      counted: which parts of the sentence count, of `text.counted_sentences.PARTS`: the words
        'before' the field, the 'candidate' itself, those 'after' it, and the 'end' ([EOS]).
      candidate_length: most tokens of one sentence; None shares T among those of a group.

    Raises:
      ConfigError: a sentence that does not parse.
    """
    parsed = CountedSentence.parse(sentence, counted)
    of_items = item_texts() if parsed.as_item else ()

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        del rng
        text = vocabulary.text
        indices = example["item_indices"]
        row = rows.source_row(text, example["history"], sequence_length["inputs"])
        row |= counted_candidates(
            text,
            [of_items[i] for i in indices] if parsed.as_item else example["candidates"],
            parsed,
            sequence_length["targets"],
            example["labels"],
            indices,
            candidate_length=candidate_length,
        )
        return row | row_ids(task_name, user=example["user_index"])

    columns = ("history", "candidates", "labels", "item_indices", "user_index")
    return map_rows(ds, make, columns, random=False)
