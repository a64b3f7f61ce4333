"""Registers the seqio tasks of prepared data, so that the modules of `tasks/` stay short.

    register_recommendation_tasks("movielens_100k", dataset="movielens-100k")
    register_mixture("films_and_talk", ["movielens_100k_outcomes", "chitchat_infilling"])

Nothing is read before a task is used; see `pipeline.locations` for where data are looked for. The
functions share these arguments:

    name                  prefix of the task names: letters, digits, `_`
    dataset or corpus     its name, as in dataset.json, dialogues.json or corpus.json
    split                 name of the prepared split
    vocabulary_split      beside which split its vocabulary lies; None: `split`. Splits that are
                          tuned from one foundation need its vocabulary

and return the names registered, tasks before mixtures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import seqio

from m6rec_jax import configuration
from m6rec_jax.data.store.manifest import fingerprint
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.jobs.job import Job, job_of, jobs
from m6rec_jax.pipeline import locations, preprocessors
from m6rec_jax.pipeline.seqio_tasks import TextToTextTask, task_features
from m6rec_jax.pipeline.source import SHUFFLE_BUFFER_SIZE, PreparedSource, SeqioVocabulary
from m6rec_jax.pipeline.task_rows import find_provider, tasks_of
from m6rec_jax.text.writing_templates import WRITING

PRETRAINING = ("infilling", "generation")
FOUNDATION = (*PRETRAINING, "outcomes", "retrieval")
# In training the buffers of many corpora are held at a time, in every shard.
_CORPUS_BUFFER_SIZE = 256


@dataclasses.dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task: what its rows are made of, and what evaluation must know of it.

    Attributes:
      name: of the seqio task; before it is registered, what follows the prefix.
      kind: of its job, such as 'scoring', see `m6rec_jax.jobs`.
      view: of the prepared data; empty, as `rows`, `dataset` and `split`, for another source.
      rows: the function of `pipeline.preprocessors` that makes its rows: 'scoring_rows'.
      settings: of that function.
      positive_classes: for scoring, the classes whose probabilities add up to the score.
      dataset, split: of the prepared data.
    """

    name: str
    kind: str
    view: str = ""
    rows: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    positive_classes: tuple[int, ...] = (1,)
    dataset: str = ""
    split: str = ""

    @property
    def job(self) -> Job:
        return job_of(self.kind)

    def candidate_length(self) -> int | None:
        """Most tokens of a candidate in the task's rows, as set in gin; None: they share T."""
        return configuration.bound(f"{self.rows}.candidate_length")

    def prepared(self) -> Prepared:
        """The prepared data set; raises DataError where it is missing, ConfigError for others."""
        if not self.dataset:
            raise ConfigError(
                f"'{self.name}' was registered with seqio and reads no data of `m6rec data "
                "prepare`, which this needs; such tasks train, evaluate, serve and export "
                "(docs/seqio_tasks.md)"
            )
        return locations.prepared(self.dataset, self.split)

    def folder(self) -> Path:
        """That of the view's records; raises as `prepared`, or DataError where it is not there."""
        prepared = self.prepared()
        prepared.num_rows(self.view)
        return prepared.tfds_folder(self.view)

    def fingerprint(self, split: str) -> str | None:
        """Equal ones are of rows prepared alike from equal data; None: of another source."""
        if not self.dataset:
            return None
        prepared = self.prepared()
        prepared.num_rows(self.view)  # raises where the view is not prepared any more
        of_view: str = prepared.manifest.views[self.view].fingerprint
        updates = {update.name: update for update in prepared.manifest.updates}
        return fingerprint(of_view, updates[split].fingerprint) if split in updates else of_view


_TASKS: dict[str, TaskInfo] = {}


def task_info(name: str) -> TaskInfo:
    """What was registered under a task's name, here or with seqio alone; raises ConfigError.

    Tasks of seqio write texts, or are judged as language where their rows are no texts.
    """
    if name in _TASKS:
        return _TASKS[name]
    is_text = isinstance(find_provider(name), TextToTextTask)
    return TaskInfo(name, "text_to_text" if is_text else "language")


def evaluated_tasks(mixture_or_task_name: str) -> list[TaskInfo]:
    """The tasks of a mixture (or the task itself); raises ConfigError where there is none."""
    return [task_info(name) for name in tasks_of(mixture_or_task_name)]


