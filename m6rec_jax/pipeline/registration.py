"""Registers the seqio tasks of a prepared data set, so that `tasks/<data set>.py` stays short.

    register_recommendation_tasks("movielens_100k", dataset="movielens-100k")

registers

    movielens_100k_infilling     documents    spans restored (pretraining)
    movielens_100k_generation    documents    what comes next, items described (pretraining)
    movielens_100k_outcomes      groups       candidates, then outcomes in words (pretraining)
    movielens_100k_ctr           groups       the class of each candidate (scoring)
    movielens_100k_retrieval     next_items   the two towers
    movielens_100k_reranking     reranking    which of the items near by comes next
    movielens_100k_zero_shot     groups       the likelihood of sentences about candidates
    movielens_100k_pretrain            mixture of infilling and generation
    movielens_100k_foundation          the same, outcomes and retrieval; see `foundation_rates`

and one for whatever else jobs ask for (`jobs.job.Job.tasks`). Nothing is read before a task is
used; see `pipeline.locations` for where data are looked for. Tasks of texts are registered by
`pipeline.text_registration`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import numpy as np
import seqio
import tensorflow as tf

from m6rec_jax import configuration
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.job import Job, job_of, jobs
from m6rec_jax.pipeline import locations, preprocessors
from m6rec_jax.pipeline.features import TASK_FEATURES
from m6rec_jax.pipeline.likelihood_rows import likelihood_rows
from m6rec_jax.pipeline.source import SHUFFLE_BUFFER_SIZE, PreparedSource
from m6rec_jax.pipeline.task_rows import find_provider
from m6rec_jax.pipeline.vocabulary import SeqioVocabulary
from m6rec_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, slots=True)
class TaskInfo:
    """What evaluation must know of a task.

    Attributes:
      name: of the seqio task.
      kind: of its job, such as 'scoring', see `m6rec_jax.jobs`.
      view: of the prepared data set.
      dataset, split: names of the prepared data set.
      positive_classes: for scoring, the classes whose probabilities a score adds up.
      rows: name of the function that makes its rows, as gin knows it: 'scoring_rows'.
    """

    name: str
    kind: str
    view: str
    dataset: str
    split: str
    positive_classes: tuple[int, ...] = (1,)
    rows: str = ""

    @property
    def job(self) -> Job:
        """What is done with its rows."""
        return job_of(self.kind)

    def candidate_length(self) -> int | None:
        """Most tokens of a candidate in the task's rows, as gin sets it; None: they share T."""
        length: int | None = configuration.bound(f"{self.rows}.candidate_length")
        return length

    def prepared(self) -> Prepared:
        """The prepared data set; raises DataError when it is not there."""
        return locations.prepared(self.dataset, self.split)


_TASKS: dict[str, TaskInfo] = {}


def task_info(name: str) -> TaskInfo:
    """What was registered under a task's name.

    Raises:
      ConfigError: no such task.
    """
    if name not in _TASKS:
        raise ConfigError(
            f"'{name}' is no task of register_recommendation_tasks or register_text_tasks; known: "
            f"{', '.join(sorted(_TASKS)) or 'none'}. Is the module that registers it imported "
            "(a line such as import tasks.movielens in the gin file)?"
        )
    return _TASKS[name]


def is_registered(mixture_or_task_name: str) -> bool:
    """Whether all tasks of a mixture (or the task itself) were registered by this module."""
    provider = find_provider(mixture_or_task_name)
    return all(task.name in _TASKS for task in seqio.get_subtasks(provider))


def evaluated_tasks(mixture_or_task_name: str) -> list[TaskInfo]:
    """The tasks of a mixture (or the task itself).

    Raises:
      ConfigError: nothing is registered under the name, or not by this module.
    """
    provider = find_provider(mixture_or_task_name)
    return [task_info(task.name) for task in seqio.get_subtasks(provider)]


def register_recommendation_tasks(
    name: str,
    dataset: str,
    *,
    split: str = "per_user_temporal",
    vocabulary: Callable[[], Vocabulary] | None = None,
    vocabulary_split: str | None = None,
    rating_values: Sequence[float] = (),
    positive_rating: float | None = None,
    shuffle_buffer_size: int = SHUFFLE_BUFFER_SIZE,
) -> list[str]:
    """Registers all tasks and mixtures of one split of a data set; see the module's docstring.

    Args:
      name: prefix of the task names: letters, digits, `_`.
      dataset: name of the data set, as in its dataset.json.
      split: name of the prepared split.
      vocabulary: returns the vocabulary; None: the file of `locations.vocabulary_file`.
      vocabulary_split: beside which split that file lies; None: `split`. Splits that are tuned from
        one foundation need its vocabulary.
      rating_values: all values that events have, such as (1, 2, 3, 4, 5). Given,
        `<name>_ctr_ratings` is registered, too: one class per value instead of like and dislike,
        so that the model learns from the finer label. PromptConfig.num_options must fit.
      positive_rating: the least value that counts as liked; a score is the sum of the
        probabilities of these classes. Needed with `rating_values`.
      shuffle_buffer_size: see `PreparedSource`.

    Returns:
      The names registered, tasks before mixtures.

    Raises:
      ConfigError: `rating_values` without a `positive_rating` that divides them in two.
    """
    values = tuple(sorted(rating_values))
    positive_classes = _positive_classes(values, positive_rating) if values else ()
    loaded = SeqioVocabulary(
        vocabulary
        or functools.partial(locations.load_vocabulary, dataset, vocabulary_split or split)
    )
    add = functools.partial(add_task, loaded, dataset, split, shuffle_buffer_size)
    names = []
    for kind, job in jobs().items():
        for suffix, view, rows in job.tasks:
            names.append(f"{name}_{suffix}")
            make, options = ROWS[rows]
            own: dict[str, Any] = {
                key: functools.partial(of, dataset, split) for key, of in options.items()
            }
            add(names[-1], kind, view, make, **own)
    if values:
        names.append(f"{name}_ctr_ratings")
        add(
            names[-1],
            "scoring",
            "groups",
            preprocessors.scoring_rows,
            positive_classes=positive_classes,
            rating_values=values,
        )
    language = [f"{name}_infilling", f"{name}_generation"]
    seqio.MixtureRegistry.add(f"{name}_pretrain", language, default_rate=1.0)
    seqio.MixtureRegistry.add(
        f"{name}_foundation",
        [
            (f"{name}_{kind}", functools.partial(_foundation_rate, kind))
            for kind in ("infilling", "generation", "outcomes", "retrieval")
        ],
    )
    return [*names, f"{name}_pretrain", f"{name}_foundation"]


