"""seqio preprocessors: the columns of a prepared view become rows of tokens.

All of them call `m6rec_jax.text.rows` through `tf.numpy_function(stateful=False)`: training runs
the code that serving runs, and tf.data can save its iterators. They yield every feature of
`pipeline.features.TASK_FEATURES`. Those of texts are in `text_preprocessors`.

Arguments that they share:

    ds                 rows with the columns that each function names
    sequence_length    `{"inputs": S, "targets": T}`
    vocabulary         of the task
    task_name          its row of the prompt bank is used, see `prompt_rows`
    candidate_length   most tokens of one candidate; None: T, of retrieval a share of it
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import gin
import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.features import TASK_FEATURES
from m6rec_jax.pipeline.prompt_rows import prompt_row
from m6rec_jax.pipeline.source import python_value
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text import rows
from m6rec_jax.text.outcomes import Contrast, with_outcomes
from m6rec_jax.text.questions import question
from m6rec_jax.text.rows import Row, drop_words

Example = Mapping[str, Any]
Lengths = Mapping[str, int]

_FOR_TRAINING = contextvars.ContextVar("rows are made for training", default=False)


@contextlib.contextmanager
def training_rows() -> Iterator[None]:
    """Pipelines built inside may vary their rows at random (word dropout)."""
    token = _FOR_TRAINING.set(True)
    try:
        yield
    finally:
        _FOR_TRAINING.reset(token)


def rows_may_vary() -> bool:
    """Whether the pipeline that is being built is for training."""
    return _FOR_TRAINING.get()


@gin.configurable
def scoring_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    rating_values: Sequence[float] = (),
    candidate_length: int | None = None,
    language_weight: float = 1.0,
) -> tf.data.Dataset:
    """`groups` view: one history, its candidates packed into the decoder, a class for each.

    As in use no candidate is cut because of others: those that do not fit into T tokens together
    take several rows, each with the whole history.

    Args:
      ds: rows with `history`, `candidates`, `labels`, `ratings`, `item_indices`, `user_index`.
      rating_values: empty: the class is the label, 0 or 1. Otherwise the class is the index of
        the candidate's rating among these values, so that the head learns from finer labels.
      candidate_length: set it where a few texts are long: they are then cut, in training and, by
        what `evaluation.assets` saves, in use.
      language_weight: weight of the candidates' own words in the language modelling loss.
    """

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> list[Row]:
        labels, length = example["labels"], sequence_length["targets"]
        if rating_values:
            labels = rating_classes(example["ratings"], rating_values)
        source = rows.source_row(text, example["history"], sequence_length["inputs"])
        limit = rows.candidate_share(1, length, candidate_length)
        sizes = [min(len(text.encode_array(c)) + 2, limit) for c in example["candidates"]]
        found = []
        for part in rows.rows_of_texts(sizes, length):
            candidates, items = example["candidates"][part], example["item_indices"][part]
            row = source | rows.packed_candidates(
                text, candidates, length, labels[part], items, candidate_length=limit
            )
            row["decoder_loss_weights"] *= np.float32(language_weight)
            found.append(with_ids(row, task_name, user=example["user_index"]))
        return found

    columns = ["history", "candidates", "labels", "item_indices", "user_index"]
    if rating_values:
        columns.append("ratings")
    return map_rows(ds, make, columns)


@gin.configurable
def retrieval_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    item_log_frequency: Callable[[], np.ndarray] | None = None,
    candidate_length: int | None = None,
    language_weight: float = 1.0,
    item_word_dropout: float = 0.0,
) -> tf.data.Dataset:
    """`next_items` view: a user and the items that came next, for the two-tower loss.

    Args:
      ds: rows with `history`, `items`, `item_indices`, `user_index`.
      item_log_frequency: returns the log of each item's share of the training events, `[items]`,
        for the contrastive loss' `correct_frequency`.
      language_weight: as in `scoring_rows`.
      item_word_dropout: share of the words of items' texts that training drops, drawn anew each
        time (`text.rows.drop_words`): for items that were never trained on.

    Raises:
      ConfigError: `item_word_dropout` is no share.
    """
    if not 0 <= item_word_dropout < 1:
        raise ConfigError(
            f"retrieval_rows.item_word_dropout = {item_word_dropout} is not from 0 up to below 1"
        )
    log_frequency = None if item_log_frequency is None else item_log_frequency()

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        items = example["items"]
        if item_word_dropout and rng is not None:
            items = [drop_words(item, item_word_dropout, rng) for item in items]
        row = rows.source_row(text, example["history"], sequence_length["inputs"])
        row |= rows.packed_candidates(
            text,
            items,
            sequence_length["targets"],
            item_ids=example["item_indices"],
            item_log_frequency=(
                None if log_frequency is None else log_frequency[example["item_indices"]]
            ),
            candidate_length=rows.candidate_share(
                len(items), sequence_length["targets"], candidate_length
            ),
        )
        row["decoder_loss_weights"] *= np.float32(language_weight)
        return with_ids(row, task_name, user=example["user_index"], retrieval=1)

    columns = ("history", "items", "item_indices", "user_index")
    return map_rows(ds, make, columns, random=item_word_dropout > 0 and rows_may_vary())


def generation_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
) -> tf.data.Dataset:
    """`documents` view: the target is generated from the source (paper section 1, pretraining ii).

    Rows have `source` (segments, none for a description of an item) and `target`.
    """

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        row = rows.generation_row(
            text,
            example["source"],
            example["target"],
            sequence_length["inputs"],
            sequence_length["targets"],
        )
        return with_ids(row, task_name)

    return map_rows(ds, make, ("source", "target"))


@gin.configurable
def infilling_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
) -> tf.data.Dataset:
    """`documents` view: short spans of source and target are masked and restored (pretraining i).

    Args:
      ds: rows with `source` and `target`.
      noise_density: share of the tokens that is masked.
      mean_span_length: tokens per span, on average.
    """

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        assert rng is not None
        segments = [*example["source"], example["target"]]
        row = rows.text_infilling_row(
            text,
            [text.encode_array(segment) for segment in segments],
            sequence_length["inputs"],
            sequence_length["targets"],
            rng,
            noise_density=noise_density,
            mean_span_length=mean_span_length,
        )
        return with_ids(row, task_name)

    return map_rows(ds, make, ("source", "target"), random=True)


@gin.configurable
def outcome_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    outcome: Callable[[], Callable[[float], str]],
    sampled: Callable[[], Sequence[str]] = tuple,
    candidate_weight: float = 0.0,
    outcome_weight: float = 1.0,
) -> tf.data.Dataset:
    """`groups` view as a document to generate: each candidate is followed by its outcome in words.

    The outcome is predicted from the candidate's `[EOS]` on, where scoring has its classes. So a
    backbone pretrained this way has seen the form of the scoring task before it is frozen.

    Args:
      ds: rows with `history`, `candidates`, `ratings`, `labels`.
      outcome: returns what gives the words for an event's value ("liked"), of the data set's
        template.
      sampled: returns words by label, 0 or 1, where negatives are sampled; none elsewhere.
      candidate_weight: loss weight of the candidates' own words.
      outcome_weight: loss weight of the outcome words.
    """
    by_label, words = sampled(), outcome()
    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        labels = example["labels"]
        row = rows.source_row(text, example["history"], sequence_length["inputs"])
        row |= with_outcomes(
            text,
            example["candidates"],
            [by_label[label] for label in labels]
            if by_label
            else outcomes_in_words(example["ratings"], labels, words),
            sequence_length["targets"],
            candidate_weight=candidate_weight,
            outcome_weight=outcome_weight,
        )
        return with_ids(row, task_name)

    columns = ("history", "candidates", "ratings", "labels")
    return map_rows(ds, make, columns)


@gin.configurable
def likelihood_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    item_texts: Callable[[], Sequence[str]],
    outcomes: Callable[[], Sequence[str]],
    contrast: Sequence[str] = (),
    sentence: str = "",
    counted: Collection[str] = ("candidate",),
    candidate_length: int | None = None,
) -> tf.data.Dataset:
    """`groups` view, zero-shot scoring: a history, and a question about each of its candidates.

    The question is which of two outcomes is likelier, in the layout of `outcome_rows`, so that a
    backbone that has read those is asked what it has learnt. Or it is how plausible a sentence is:

        likelihood_rows.sentence = '{candidate}. liked.'
        likelihood_rows.counted = ('after',)

    Args:
      ds: rows with `history`, `candidates`, `labels`, `item_indices`, `user_index`.
      item_texts: returns the catalogue's texts, in the order of the items table.
      outcomes: returns the words for outcomes ("liked"), from the best to the worst.
      contrast: the better outcome and the worse one; empty: the first and the last of `outcomes`.
      sentence: has one field: `{candidate}`, rendered with its statistics as in scoring, or
        `{item}`, rendered as in the catalogue.
      counted: which parts of the sentence count, of `text.counted_sentences.PARTS`: the words
        'before' the field, the 'candidate' itself, those 'after' it, and the 'end' ([EOS]).

    Raises:
      ConfigError: a contrast of outcomes that do not differ, or of a data set without two; a
        sentence that does not parse.
    """
    asked = question(contrast, sentence, counted) or Contrast.of(outcomes())
    of_items = item_texts() if asked.as_item else ()

    text = vocabulary.text

    def make(example: Example, rng: np.random.Generator | None) -> list[Row]:
        indices, length = example["item_indices"], sequence_length["targets"]
        texts = [of_items[i] for i in indices] if asked.as_item else example["candidates"]
        source = rows.source_row(text, example["history"], sequence_length["inputs"])
        limit = rows.candidate_share(1, length, candidate_length)
        sizes = [min(asked.num_tokens(text, one), limit) for one in texts]
        found = []
        for part in rows.rows_of_texts(sizes, length):
            labels, items = example["labels"][part], indices[part]
            row = asked.lay_out(text, texts[part], length, labels, items, candidate_length=limit)
            found.append(with_ids(source | row, task_name, user=example["user_index"]))
        return found

    return map_rows(ds, make, ("history", "candidates", "labels", "item_indices", "user_index"))


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


def map_rows(
    ds: tf.data.Dataset,
    make: Callable[[Example, np.random.Generator | None], Row | list[Row]],
    columns: Sequence[str],
    *,
    random: bool = False,
) -> tf.data.Dataset:
    """Maps `make` over a data set, in parallel and in order.

    Args:
      ds: examples, dictionaries of tensors.
      make: from columns (strings decoded) and a random generator to a row of all task features, or
        to several of them.
      columns: those that `make` reads.
      random: give `make` a generator, seeded by seqio's seed for this row; otherwise None.

    Raises:
      ConfigError: the data set lacks a column.
    """
    missing = [column for column in columns if column not in ds.element_spec]
    if missing:
        raise ConfigError(
            f"the prepared data have no column '{missing[0]}', only "
            f"{', '.join(sorted(ds.element_spec))}; is this the right view, and was it prepared by "
            "this version (`m6rec data prepare` prepares it anew)?"
        )

    def numpy_row(seed: np.ndarray, *values: Any) -> list[np.ndarray]:
        example = {name: python_value(value) for name, value in zip(columns, values, strict=True)}
        rng = np.random.default_rng(seed.astype(np.uint32)) if random else None
        made = make(example, rng)
        found = made if isinstance(made, list) else [made]
        batch = rows.pad_batch(found, {n: max(len(r[n]) for r in found) for n in TASK_FEATURES})
        return list(batch.values())

    def tf_row(example: Mapping[str, tf.Tensor], seed: Any) -> dict[str, tf.Tensor]:
        tensors = tf.numpy_function(
            numpy_row,
            [seed, *(example[name] for name in columns)],
            [tf.as_dtype(feature.dtype) for feature in TASK_FEATURES.values()],
            stateful=False,
        )
        for tensor in tensors:
            tensor.set_shape([None, None])
        return dict(zip(TASK_FEATURES, tensors, strict=True))

    if random:
        random_rows = seqio.map_over_dataset(
            lambda example, seed: tf_row(example, seed), num_seeds=1
        )
        return random_rows(ds).unbatch()
    return ds.map(
        lambda example: tf_row(example, tf.zeros([2], tf.int64)),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).unbatch()


def job_id(task_name: str) -> int:
    """The number that marks the rows of a seqio task.

    It is the CRC-32 of the name without the sign bit: the same in every mixture, process and
    launch.
    """
    return zlib.crc32(task_name.encode("utf-8")) & 0x7FFFFFFF


def with_ids(row: Row, task_name: str, *, user: int = -1, retrieval: int = 0) -> Row:
    """The row with `task_ids`, `retrieval`, `user_ids` `[1]` and `decoder_job_ids` `[n]`."""
    positions = len(row["decoder_input_tokens"])
    return row | {
        "task_ids": np.array([prompt_row(task_name)], np.int32),
        "retrieval": np.array([retrieval], np.int32),
        "user_ids": np.array([user], np.int32),
        "decoder_job_ids": np.full(positions, job_id(task_name), np.int32),
    }


def rating_classes(ratings: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """Class of each rating `[n]`: its index among the sorted `values`.

    Raises:
      DataError: a rating is none of the values.
    """
    known = np.sort(np.asarray(values, np.float64))
    # The nearest: ratings were written in float32, where 0.2 lies above 0.2.
    classes = np.abs(known[None] - np.asarray(ratings, np.float64)[:, None]).argmin(axis=1)
    bad = np.flatnonzero(~np.isclose(known[classes], ratings))
    if bad.size:
        raise DataError(
            f"the rating {ratings[bad[0]]} is none of rating_values = {tuple(known.tolist())}"
        )
    return classes
