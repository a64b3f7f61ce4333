"""seqio preprocessors of texts with classes: a class to choose, or its word to write."""

from __future__ import annotations

from collections.abc import Sequence

import gin
import numpy as np
import tensorflow as tf

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.outcomes import with_outcomes
from m6rec_jax.pipeline.preprocessors import Example, Lengths, map_rows, rows_may_vary, with_ids
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row, drop_words
from m6rec_jax.text.vocabulary import SubwordSampling


@gin.configurable
def classification_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    language_weight: float = 0.0,
    subword_sampling: bool = False,
) -> tf.data.Dataset:
    """`labelled_texts` view: the text is the source, a question the target, a class at its `[EOS]`.

    Args:
      ds: rows with `source`, `question`, `label`, `text_index`.
      sequence_length: `{"inputs": S, "targets": T}`; a text longer than S loses its end, one of
        several parts its oldest but the first.
      vocabulary: of the task.
      task_name: whose row of the prompt bank is used.
      language_weight: weight of the question's words in the language modelling loss.
      subword_sampling: cut words at random in training, see `text.vocabulary.SubwordSampling`.
    """

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        sampling = None if rng is None else SubwordSampling(rng)
        text = vocabulary.text
        row = rows.source_row(text, example["source"], sequence_length["inputs"], sampling=sampling)
        row |= rows.packed_candidates(
            text,
            [example["question"]],
            sequence_length["targets"],
            [example["label"]],
            [example["text_index"]],
        )
        row["decoder_loss_weights"] *= np.float32(language_weight)
        return with_ids(row, task_name)

    columns = ("source", "question", "label", "text_index")
    random = subword_sampling and rows_may_vary()
    return map_rows(ds, make, columns, random=random)


@gin.configurable
def class_word_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    words: Sequence[str],
    outcome_weight: float = 1.0,
    word_dropout: float = 0.0,
) -> tf.data.Dataset:
    """`labelled_texts` view as a document to generate: the answer is the word of the text's class.

    It is predicted from the state at the question's `[EOS]`, where classification has its classes:
    what `preprocessors.outcome_rows` is to scoring.

    Args:
      ds: rows with `source`, `question`, `label`.
      sequence_length, vocabulary, task_name: as in `classification_rows`.
      words: of each class.
      outcome_weight: loss weight of the word.
      word_dropout: share of the words of the text that training leaves out, each time others, see
        `text.rows.drop_words`.

    Raises:
      ConfigError: `word_dropout` is no share.
      DataError: a class without a word.
    """
    if not 0 <= word_dropout < 1:
        raise ConfigError(
            f"class_word_rows.word_dropout = {word_dropout} is not from 0 up to below 1"
        )

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        source, label = example["source"], int(example["label"])
        if label >= len(words):
            raise DataError(
                f"class {label} of {task_name} has no word: register_text_tasks was given "
                f"class_words = {tuple(words)}"
            )
        if rng is not None:
            source = [drop_words(part, word_dropout, rng) for part in source]
        row = rows.source_row(vocabulary.text, source, sequence_length["inputs"])
        row |= with_outcomes(
            vocabulary.text,
            [example["question"]],
            [words[label]],
            sequence_length["targets"],
            outcome_weight=outcome_weight,
        )
        return with_ids(row, task_name)

    random = word_dropout > 0 and rows_may_vary()
    return map_rows(ds, make, ("source", "question", "label"), random=random)
