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
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

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


@dataclasses.dataclass(frozen=True, slots=True)
class TaskInfo:
    """What evaluation must know of a task.

    Attributes:
      name: of the seqio task.
      kind: of its job, such as 'scoring', see `m6rec_jax.jobs`.
      view, dataset, split: of the prepared data; empty where the task has another source.
      positive_classes: for scoring, the classes whose probabilities add up to the score.
      rows: gin's name of the function that makes its rows: 'scoring_rows'.
    """

    name: str
    kind: str
    view: str = ""
    dataset: str = ""
    split: str = ""
    positive_classes: tuple[int, ...] = (1,)
    rows: str = ""

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


class _Task(NamedTuple):
    """A task `<name>_<suffix>`: kind, view, rows and classes as in `TaskInfo`.

    The settings are those of its function of `pipeline.preprocessors`, called `rows`.
    """

    kind: str
    suffix: str
    view: str
    rows: str
    settings: Mapping[str, Any] = MappingProxyType({})
    positive_classes: tuple[int, ...] = (1,)


_OF_DIALOGUES = (
    _Task("generation", "replies", "replies", "text_generation_rows"),
    _Task("title_recommendation", "titles", "recommendations", "text_generation_rows"),
    _Task("item_recommendation", "retrieval", "recommendations", "recommendation_rows"),
)


def register_recommendation_tasks(
    name: str,
    dataset: str,
    *,
    split: str = "per_user_temporal",
    vocabulary_split: str | None = None,
    rating_values: Sequence[float] = (),
    positive_rating: float | None = None,
) -> list[str]:
    """Registers all tasks and mixtures of one split of a data set.

        <name>_infilling     documents    spans restored (pretraining)
        <name>_generation    documents    what comes next, items described (pretraining)
        <name>_outcomes      groups       candidates, then outcomes in words (pretraining)
        <name>_ctr           groups       the class of each candidate (scoring)
        <name>_retrieval     next_items   the two towers
        <name>_reranking     reranking    which of the co-occurring items comes next
        <name>_zero_shot     groups       which outcome of a candidate is likelier, untuned
        <name>_embeddings    next_items   the user as a vector
        <name>_pretrain      mixture of infilling and generation
        <name>_foundation    the same, outcomes and retrieval; see `foundation_rates`
        <name>_foundation_without_outcomes

    Jobs say which tasks they have (`jobs.job.Job.tasks`).

    Args:
      rating_values: all values that events have, such as (1, 2, 3, 4, 5). Given,
        `<name>_ctr_ratings` is registered, too, one class per value (PromptConfig.num_options).
      positive_rating: the least value that counts as liked, with `rating_values`; a score is the
        sum of the probabilities of these classes.

    Raises:
      ConfigError: `rating_values` without a `positive_rating` that divides them in two.
    """
    tasks = [_Task(kind, *of_job) for kind, job in jobs().items() for of_job in job.tasks]
    if rating_values:
        values = tuple(sorted(rating_values))
        if positive_rating is None or not values[0] < positive_rating <= values[-1]:
            raise ConfigError(
                f"rating_values = {values} need a positive_rating above {values[0]} and not "
                f"above {values[-1]}, got {positive_rating}"
            )
        classes = tuple(i for i, value in enumerate(values) if value >= positive_rating)
        ratings = {"rating_values": values}
        tasks += [_Task("scoring", "ctr_ratings", "groups", "scoring_rows", ratings, classes)]
    mixtures = {
        "pretrain": PRETRAINING,
        "foundation": FOUNDATION,
        "foundation_without_outcomes": tuple(kind for kind in FOUNDATION if kind != "outcomes"),
    }
    data = name, dataset, split, vocabulary_split
    return _register(*data, tasks, mixtures, foundation_rates, SHUFFLE_BUFFER_SIZE)


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
    tasks = [_Task("language", suffix, "documents", f"{suffix}_rows") for suffix in PRETRAINING]
    if label_task is not None:
        if class_words:
            words = {"words": class_words} | ({"word_dropout": 0.0} if every_word_counts else {})
            in_words = f"{label_task}_in_words"
            tasks += [_Task("language", in_words, "labelled_texts", "class_word_rows", words)]
        tasks += [_Task("classification", label_task, "labelled_texts", "classification_rows")]
    mixtures = {"pretrain": PRETRAINING}
    return _register(name, corpus, split, vocabulary_split, tasks, mixtures)


