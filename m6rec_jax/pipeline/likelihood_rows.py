"""Rows for zero-shot scoring: sentences about candidates, of which some tokens count.

In training the same rows are a few samples of language: what came of each candidate, in words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

import gin
import numpy as np
import tensorflow as tf

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.pipeline.outcomes import outcomes_in_words
from m6rec_jax.pipeline.preprocessors import Example, Lengths, map_rows, rows_may_vary, with_ids
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text import rows
from m6rec_jax.text.counted_sentences import CountedSentence, counted_candidates
from m6rec_jax.text.rows import Row

_OUTCOME = "{outcome}"


@gin.configurable
def likelihood_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    item_texts: Callable[[], Sequence[str]],
    outcome_of: Callable[[float], str],
    sentence: str = "{item}",
    outcome: str = "",
    counted: Collection[str] = ("candidate",),
    candidate_length: int | None = None,
) -> tf.data.Dataset:
    """`groups` view: one history, a sentence about each of its candidates.

        likelihood_rows.sentence = '{candidate}. {outcome}.'
        likelihood_rows.outcome = 'liked'
        likelihood_rows.counted = ('after',)

    Args:
      ds: rows with `history`, `candidates`, `labels`, `item_indices`, `user_index`; in training
        with `{outcome}` also `ratings`.
      sequence_length: `{"inputs": S, "targets": T}`.
      vocabulary: of the task.
      task_name: whose row of the prompt bank is used.
      item_texts: returns the items as the catalogue tells them, in the order of the items table.
      outcome_of: words for an event's value ("liked"); of the data set's template.
      sentence: with one field: `{candidate}`, told with its statistics as scoring sees it, or
        `{item}`, told as in the catalogue. It may have `{outcome}` besides.
      outcome: what `{outcome}` is when candidates are scored, in validation, too, whose loss
        therefore is none to choose a step by. In training it is what came of each
        candidate; one of which nothing is known is left out.
      counted: which parts of the sentence count, of `text.counted_sentences.PARTS`: the words
        'before' the field, the 'candidate' itself, those 'after' it, and the 'end' ([EOS]).
      candidate_length: most tokens of one sentence; None shares T among those of a group.

    Raises:
      ConfigError: a sentence that does not parse, or `{outcome}` with nothing to ask for.
    """
    if _OUTCOME in sentence and not outcome:
        raise ConfigError(
            f"the sentence {sentence!r} asks for an outcome: set likelihood_rows.outcome, for "
            "instance to 'liked'"
        )

    @functools.cache
    def of_outcome(words: str) -> CountedSentence:
        return CountedSentence.parse(sentence.replace(_OUTCOME, words), counted)

    asked = of_outcome(outcome)
    of_items = item_texts() if asked.as_item else ()
    told = _OUTCOME in sentence and rows_may_vary()

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        del rng
        text = vocabulary.text
        indices, labels = example["item_indices"], example["labels"]
        texts = [of_items[i] for i in indices] if asked.as_item else example["candidates"]
        sentences = [asked] * len(texts)
        if told:
            words = outcomes_in_words(example["ratings"], labels, outcome_of)
            known = [place for place, word in enumerate(words) if word]
            if not known:
                raise DataError("none of the candidates of a row has an outcome in words")
            texts, sentences = [texts[i] for i in known], [of_outcome(words[i]) for i in known]
            indices, labels = indices[known], labels[known]
        row = rows.source_row(text, example["history"], sequence_length["inputs"])
        row |= counted_candidates(
            text,
            texts,
            sentences,
            sequence_length["targets"],
            labels,
            indices,
            candidate_length=candidate_length,
        )
        return with_ids(row, task_name, user=example["user_index"])

    columns = ["history", "candidates", "labels", "item_indices", "user_index"]
    return map_rows(ds, make, [*columns, "ratings"] if told else columns, random=False)
