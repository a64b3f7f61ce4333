"""seqio preprocessors of what users did: the columns of a view become rows, see `row_layout`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from m6rec_jax.errors import DataError
from m6rec_jax.pipeline.row_layout import AtRandom, Example, MakeRows, RowLayout, preprocessor
from m6rec_jax.text import rows
from m6rec_jax.text.outcomes import Contrast, with_outcomes
from m6rec_jax.text.rows import Row

_JUDGED = ("history", "candidates", "labels", "item_indices", "user_index")


@preprocessor(*_JUDGED, optional=("ratings",))
def scoring_rows(
    layout: RowLayout,
    *,
    rating_values: Sequence[float] = (),
    candidate_length: int | None = None,
    language_weight: float = 1.0,
) -> MakeRows:
    """`groups` view: one history, its candidates packed into the decoder, a class for each.

    As in use no candidate is cut because of others: those that do not fit into T tokens together
    take several rows, each with the whole history.

    Args:
      layout: of the task.
      rating_values: empty: the class is the label, 0 or 1. Otherwise the class is the index of
        the candidate's rating among these values, so that the head learns from finer labels.
      candidate_length: most tokens of a candidate (None: T). Set it where a few texts are long:
        they are then cut, in training and, by what `evaluation.assets` saves, in use.
      language_weight: weight of the candidates' own words in the language modelling loss.
    """
    limit = rows.candidate_share(1, layout.target_length, candidate_length)

    def make(example: Example) -> list[Row]:
        texts, items, labels = (example[name] for name in ("candidates", "item_indices", "labels"))
        if rating_values:
            labels = rating_classes(example["ratings"], rating_values)

        def decoder(part: slice) -> Row:
            row = layout.candidates(texts[part], labels[part], items[part], candidate_length=limit)
            row["decoder_loss_weights"] *= np.float32(language_weight)
            return row

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
    item_log_frequency: Callable[[], np.ndarray] | None = None,
    candidate_length: int | None = None,
    language_weight: float = 1.0,
    item_word_dropout: float = 0.0,
) -> MakeRows | AtRandom:
    """`next_items` view: a user and the items that came next, for the two-tower loss.

    Args:
      layout: of the task.
      item_log_frequency: returns the log of each item's share of the training events, `[items]`,
        for the contrastive loss' `correct_frequency`.
      candidate_length: most tokens of an item; None: a share of T.
      language_weight: as in `scoring_rows`.
      item_word_dropout: share of the words of items' texts that training drops, drawn anew each
        time (`text.rows.drop_words`): for items that were never trained on.

    Raises:
      ConfigError: `item_word_dropout` is no share.
    """
    log_frequency = None if item_log_frequency is None else item_log_frequency()

    def make(example: Example, drop_words: Callable[[str], str]) -> Row:
        items, indices = [drop_words(item) for item in example["items"]], example["item_indices"]
        row = layout.source(example["history"]) | layout.candidates(
            items,
            item_ids=indices,
            item_log_frequency=None if log_frequency is None else log_frequency[indices],
            candidate_length=rows.candidate_share(
                len(items), layout.target_length, candidate_length
            ),
        )
        row["decoder_loss_weights"] *= np.float32(language_weight)
        return layout.row(row, user=example["user_index"], retrieval=1)

    return layout.dropout("retrieval_rows.item_word_dropout", item_word_dropout, make)


@preprocessor("source", "target")
def generation_rows(layout: RowLayout) -> MakeRows:
    """`documents` view: the target is generated from the source (paper section 1, pretraining ii).

    Rows have `source` (segments, none for a description of an item) and `target`.
    """
    return lambda example: layout.generation(example["source"], example["target"])


@preprocessor("source", "target")
def infilling_rows(layout: RowLayout) -> AtRandom:
    """`documents` view: spans of source and target are masked and restored (pretraining i)."""

    def make(example: Example, rng: np.random.Generator) -> Row:
        segments = [*example["source"], example["target"]]
        tokens = [layout.text.encode_array(segment) for segment in segments]
        lengths = layout.source_length, layout.target_length
        return layout.row(rows.text_infilling_row(layout.text, tokens, *lengths, rng))

    return AtRandom(make)


@preprocessor("history", "candidates", "ratings", "labels")
def outcome_rows(
    layout: RowLayout,
    *,
    outcome: Callable[[], Callable[[float], str]],
    sampled: Callable[[], Sequence[str]] = tuple,
    outcome_weight: float = 1.0,
) -> MakeRows:
    """`groups` view as a document to generate: each candidate is followed by its outcome in words.

    The outcome is predicted from the candidate's `[EOS]` on, where scoring has its classes. So a
    backbone pretrained this way has seen the form of the scoring task before it is frozen.

    Args:
      layout: of the task.
      outcome: returns what gives the words for an event's value ("liked"), of the data set's
        template.
      sampled: returns words by label, 0 or 1, where negatives are sampled; none elsewhere.
      outcome_weight: loss weight of the outcome words; the candidates' own words have none.
    """
    by_label, words = sampled(), outcome()

    def make(example: Example) -> Row:
        labels = example["labels"]
        row = layout.source(example["history"]) | with_outcomes(
            layout.text,
            example["candidates"],
            [by_label[label] for label in labels]
            if by_label
            else outcomes_in_words(example["ratings"], labels, words),
            layout.target_length,
            outcome_weight=outcome_weight,
        )
        return layout.row(row)

    return make


@preprocessor(*_JUDGED)
def likelihood_rows(
    layout: RowLayout,
    *,
    outcomes: Callable[[], Sequence[str]],
    contrast: Sequence[str] = (),
    candidate_length: int | None = None,
) -> MakeRows:
    """`groups` view, zero-shot scoring: a history, and which of two labels is likelier for each
    candidate, in the layout of `outcome_rows`: a backbone is asked what it has learnt of those.

    Args:
      layout: of the task.
      outcomes: returns the words for labels ("liked"), from the best to the worst.
      contrast: the better label and the worse one; empty: the first and the last of `outcomes`.
      candidate_length: as in `scoring_rows`.

    Raises:
      ConfigError: labels that do not differ, or a data set without two.
    """
    text, length = layout.text, layout.target_length
    wording = Contrast.of(contrast or outcomes())
    limit = rows.candidate_share(1, length, candidate_length)

    def make(example: Example) -> list[Row]:
        indices, labels = example["item_indices"], example["labels"]
        texts = example["candidates"]

        def decoder(part: slice) -> Row:
            return wording.lay_out(
                text, texts[part], length, labels[part], indices[part], candidate_length=limit
            )

        sizes = [min(wording.num_tokens(text, one), limit) for one in texts]
        return _several_rows(layout, example, sizes, decoder)

    return make


def outcomes_in_words(
    ratings: Sequence[float], labels: Sequence[int], outcome: Callable[[float], str]
) -> list[str]:
    """The outcome of each candidate; "" for sampled negatives, which are no events.

    Args:
      ratings: float32 values of the events; NaN for events without one and for sampled negatives.
      labels: 0 or 1 of each.
      outcome: words for an event's value, NaN included.
    """
    rounded = np.asarray(ratings, np.float32)
    # Half a step up: 0.7 as a float32 is less than the 0.7 that an outcome may begin with.
    values = rounded.astype(np.float64) + np.spacing(np.abs(rounded)).astype(np.float64) / 2
    return [
        "" if math.isnan(value) and not label else outcome(value)
        for value, label in zip(values.tolist(), labels, strict=True)
    ]


def rating_classes(ratings: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Class of each rating `[n]`: its index among the sorted `values`.

    Raises:
      DataError: a rating is none of the values.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    # The nearest: ratings were written in float32, where 0.2 lies above 0.2.
    classes = np.abs(ordered[None] - np.asarray(ratings, np.float64)[:, None]).argmin(axis=1)
    bad = np.flatnonzero(~np.isclose(ordered[classes], ratings))
    if bad.size:
        raise DataError(
            f"the rating {ratings[bad[0]]} is none of rating_values = {tuple(ordered.tolist())}"
        )
    return classes
