"""seqio tasks of prepared dialogues: what is said next, and which item is recommended.

    register_dialogue_tasks("inspired", dataset="inspired")

registers

    inspired_replies      replies          what SYSTEM says (BLEU-2, distinct-n, perplexity)
    inspired_titles       recommendations  the title it recommends, written (recall)
    inspired_retrieval    recommendations  the same by the two towers (recall)
    inspired_conversation mixture of all three

Nothing is read before a task is used; see `pipeline.locations` for where data are looked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import gin
import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax.pipeline import locations
from m6rec_jax.pipeline.preprocessors import Example, Lengths, map_rows, rows_may_vary, with_ids
from m6rec_jax.pipeline.registration import add_task, item_log_frequency
from m6rec_jax.pipeline.text_registration import SHUFFLE_BUFFER_SIZE
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.pipeline.writing_registration import writing_rows
from m6rec_jax.text import rows
from m6rec_jax.text.rows import Row
from m6rec_jax.text.vocabulary import SubwordSampling, Vocabulary


def register_dialogue_tasks(
    name: str,
    dataset: str,
    *,
    split: str = "by_group",
    vocabulary: Callable[[], Vocabulary] | None = None,
    vocabulary_split: str | None = None,
    shuffle_buffer_size: int = SHUFFLE_BUFFER_SIZE,
) -> list[str]:
    """Registers the tasks of one data set of dialogues; see the module's docstring.

    Args:
      name: prefix of the task names: letters, digits, `_`.
      dataset: name of the data set, as in its dialogues.json.
      split: name of the prepared split.
      vocabulary, vocabulary_split, shuffle_buffer_size: see `register_text_tasks`.

    Returns:
      The names registered, tasks before the mixture.
    """
    load = functools.partial(locations.load_vocabulary, dataset, vocabulary_split or split)
    loaded = SeqioVocabulary(vocabulary or load)
    add = functools.partial(add_task, loaded, dataset, split, shuffle_buffer_size)
    add(f"{name}_replies", "generation", "replies", writing_rows)
    add(f"{name}_titles", "title_recommendation", "recommendations", writing_rows)
    add(
        f"{name}_retrieval",
        "item_recommendation",
        "recommendations",
        recommendation_rows,
        log_frequency=functools.partial(item_log_frequency, dataset, split),
    )
    names = [f"{name}_{kind}" for kind in ("replies", "titles", "retrieval")]
    seqio.MixtureRegistry.add(f"{name}_conversation", names, default_rate=1.0)
    return [*names, f"{name}_conversation"]


@gin.configurable
def recommendation_rows(
    ds: tf.data.Dataset,
    sequence_length: Lengths,
    *,
    vocabulary: SeqioVocabulary,
    task_name: str,
    log_frequency: Callable[[], np.ndarray],
    subword_sampling: bool = False,
) -> tf.data.Dataset:
    """`recommendations` view: a dialogue as the user and the item for the two-tower loss.

    The user is the turn: the items that it names are no negatives of each other.

    Args:
      ds: rows with `source`, `target`, `item_indices`, `turn_index`.
      sequence_length: `{"inputs": S, "targets": T}`.
      vocabulary: of the task.
      task_name: whose row of the prompt bank is used.
      log_frequency: see `preprocessors.retrieval_rows`.
      subword_sampling: cut words at random in training, see `text.vocabulary.SubwordSampling`.
    """
    frequency = log_frequency()

    def make(example: Example, rng: np.random.Generator | None) -> Row:
        sampling = None if rng is None else SubwordSampling(rng)
        text, items = vocabulary.text, example["item_indices"]
        row = rows.source_row(text, example["source"], sequence_length["inputs"], sampling=sampling)
        row |= rows.packed_candidates(
            text,
            [example["target"]],
            sequence_length["targets"],
            item_ids=items,
            item_log_frequency=frequency[items],
            sampling=sampling,
        )
        # The title is learnt as language by the task that writes it, not by this one.
        row["decoder_loss_weights"] *= 0
        return with_ids(row, task_name, user=example["turn_index"], retrieval=1)

    columns = ("source", "target", "item_indices", "turn_index")
    return map_rows(ds, make, columns, random=subword_sampling and rows_may_vary())
