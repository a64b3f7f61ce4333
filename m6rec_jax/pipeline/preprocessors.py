"""seqio preprocessors: the columns of a view become rows, see `row_layout`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.row_layout import Example, MakeRows, RowLayout, preprocessor
from m6rec_jax.text import rows
from m6rec_jax.text.infilling import text_infilling_row
from m6rec_jax.text.labels import Contrast, with_labels
from m6rec_jax.text.layout import Row

_JUDGED = ("history", "candidates", "labels", "item_indices", "user_index")


@preprocessor(*_JUDGED, optional=("ratings",))
def scoring_rows(
    layout: RowLayout,
    *,
    rating_values: Sequence[float] = (),
    candidate_length: int | None = None,
) -> MakeRows:
    """`groups` view: one history, its candidates packed into the decoder, a class for each.

    As in use no candidate is cut because of others: those that do not fit into T tokens together
    take several rows, each with the whole history.

    Args:
      rating_values: empty: the class is the label, 0 or 1. Otherwise the class is the index of
        the candidate's rating among these values, so that the head learns from finer labels.
      candidate_length: most tokens of a candidate (None: T). Set it where a few texts are long:
        they are then cut, in training and, by what `evaluation.assets` saves, in use.
    """
    limit = rows.candidate_share(1, layout.target_length, candidate_length)

    def make(example: Example) -> list[Row]:
        texts, items, labels = (example[name] for name in ("candidates", "item_indices", "labels"))
        if rating_values:
            labels = rating_classes(example["ratings"], rating_values)

        def decoder(part: slice) -> Row:
            return layout.candidates(texts[part], labels[part], items[part], candidate_length=limit)

        sizes = [min(len(layout.text.encode_array(text)) + 2, limit) for text in texts]
        return _several_rows(layout, example, sizes, decoder)

    return make


def _several_rows(
    layout: RowLayout, example: Example, sizes: Sequence[int], decoder: Callable[[slice], Row]
) -> list[Row]:
    """The rows of an example's candidates, as many in each as fit."""
    source = layout.source(example["history"])
    return [
        layout.row(source | decoder(part), user=example["user_index"])
        for part in rows.rows_of_texts(sizes, layout.target_length)
    ]


@preprocessor("history", "items", "item_indices", "user_index")
def retrieval_rows(
    layout: RowLayout,
    *,
    candidate_length: int | None = None,
    item_word_dropout: float = 0.0,
) -> MakeRows:
    """`next_items` view: a user and the items that came next, for the two-tower loss.

    Of prepared data rows have the log of each item's share of the training events, too, for the
    loss' `correct_frequency`.

    Args:
      candidate_length: most tokens of an item; None: a share of T.
      item_word_dropout: share of the words of items' texts that training drops, drawn anew each
        time (`text.rows.drop_words`): for items that were never trained on.
    """
    log_frequency = None if layout.prepared is None else layout.data().catalogue().log_frequency

    def make(example: Example, drop_words: Callable[[str], str]) -> Row:
        items, indices = [drop_words(item) for item in example["items"]], example["item_indices"]
        limit = rows.candidate_share(len(items), layout.target_length, candidate_length)
        frequency = None if log_frequency is None else log_frequency[indices]
        row = layout.source(example["history"])
        row |= layout.candidates(items, None, indices, frequency, candidate_length=limit)
        return layout.row(row, user=example["user_index"], retrieval=1)

    return layout.dropout("retrieval_rows.item_word_dropout", item_word_dropout, make)


@preprocessor("source", "target")
def generation_rows(layout: RowLayout) -> MakeRows:
    """`documents` view: the target is generated from the source (paper section 1, pretraining ii).

    Rows have `source` (segments, none for a description of an item) and `target`.
    """
    return lambda example: layout.generation(example["source"], example["target"])


@preprocessor("source", "target")
def infilling_rows(layout: RowLayout) -> MakeRows:
    """`documents` view: spans of source and target are masked and restored (pretraining i)."""

    def make(example: Example, rng: np.random.Generator) -> Row:
        segments = [*example["source"], example["target"]]
        tokens = [layout.text.encode_array(segment) for segment in segments]
        lengths = layout.source_length, layout.target_length
        return layout.row(text_infilling_row(layout.text, tokens, *lengths, rng))

    return make


@preprocessor("history", "candidates", "ratings", "labels")
def outcome_rows(layout: RowLayout, *, outcome_weight: float = 1.0) -> MakeRows:
    """`groups` view as a document to generate: each candidate is followed by its outcome in words.

    The outcome is predicted from the candidate's `[EOS]` on, where scoring has its classes. So a
    backbone pretrained this way has seen the form of the scoring task before it is frozen.

    Args:
      outcome_weight: loss weight of the outcome words; the candidates' own words have none.
    """
    data = layout.data()
    outcome = data.template().outcome
    # By label, where negatives are sampled.
    by_label = () if "label" in data.dataset_spec else data.outcome_words() or ()

    def make(example: Example) -> Row:
        labels = example["labels"]
        words = [by_label[label] for label in labels] if by_label else []
        words = words or outcomes_in_words(example["ratings"], labels, outcome)
        source, candidates = example["history"], example["candidates"]
        return _judged_in_words(layout, source, candidates, words, outcome_weight)

    return make


