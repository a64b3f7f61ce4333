"""Registers the seqio tasks of a prepared corpus, so that `tasks/<corpus>.py` stays short.

    register_text_tasks("film_reviews", corpus="film-reviews", label_task="sentiment")

registers

    film_reviews_infilling           documents       spans restored (pretraining)
    film_reviews_generation          documents       what comes next (pretraining)
    film_reviews_sentiment           labelled_texts  the class of each text
    film_reviews_sentiment_in_words  labelled_texts  the same, written (pretraining); where classes
                                                     have words
    film_reviews_pretrain            mixture of infilling and generation

Nothing is read before a task is used; see `pipeline.locations` for where data are looked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import seqio

from m6rec_jax.pipeline import locations, preprocessors, text_rows
from m6rec_jax.pipeline.registration import add_task
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text.vocabulary import Vocabulary

# The rows of many corpora are held at a time, in every shard; TFDS has shuffled them already.
SHUFFLE_BUFFER_SIZE = 256


def register_text_tasks(
    name: str,
    corpus: str,
    *,
    split: str = "by_group",
    label_task: str | None = None,
    class_words: Sequence[str] = (),
    every_word_counts: bool = False,
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
      class_words: a word for each class, to be written when asked: `<name>_<label_task>_in_words`.
      every_word_counts: a text without some of its words may be of another class, so that
        `class_word_rows.word_dropout` leaves none out.
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
        if class_words:
            names.append(f"{name}_{label_task}_in_words")
            settings: dict[str, Any] = {"words": class_words}
            if every_word_counts:
                settings["word_dropout"] = 0.0
            in_words = text_rows.class_word_rows
            add(names[-1], "language", "labelled_texts", in_words, **settings)
        names.append(f"{name}_{label_task}")
        add(names[-1], "classification", "labelled_texts", text_rows.classification_rows)
    seqio.MixtureRegistry.add(f"{name}_pretrain", language, default_rate=1.0)
    return [*names, f"{name}_pretrain"]
