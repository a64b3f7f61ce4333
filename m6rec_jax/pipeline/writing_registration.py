"""seqio tasks of texts to write: explanations, titles, queries, and what is said in a dialogue.

    register_writing_tasks("movielens_100k", dataset="movielens-100k", views=("explanations",))

registers `movielens_100k_explanations`, for every view its own task of kind 'generation': trained
as language, evaluated by the texts that it writes. Dialogues are registered by
`register_dialogue_tasks`.

Nothing is read before a task is used; see `pipeline.locations` for where data are looked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import gin
import numpy as np
import tensorflow as tf

from m6rec_jax.data.views import WRITING
from m6rec_jax.errors import ConfigError
from m6rec_jax.pipeline import locations
from m6rec_jax.pipeline.preprocessors import Example, Lengths, map_rows, rows_may_vary, with_ids
from m6rec_jax.pipeline.registration import add_task
from m6rec_jax.pipeline.text_registration import SHUFFLE_BUFFER_SIZE
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text.rows import Row, generation_row
from m6rec_jax.text.vocabulary import SubwordSampling, Vocabulary


def register_writing_tasks(
    name: str,
    dataset: str,
    *,
    split: str = "per_user_temporal",
    views: Sequence[str] = WRITING,
    vocabulary: Callable[[], Vocabulary] | None = None,
    vocabulary_split: str | None = None,
    shuffle_buffer_size: int = SHUFFLE_BUFFER_SIZE,
) -> list[str]:
    """Registers a task for every kind of text that a data set has.

    Args:
      name: prefix of the task names: letters, digits, `_`.
      dataset: name of the data set, as in its dataset.json or corpus.json.
      split: name of the prepared split; texts of corpora have 'by_group'.
      views: of `data.views.WRITING`, those that are prepared.
      vocabulary, vocabulary_split, shuffle_buffer_size: see `register_text_tasks`.

    Returns:
      The names registered.
    """
    load = functools.partial(locations.load_vocabulary, dataset, vocabulary_split or split)
    loaded = SeqioVocabulary(vocabulary or load)
    add = functools.partial(add_task, loaded, dataset, split, shuffle_buffer_size)
    for view in views:
        add(f"{name}_{view}", "generation", view, writing_rows)
    return [f"{name}_{view}" for view in views]


@gin.configurable
def writing_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    loss_weight: float = 1.0,
    subword_sampling: bool = False,
) -> tf.data.Dataset:
    """A view of texts to write: the target goes on from its prefix, given the source.

    Args:
      ds: rows with `source`, `prefix`, `target`, `text_index`.
      sequence_length: `{"inputs": S, "targets": T}`; a text longer than T loses its end.
      vocabulary: of the task.
      task_name: whose row of the prompt bank is used.
      loss_weight: of every token, where longer texts of other tasks would drown these.
      subword_sampling: cut words of the source at random in training, see
        `text.vocabulary.SubwordSampling`.

    Raises:
      ConfigError: a weight that is not above 0.
    """
    if not loss_weight > 0:
        raise ConfigError(f"writing_rows.loss_weight = {loss_weight} must be above 0")

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        row = generation_row(
            vocabulary.text,
            example["source"],
            example["target"],
            sequence_length["inputs"],
            sequence_length["targets"],
            prefix=example["prefix"],
            text_index=example["text_index"],
            sampling=None if rng is None else SubwordSampling(rng),
        )
        row["decoder_loss_weights"] *= loss_weight
        return with_ids(row, task_name)

    columns = ("source", "prefix", "target", "text_index")
    return map_rows(ds, make, columns, random=subword_sampling and rows_may_vary())