def _judged_in_words(
    layout: RowLayout,
    source: Sequence[str],
    candidates: Sequence[str],
    words: Sequence[str],
    weight: float,
) -> Row:
    """Candidates, each followed by its words of a loss weight."""
    length = layout.target_length
    decoder = with_labels(layout.text, candidates, words, length, label_weight=weight)
    return layout.row(layout.source(source) | decoder)


@preprocessor(*_JUDGED)
def likelihood_rows(
    layout: RowLayout,
    *,
    contrast: Sequence[str] = (),
    candidate_length: int | None = None,
) -> MakeRows:
    """`groups` view, zero-shot scoring: a history, and which of two labels is likelier for each
    candidate, in the layout of `outcome_rows`: a backbone is asked what it has learnt of those.

    Args:
      contrast: the better label and the worse one; empty: the template's first and last.
      candidate_length: as in `scoring_rows`.

    Raises:
      ConfigError: labels that do not differ, or a data set without two.
    """
    text, length = layout.text, layout.target_length
    wording = Contrast.of(
        contrast or [outcome.text for outcome in layout.data().template().outcomes]
    )
    limit = rows.candidate_share(1, length, candidate_length)

    def make(example: Example) -> list[Row]:
        texts, items, labels = (example[name] for name in ("candidates", "item_indices", "labels"))

        def decoder(part: slice) -> Row:
            return wording.lay_out(
                text, texts[part], length, labels[part], items[part], candidate_length=limit
            )

        sizes = [min(wording.num_tokens(text, one), limit) for one in texts]
        return _several_rows(layout, example, sizes, decoder)

    return make


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
) -> MakeRows:
    """`labelled_texts` view as a document to generate: the answer is the word of the text's class.

    The word is predicted from the question's `[EOS]` on, where classification has its classes.

    Args:
      words: of each class.
      outcome_weight: loss weight of the word.
      word_dropout: share of the text's words that training drops, see `text.rows.drop_words`.

    Raises:
      DataError: a class without a word.
    """

    def make(example: Example, drop_words: Callable[[str], str]) -> Row:
        label = int(example["label"])
        if label >= len(words):
            raise DataError(
                f"class {label} of {layout.task_name} has no word: register_text_tasks was given "
                f"class_words = {tuple(words)}"
            )
        source = [drop_words(segment) for segment in example["source"]]
        question, word = [example["question"]], [words[label]]
        return _judged_in_words(layout, source, question, word, outcome_weight)

    return layout.dropout("class_word_rows.word_dropout", word_dropout, make)


@preprocessor("source", "prefix", "target", "text_index")
def text_generation_rows(layout: RowLayout, *, loss_weight: float = 1.0) -> MakeRows:
    """A view of texts to write: the target continues its prefix, given the source.

    A text longer than T loses its end. `loss_weight` is that of every token, where longer texts of
    other tasks would drown these.
    """
    if not loss_weight > 0:
        raise ConfigError(f"text_generation_rows.loss_weight = {loss_weight} must be above 0")

    def make(example: Example) -> Row:
        values = {name: example[name] for name in ("prefix", "text_index")}
        row = layout.generation(example["source"], example["target"], **values)
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
def recommendation_rows(layout: RowLayout) -> MakeRows:
    """`recommendations` view: a dialogue as the user and the item for the two-tower loss.

    The turn stands for the user, so the items that it names are no negatives of each other.
    """
    frequency = layout.data().catalogue().log_frequency

    def make(example: Example) -> Row:
        items = example["item_indices"]
        row = layout.source(example["source"])
        row |= layout.candidates([example["target"]], None, items, frequency[items])
        # The title is learnt as language by the task that writes it, not by this one.
        row["decoder_loss_weights"] *= 0
        return layout.row(row, user=example["turn_index"], retrieval=1)

    return make


def outcomes_in_words(
    ratings: Sequence[float], labels: Sequence[int], outcome: Callable[[float], str]
) -> list[str]:
    """The outcome of each candidate; "" for sampled negatives, which are no events.

    `ratings` are float32 values of the events, NaN for events without one and for sampled
    negatives, `labels` 0 or 1 of each; `outcome` gives words for a value, NaN included.
    """
    rounded = np.asarray(ratings, np.float32)
    # Half a step up: 0.7 as a float32 is less than the 0.7 that an outcome may begin with.
    values = rounded.astype(np.float64) + np.spacing(np.abs(rounded)).astype(np.float64) / 2
    return [
        "" if math.isnan(value) and not label else outcome(value)
        for value, label in zip(values.tolist(), labels, strict=True)
    ]


def rating_classes(ratings: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Class of each rating `[n]`: its index among the sorted `values`; raises DataError."""
    ordered = np.sort(np.asarray(values, np.float64))
    # The nearest: ratings were written in float32, where 0.2 lies above 0.2.
    classes = np.abs(ordered[None] - np.asarray(ratings, np.float64)[:, None]).argmin(axis=1)
    bad = np.flatnonzero(~np.isclose(ordered[classes], ratings))
    if bad.size:
        raise DataError(
            f"the rating {ratings[bad[0]]} is none of rating_values = {tuple(ordered.tolist())}"
        )
    return classes
