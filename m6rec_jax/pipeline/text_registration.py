"""Registers the seqio tasks of a prepared corpus, so that `tasks/<corpus>.py` stays short.

    register_text_tasks("film_reviews", corpus="film-reviews", label_task="sentiment")

registers

    film_reviews_infilling     documents       spans restored (pretraining)
    film_reviews_generation    documents       what comes next (pretraining)
    film_reviews_sentiment     labelled_texts  the class of each text
    film_reviews_pretrain      mixture of infilling and generation

Nothing is read before a task is used; see `pipeline.locations` for where data are looked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import gin
import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.pipeline import locations, preprocessors
from m6rec_jax.pipeline.preprocessors import Example, Lengths, map_rows, with_ids
from m6rec_jax.pipeline.registration import add_task
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import SubwordSampling, Vocabulary

# The rows of many corpora are held at a time, in every shard; TFDS has shuffled them already.
SHUFFLE_BUFFER_SIZE = 256


def register_text_tasks(
    name: str,
    corpus: str,
    *,
    split: str = "by_group",
    label_task: str | None = None,
    vocabulary: Callable[[], Vocabulary] | None = None,
    vocabulary_split: str | None = None,
    shuffle_buffer_size: int = SHUFFLE_BUFFER_SIZE,
) -> list[str]:
    """Registers all tasks and mixtures of one split of a corpus; see the module's docstring.

    Args:
      name: prefix of the task names: letters, digits, `_`.
      corpus: name of the corpus, as in its corpus.json.
      split: name of the prepared split.
      label_task: what the class of a text is called; None for a corpus without classes.
      vocabulary: returns the vocabulary; None: the file of `locations.vocabulary_file`.
      vocabulary_split: beside which split that file lies; None: `split`.
      shuffle_buffer_size: see `PreparedSource`.

    Returns:
      The names registered, tasks before mixtures.
    """
    load = functools.partial(locations.load_vocabulary, corpus, vocabulary_split or split)
    loaded = SeqioVocabulary(vocabulary or load)
    add = functools.partial(add_task, loaded, corpus, split, shuffle_buffer_size)
    add(f"{name}_infilling", "language", "documents", preprocessors.infilling_rows)
    add(f"{name}_generation", "language", "documents", preprocessors.generation_rows)
    language = [f"{name}_infilling", f"{name}_generation"]
    names = list(language)
    if label_task is not None:
        names.append(f"{name}_{label_task}")
        add(names[-1], "classification", "labelled_texts", classification_rows)
    seqio.MixtureRegistry.add(f"{name}_pretrain", language, default_rate=1.0)
    return [*names, f"{name}_pretrain"]


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
    random = subword_sampling and preprocessors.rows_may_vary()
    return map_rows(ds, make, columns, random=random)