@gin.configurable
def foundation_rates(
    infilling: float = 1.0, generation: float = 1.0, outcomes: float = 1.0, retrieval: float = 1.0
) -> dict[str, float]:
    """How often the mixture `<name>_foundation` draws from each task, relative to the others.

    Raises:
      ConfigError: a rate that is not positive; a mixture's tasks all take part.
    """
    rates = {
        "infilling": infilling,
        "generation": generation,
        "outcomes": outcomes,
        "retrieval": retrieval,
    }
    for kind, rate in rates.items():
        if not rate > 0:
            raise ConfigError(
                f"foundation_rates.{kind} = {rate} must be positive; leave a task out by naming "
                "another mixture"
            )
    return rates


def _foundation_rate(kind: str, task: seqio.Task) -> float:
    del task  # seqio gives it
    return foundation_rates()[kind]


def unregister(names: Sequence[str]) -> None:
    """Takes tasks and mixtures out of seqio's registries again (tests, notebooks)."""
    for name in reversed(names):
        if name in seqio.MixtureRegistry.names():
            seqio.MixtureRegistry.remove(name)
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
        _TASKS.pop(name, None)


def add_task(
    vocabulary: SeqioVocabulary,
    dataset: str,
    split: str,
    shuffle_buffer_size: int,
    name: str,
    kind: str,
    view: str,
    preprocessor: Callable[..., tf.data.Dataset],
    positive_classes: tuple[int, ...] = (1,),
    **options: Any,
) -> None:
    """Registers one seqio task over a view of a prepared data set.

    Args:
      vocabulary: of its features.
      dataset, split: names of the prepared data set.
      shuffle_buffer_size: see `PreparedSource`.
      name, kind, view, positive_classes: see `TaskInfo`.
      preprocessor: from the view's columns to rows; called with the data set, `sequence_length`,
        `vocabulary`, `task_name` and `options`.
      **options: of the preprocessor.

    Raises:
      ConfigError: no job is of that kind.
    """
    job_of(kind)
    seqio.TaskRegistry.add(
        name,
        source=PreparedSource(
            functools.partial(locations.prepared_view, dataset, split, view),
            shuffle_buffer_size=shuffle_buffer_size,
        ),
        preprocessors=[
            functools.partial(preprocessor, vocabulary=vocabulary, task_name=name, **options)
        ],
        output_features={
            feature: seqio.Feature(vocabulary, add_eos=False, dtype=tf.as_dtype(spec.dtype))
            for feature, spec in TASK_FEATURES.items()
        },
        shuffle_buffer_size=None,  # the source shuffles, before it repeats
    )
    rows = preprocessor.__name__
    _TASKS[name] = TaskInfo(name, kind, view, dataset, split, positive_classes, rows)


def _positive_classes(values: Sequence[float], positive: float | None) -> tuple[int, ...]:
    if positive is None or not values[0] < positive <= values[-1]:
        raise ConfigError(
            f"rating_values = {tuple(values)} need a positive_rating above {values[0]} and not "
            f"above {values[-1]}, got {positive}"
        )
    return tuple(i for i, value in enumerate(values) if value >= positive)


def item_log_frequency(dataset: str, split: str) -> np.ndarray:
    """`Catalogue.log_frequency` of a prepared split, `[items]`."""
    return locations.prepared(dataset, split).catalogue().log_frequency


def _item_texts(dataset: str, split: str) -> Sequence[str]:
    return locations.prepared(dataset, split).catalogue().texts


def _outcome(dataset: str, split: str, value: float) -> str:
    return _template_outcome(locations.data_dir(), dataset, split)(value)


@functools.lru_cache(maxsize=8)
def _template_outcome(folder: Any, dataset: str, split: str) -> Callable[[float | None], str]:
    del folder  # part of the key: where `prepared` looks
    return locations.prepared(dataset, split).template().outcome


# Functions that lay out rows for `Job.tasks`, and what each must know of the data set: functions of
# its name and split.
ROWS: Mapping[str, tuple[Callable[..., tf.data.Dataset], Mapping[str, Callable[..., Any]]]] = {
    "infilling_rows": (preprocessors.infilling_rows, {}),
    "generation_rows": (preprocessors.generation_rows, {}),
    "outcome_rows": (preprocessors.outcome_rows, {"outcome": _outcome}),
    "scoring_rows": (preprocessors.scoring_rows, {}),
    "retrieval_rows": (
        preprocessors.retrieval_rows,
        {"item_log_frequency": item_log_frequency},
    ),
    "likelihood_rows": (likelihood_rows, {"item_texts": _item_texts, "outcome_of": _outcome}),
}