_OF_DIALOGUES = (
    TaskInfo("replies", "generation", "replies", "text_generation_rows"),
    TaskInfo("titles", "title_recommendation", "recommendations", "text_generation_rows"),
    TaskInfo("retrieval", "item_recommendation", "recommendations", "recommendation_rows"),
)


def register_recommendation_tasks(
    name: str,
    dataset: str,
    *,
    split: str = "per_user_temporal",
    vocabulary_split: str | None = None,
    rating_values: Sequence[float] = (),
    positive_rating: float = 0.0,
) -> list[str]:
    """Registers all tasks and mixtures of one split of a data set.

        <name>_infilling     documents    spans restored (pretraining)
        <name>_generation    documents    what comes next, items described (pretraining)
        <name>_outcomes      groups       candidates, then outcomes in words (pretraining)
        <name>_ctr           groups       the class of each candidate (scoring)
        <name>_retrieval     next_items   the two towers
        <name>_zero_shot     groups       which outcome of a candidate is likelier, untuned
        <name>_embeddings    next_items   the user as a vector
        <name>_pretrain      mixture of infilling and generation
        <name>_foundation    the same, outcomes and retrieval
        <name>_foundation_without_outcomes

    Jobs say which tasks they have (`jobs.job.Job.tasks`).

    Args:
      rating_values: all values that events have, such as (1, 2, 3, 4, 5). Given,
        `<name>_ctr_ratings` is registered, too, one class per value (PromptConfig.num_options).
      positive_rating: the least value that counts as liked, with `rating_values`; a score is the
        sum of the probabilities of these classes.

    Raises:
      ConfigError: `positive_rating` does not divide `rating_values` in two.
    """
    tasks = [
        TaskInfo(suffix, kind, view, rows)
        for kind, job in jobs().items()
        for suffix, view, rows in job.tasks
    ]
    if rating_values:
        values = tuple(sorted(rating_values))
        if not values[0] < positive_rating <= values[-1]:
            raise ConfigError(
                f"rating_values = {values} need a positive_rating above {values[0]} and not "
                f"above {values[-1]}, got {positive_rating}"
            )
        liked = tuple(i for i, value in enumerate(values) if value >= positive_rating)
        settings = {"rating_values": values}
        tasks.append(TaskInfo("ctr_ratings", "scoring", "groups", "scoring_rows", settings, liked))
    mixtures = {
        "pretrain": PRETRAINING,
        "foundation": FOUNDATION,
        "foundation_without_outcomes": [kind for kind in FOUNDATION if kind != "outcomes"],
    }
    data = name, dataset, split, vocabulary_split
    return _register(*data, tasks, mixtures, SHUFFLE_BUFFER_SIZE)


def register_text_tasks(
    name: str,
    corpus: str,
    *,
    split: str = "by_group",
    label_task: str | None = None,
    class_words: Sequence[str] = (),
    every_word_counts: bool = False,
    vocabulary_split: str | None = None,
) -> list[str]:
    """Registers all tasks and mixtures of one split of a corpus.

        <name>_infilling              documents       spans restored (pretraining)
        <name>_generation             documents       what comes next (pretraining)
        <name>_<label_task>           labelled_texts  the class of each text
        <name>_<label_task>_in_words  labelled_texts  the class in words (pretraining)
        <name>_pretrain               mixture of infilling and generation

    Args:
      label_task: what the class of a text is called; None for a corpus without classes.
      class_words: a word for each class, to be written when asked: `<name>_<label_task>_in_words`.
      every_word_counts: `class_word_rows.word_dropout` is off, since a text without some of its
        words may be of another class.
    """
    tasks = [TaskInfo(kind, "language", "documents", f"{kind}_rows") for kind in PRETRAINING]
    if label_task is not None and class_words:
        words = {"words": class_words} | ({"word_dropout": 0.0} if every_word_counts else {})
        written = f"{label_task}_in_words"
        tasks.append(TaskInfo(written, "language", "labelled_texts", "class_word_rows", words))
    if label_task is not None:
        view = "labelled_texts"
        tasks.append(TaskInfo(label_task, "classification", view, "classification_rows"))
    return _register(name, corpus, split, vocabulary_split, tasks, {"pretrain": PRETRAINING})


