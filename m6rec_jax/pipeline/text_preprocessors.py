"""seqio preprocessors of texts and dialogues: texts to classify, to write, and to retrieve by.

See `row_layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.row_layout import AtRandom, Example, MakeRows, RowLayout, preprocessor
from m6rec_jax.text import rows
from m6rec_jax.text.outcomes import with_outcomes
from m6rec_jax.text.rows import Row


@preprocessor("source", "question", "label", "text_index")
def classification_rows(layout: RowLayout) -> MakeRows:
    """`labelled_texts` view: the text is the source, a question the target, a class at its `[EOS]`.

    A text longer than S loses its end, one of several parts its oldest but the first.
    """

    def make(example: Example) -> Row:
        label, index = [example["label"]], [example["text_index"]]
        row = layout.source(example["source"])
        row |= layout.candidates([example["question"]], label, index)
        row["decoder_loss_weights"] *= 0  # the question is no text to be learnt
        return layout.row(row)

    return make


@preprocessor("source", "question", "label")
def class_word_rows(
    layout: RowLayout,
    *,
    words: Sequence[str],
    outcome_weight: float = 1.0,
    word_dropout: float = 0.0,
) -> MakeRows | AtRandom:
    """`labelled_texts` view as a document to generate: the answer is the word of the text's class.

    The word is predicted from the question's `[EOS]` on, where classification has its classes.

    Args:
      layout: of the task.
      words: of each class.
      outcome_weight: loss weight of the word.
      word_dropout: share of the text's words that training drops, see `text.rows.drop_words`.

    Raises:
      ConfigError: `word_dropout` is no share.
      DataError: a class without a word.
    """

    def make(example: Example, drop_words: Callable[[str], str]) -> Row:
        label = int(example["label"])
        if label >= len(words) or not words[label]:
            raise DataError(
                f"class {label} of {layout.task_name} has no word: register_text_tasks was given "
                f"class_words = {tuple(words)}"
            )
        return layout.row(
            layout.source([drop_words(part) for part in example["source"]])
            | with_outcomes(
                layout.text,
                [example["question"]],
                [words[label]],
                layout.target_length,
                outcome_weight=outcome_weight,
            )
        )

    return layout.dropout("class_word_rows.word_dropout", word_dropout, make)


@preprocessor("source", "prefix", "target", "text_index")
def text_generation_rows(layout: RowLayout, *, loss_weight: float = 1.0) -> MakeRows:
    """A view of texts to write: the target continues its prefix, given the source.

    A text longer than T loses its end.

    Args:
      layout: of the task.
      loss_weight: of every token, where longer texts of other tasks would drown these.

    Raises:
      ConfigError: a weight that is not above 0.
    """
    if not loss_weight > 0:
        raise ConfigError(f"text_generation_rows.loss_weight = {loss_weight} must be above 0")

    def make(example: Example) -> Row:
        source, target = example["source"], example["target"]
        row = layout.generation(
            source, target, prefix=example["prefix"], text_index=example["text_index"]
        )
        row["decoder_loss_weights"] *= loss_weight
        return row

    return make


@preprocessor("inputs", "targets")
def text_to_text_rows(layout: RowLayout) -> MakeRows:
    """Rows of a seqio task: `targets` are written, given `inputs`.

    Both are token ids, with `[EOS]` at their ends or without. What is longer than S or T loses its
    end, and is counted.
    """

    def make(example: Example) -> Row:
        inputs, targets = (rows.without_end(example[name]) for name in ("inputs", "targets"))
        is_cut = len(inputs) > layout.source_length - 2  # beside [BOS'] and [EOS']
        return layout.generation([inputs], targets) | {"num_dropped": np.array([is_cut], np.int32)}

    return make


@preprocessor("source", "target", "item_indices", "turn_index")
def recommendation_rows(layout: RowLayout, *, log_frequency: Callable[[], np.ndarray]) -> MakeRows:
    """`recommendations` view: a dialogue as the user and the item for the two-tower loss.

    The turn stands for the user, so the items that it names are no negatives of each other.

    Args:
      layout: of the task.
      log_frequency: see `preprocessors.retrieval_rows`.
    """
    frequency = log_frequency()

    def make(example: Example) -> Row:
        items = example["item_indices"]
        row = layout.source(example["source"]) | layout.candidates(
            [example["target"]], item_ids=items, item_log_frequency=frequency[items]
        )
        # The title is learnt as language by the task that writes it, not by this one.
        row["decoder_loss_weights"] *= 0
        return layout.row(row, user=example["turn_index"], retrieval=1)

    return make