def register_generation_tasks(
    name: str,
    dataset: str,
    *,
    split: str = "per_user_temporal",
    views: Sequence[str] = WRITING,
    vocabulary_split: str | None = None,
) -> list[str]:
    """Registers `<name>_<view>`, trained as language and evaluated by the texts that it writes.

    Args:
      split: texts of corpora have 'by_group'.
      views: of `writing_templates.WRITING`, those that are prepared.
    """
    tasks = [_Task("generation", view, view, "text_generation_rows") for view in views]
    return _register(name, dataset, split, vocabulary_split, tasks)


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
    mixtures = {"conversation": [task.suffix for task in _OF_DIALOGUES]}
    return _register(name, dataset, split, vocabulary_split, _OF_DIALOGUES, mixtures)


def _register(
    name: str,
    dataset: str,
    split: str,
    vocabulary_split: str | None,
    tasks: Sequence[_Task],
    mixtures: Mapping[str, Sequence[str]] = MappingProxyType({}),
    rates: Callable[[], Mapping[str, float]] = dict,
    # In training the buffers of many corpora are held at a time, in every shard.
    shuffle_buffer_size: int = 256,
) -> list[str]:
    """Registers tasks, and mixtures of some of them by their suffixes; returns all names."""
    vocabulary = SeqioVocabulary(
        functools.partial(locations.load_vocabulary, dataset, vocabulary_split or split)
    )
    data = functools.partial(locations.prepared, dataset, split)
    for kind, suffix, view, rows, settings, positive_classes in tasks:
        task = f"{name}_{suffix}"
        view_folder = functools.partial(locations.prepared_view, dataset, split, view)
        make_rows = functools.partial(
            getattr(preprocessors, rows),
            vocabulary=vocabulary,
            task_name=task,
            data=data,
            **settings,
        )
        seqio.TaskRegistry.add(
            task,
            source=PreparedSource(view_folder, shuffle_buffer_size),
            preprocessors=[make_rows],
            output_features=task_features(vocabulary),
            shuffle_buffer_size=None,  # the source shuffles, before it repeats
        )
        _TASKS[task] = TaskInfo(task, kind, view, dataset, split, positive_classes, rows)
    for mixture, suffixes in mixtures.items():
        seqio.MixtureRegistry.add(
            f"{name}_{mixture}",
            [(f"{name}_{suffix}", functools.partial(_rate, rates, suffix)) for suffix in suffixes],
        )
    return [f"{name}_{suffix}" for suffix in (*(task.suffix for task in tasks), *mixtures)]


@gin.configurable
def foundation_rates(
    infilling: float = 1.0, generation: float = 1.0, outcomes: float = 1.0, retrieval: float = 1.0
) -> dict[str, float]:
    """How often `<name>_foundation` draws from each task, relative to the others; all above 0."""
    return dict(zip(FOUNDATION, (infilling, generation, outcomes, retrieval), strict=True))


@gin.configurable
def mixture_rates(rates: Mapping[str, float] | None = None) -> Mapping[str, float]:
    """How often a mixture of `register_mixture` draws from each task, relative to the others.

        mixture_rates.rates = {"movielens_100k_outcomes": 3.0, "chitchat_infilling": 0.5}

    Args:
      rates: task name to rate, above 0; 1 for tasks that are not named.

    Raises:
      ConfigError: a name that is no task.
    """
    for name in rates or {}:
        if name not in seqio.TaskRegistry.names():
            hint = did_you_mean(name, seqio.TaskRegistry.names())
            raise ConfigError(f"mixture_rates.rates names '{name}', which is no task{hint}")
    return rates or {}


def register_mixture(name: str, tasks: Sequence[str]) -> str:
    """Registers a mixture of registered tasks at the rates of `mixture_rates`; returns its name.

    All tasks must share a vocabulary, `vocabulary_file.shared` in gin. They may be seqio's own,
    which seqio mixes with each other alone, since their features differ.
    """
    rates = [(find_provider(task), functools.partial(_rate, mixture_rates, task)) for task in tasks]
    seqio.MixtureRegistry.add(name, rates)
    return name


def _rate(rates: Callable[[], Mapping[str, float]], name: str, task: seqio.Task) -> float:
    del task  # seqio gives it
    rate = rates().get(name, 1.0)
    if not rate > 0:
        raise ConfigError(
            f"{rates.__name__} gives '{name}' {rate}, which must be above 0; leave a task out by "
            "naming another mixture"
        )
    return rate


def unregister(names: Sequence[str]) -> None:
    """Removes tasks and mixtures from seqio's registries (tests, notebooks)."""
    for name in reversed(names):
        for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
            if name in registry.names():
                registry.remove(name)
        _TASKS.pop(name, None)