def register_generation_tasks(
    name: str,
    dataset: str,
    *,
    split: str = "per_user_temporal",
    views: Sequence[str] = WRITING,
    vocabulary_split: str | None = None,
) -> list[str]:
    """Registers `<name>_<view>`, trained as language and evaluated by the texts that it writes.

    `split` is 'by_group' for texts of corpora; `views`, of `WRITING`, are those that are prepared.
    """
    tasks = [TaskInfo(view, "generation", view, "text_generation_rows") for view in views]
    return _register(name, dataset, split, vocabulary_split, tasks, {})


def register_dialogue_tasks(
    name: str,
    dataset: str,
    *,
    split: str = "by_group",
    vocabulary_split: str | None = None,
) -> list[str]:
    """Registers the tasks of one data set of dialogues.

    <name>_replies       replies          what SYSTEM says (BLEU-2, distinct-n, perplexity)
    <name>_titles        recommendations  the title it recommends, written (recall)
    <name>_retrieval     recommendations  the same by the two towers (recall)
    <name>_conversation  mixture of all three
    """
    mixtures = {"conversation": [task.name for task in _OF_DIALOGUES]}
    return _register(name, dataset, split, vocabulary_split, _OF_DIALOGUES, mixtures)


def _register(
    name: str,
    dataset: str,
    split: str,
    vocabulary_split: str | None,
    tasks: Sequence[TaskInfo],
    mixtures: Mapping[str, Sequence[str]],
    shuffle_buffer_size: int = _CORPUS_BUFFER_SIZE,
) -> list[str]:
    """Registers tasks, and mixtures of some of them; all names are without the prefix `name`."""
    vocabulary = SeqioVocabulary(
        functools.partial(locations.load_vocabulary, dataset, vocabulary_split or split)
    )
    for task in tasks:
        info = dataclasses.replace(task, name=f"{name}_{task.name}", dataset=dataset, split=split)
        seqio.TaskRegistry.add(
            info.name,
            source=PreparedSource(info.folder, shuffle_buffer_size),
            preprocessors=[
                functools.partial(
                    getattr(preprocessors, info.rows),
                    vocabulary=vocabulary,
                    task_name=info.name,
                    data=info.prepared,
                    **info.settings,
                )
            ],
            output_features=task_features(vocabulary),
            shuffle_buffer_size=None,  # the source shuffles, before it repeats
        )
        _TASKS[info.name] = info
    for mixture, members in mixtures.items():
        register_mixture(f"{name}_{mixture}", [f"{name}_{member}" for member in members])
    return [f"{name}_{end}" for end in (*(task.name for task in tasks), *mixtures)]


@gin.configurable
def mixture_rates(rates: Mapping[str, float] | None = None) -> Mapping[str, float]:
    """How often mixtures draw from each task, relative to the others, which have 1.

        mixture_rates.rates = {"movielens_100k_outcomes": 3.0, "chitchat_infilling": 0.5}
        mixture_rates.rates = {"outcomes": 3.0}    # of every data set

    Raises ConfigError for a name that is no task's.
    """
    tasks = seqio.TaskRegistry.names()
    for name in rates or {}:
        if not any(f"_{task}".endswith(f"_{name}") for task in tasks):
            raise ConfigError(
                f"mixture_rates.rates names '{name}', which is no task{did_you_mean(name, tasks)}"
            )
    return rates or {}


def register_mixture(name: str, tasks: Sequence[str]) -> str:
    """Registers a mixture of registered tasks at the rates of `mixture_rates`; returns its name.

    All tasks must share a vocabulary, `vocabulary_file.shared` in gin. They may be seqio's own,
    which seqio mixes with each other alone, since their features differ.
    """
    seqio.MixtureRegistry.add(name, [(find_provider(task), _rate) for task in tasks])
    return name


def _rate(task: seqio.Task) -> float:
    rates = mixture_rates()
    names = [name for name in rates if f"_{task.name}".endswith(f"_{name}")]
    rate = rates[max(names, key=len)] if names else 1.0
    if not rate > 0:
        raise ConfigError(
            f"mixture_rates.rates gives '{task.name}' {rate}, which must be above 0; leave a task "
            "out by naming another mixture"
        )
    return rate


def unregister(names: Sequence[str]) -> None:
    """Removes tasks and mixtures from seqio's registries (tests, notebooks)."""
    for name in reversed(names):
        for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
            if name in registry.names():
                registry.remove(name)
        _TASKS.pop(name, None)
