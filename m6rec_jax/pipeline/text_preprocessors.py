"""seqio preprocessors of texts and dialogues: texts to classify, to write, and to retrieve by.

See `preprocessors` for the arguments that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gin
import numpy as np
import tensorflow as tf

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.preprocessors import (
    Example,
    Lengths,
    map_rows,
    rows_may_vary,
    with_ids,
)
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text import rows
from m6rec_jax.text.outcomes import with_outcomes
from m6rec_jax.text.rows import Row, drop_words


@gin.configurable
def classification_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    language_weight: float = 0.0,
) -> tf.data.Dataset:
    """`labelled_texts` view: the text is the source, a question the target, a class at its `[EOS]`.

    A text longer than S loses its end, one of several parts its oldest but the first.

    Args:
      ds: rows with `source`, `question`, `label`, `text_index`.
      language_weight: weight of the question's words in the language modelling loss.
    """

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        row = rows.source_row(text, example["source"], sequence_length["inputs"])
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
    return map_rows(ds, make, columns)


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

    The word is predicted from the question's `[EOS]` on, where classification has its classes.

    Args:
      ds: rows with `source`, `question`, `label`.
      words: of each class.
      outcome_weight: loss weight of the word.
      word_dropout: share of the text's words that training drops, see `text.rows.drop_words`.

    Raises:
      ConfigError: `word_dropout` is no share.
      DataError: a class without a word.
    """
    if not 0 <= word_dropout < 1:
        raise ConfigError(
            f"class_word_rows.word_dropout = {word_dropout} is not from 0 up to below 1"
        )

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        source, label = example["source"], int(example["label"])
        if label >= len(words) or not words[label]:
            raise DataError(
                f"class {label} of {task_name} has no word: register_text_tasks was given "
                f"class_words = {tuple(words)}"
            )
        if rng is not None:
            source = [drop_words(part, word_dropout, rng) for part in source]
        row = rows.source_row(text, source, sequence_length["inputs"])
        row |= with_outcomes(
            text,
            [example["question"]],
            [words[label]],
            sequence_length["targets"],
            outcome_weight=outcome_weight,
        )
        return with_ids(row, task_name)

    random = word_dropout > 0 and rows_may_vary()
    return map_rows(ds, make, ("source", "question", "label"), random=random)


@gin.configurable
def text_generation_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    loss_weight: float = 1.0,
) -> tf.data.Dataset:
    """A view of texts to write: the target continues its prefix, given the source.

    A text longer than T loses its end.

    Args:
      ds: rows with `source`, `prefix`, `target`, `text_index`.
      loss_weight: of every token, where longer texts of other tasks would drown these.

    Raises:
      ConfigError: a weight that is not above 0.
    """
    if not loss_weight > 0:
        raise ConfigError(f"text_generation_rows.loss_weight = {loss_weight} must be above 0")

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        row = rows.generation_row(
            text,
            example["source"],
            example["target"],
            sequence_length["inputs"],
            sequence_length["targets"],
            prefix=example["prefix"],
            text_index=example["text_index"],
        )
        row["decoder_loss_weights"] *= loss_weight
        return with_ids(row, task_name)

    columns = ("source", "prefix", "target", "text_index")
    return map_rows(ds, make, columns)


def text_to_text_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
) -> tf.data.Dataset:
    """Rows of a seqio task: `targets` are written, given `inputs`.

    What is longer than S or T loses its end, and is counted.

    Args:
      ds: rows with the token ids `inputs` and `targets`, with `[EOS]` at their ends or without.
    """
    text, source_length = vocabulary.text, sequence_length["inputs"]

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        inputs, targets = (rows.without_end(example[name]) for name in columns)
        row = rows.generation_row(
            text, [inputs], targets, source_length, sequence_length["targets"]
        )
        is_cut = len(inputs) > source_length - 2  # beside [BOS'] and [EOS']
        return with_ids(row | {"num_dropped": np.array([is_cut], np.int32)}, task_name)

    columns = ("inputs", "targets")
    return map_rows(ds, make, columns)


def recommendation_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    log_frequency: Callable[[], np.ndarray],
) -> tf.data.Dataset:
    """`recommendations` view: a dialogue as the user and the item for the two-tower loss.

    The turn stands for the user, so the items that it names are no negatives of each other.

    Args:
      ds: rows with `source`, `target`, `item_indices`, `turn_index`.
      log_frequency: see `preprocessors.retrieval_rows`.
    """
    frequency = log_frequency()

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        items = example["item_indices"]
        row = rows.source_row(text, example["source"], sequence_length["inputs"])
        row |= rows.packed_candidates(
            text,
            [example["target"]],
            sequence_length["targets"],
            item_ids=items,
            item_log_frequency=frequency[items],
        )
        # The title is learnt as language by the task that writes it, not by this one.
        row["decoder_loss_weights"] *= 0
        return with_ids(row, task_name, user=example["turn_index"], retrieval=1)

    columns = ("source", "target", "item_indices", "turn_index")
    return map_rows(ds, make, columns)
