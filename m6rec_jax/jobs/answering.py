"""How jobs answer requests: checked and rendered one by one, answered together.

    answerer = job_of("scoring").answerer(resources)
    text = answerer.accept(request, "ctr")                       # on the host
    results = answerer.answer([Accepted("scoring", "ctr", request, text)])    # on the devices

An `Answerer` serves all tasks of its job. It keeps nothing of a request, so several threads may use
it at once.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from m6rec_jax.engine.decoding.graphs import TextChoices
from m6rec_jax.engine.decoding.text_decoding import TextOptions
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.requests.request import RejectedRow, Request, RequestFields
from m6rec_jax.text.records import Item

T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R")
TaskState = TypeVar("TaskState")


class Accepted(NamedTuple):
    """A request that can be answered.

    Attributes:
      job, task: by name.
      request, text: as it was checked, and as the model reads it.
      number: of the request in its file, from 0: what is drawn at random depends on no other.
      wanted: of its texts, where they grow one by one.
      choices: of each text, see `Answerer.choices`.
    """

    job: str
    task: str
    request: Request
    text: RequestText
    number: int = 0
    wanted: TextOptions = TextOptions()
    choices: Sequence[TextChoices | None] = ()


class ScoredItem(NamedTuple):
    """An item of a result.

    Attributes:
      id: empty where the request described an item without one.
      title: its attribute of that name, else the id.
      score: what the job orders items by.
    """

    id: str
    title: str
    score: float


class Result(Protocol):
    """An answer."""

    def columns(self) -> Mapping[str, Any]:
        """The values of `Answerer.column_types`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A `Result` of numbers and ids.

    Attributes:
      values: by column.
      items: that are scored or found, in order.
    """

    values: Mapping[str, Any]
    items: Sequence[ScoredItem] = ()

    def columns(self) -> Mapping[str, Any]:
        return self.values


class Answerer(abc.ABC, Generic[TaskState]):
    """Answers the requests of one job, for all tasks.

    Args:
      resources: what it is made of.

    Attributes:
      column_types: of the columns that results add to a row of a file: lists of 'float', 'int' or
        'string'.
    """

    column_types: ClassVar[Mapping[str, str]]
    # Whether requests may be rendered with data of another data set than the task's.
    any_data_set: ClassVar[bool] = False

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    def of_task(self, task: str) -> TaskState:
        """What answering a task takes, made once; errors as `open_task`."""
        return self.resources.once((self, task), lambda: self.open_task(task))

    @abc.abstractmethod
    def open_task(self, task: str) -> TaskState:
        """Makes what answering a task takes.

        Raises:
          ConfigError: the task is none for this job, or something is missing.
          CheckpointError: an index of another model.
          DataError: a catalogue without what the job needs.
        """

    def fields(self, task: str) -> RequestFields:
        """Where requests have what is read."""
        del task
        return RequestFields(candidates=None)

    @abc.abstractmethod
    def accept(self, request: Request, task: str) -> RequestText:
        """Renders a request.

        Raises:
          RejectedRow: it cannot be answered.
        """

    def choices(self, accepted: Accepted) -> Sequence[TextChoices | None]:
        """What each text may say, made when its request is accepted: it takes long."""
        del accepted
        return ()

    @abc.abstractmethod
    def answer(self, accepted: Sequence[Accepted]) -> list[Any]:
        """One `Result` per request, of any tasks, in their order."""

    def describe(self, task: str) -> Mapping[str, Any]:
        """What results depend on beside the model and the data, for JSON."""
        del task
        return {}

    def warm_up(self, tasks: Iterable[str]) -> None:
        """Compiles every program that requests of these tasks may run."""


def title_of(item: Item) -> str:
    """What a person calls an item."""
    return item.title or str(item.attributes.get("title") or item.id)


def scored(items: Iterable[Item], scores: np.ndarray) -> list[ScoredItem]:
    """Items with their scores `[items]`."""
    pairs = zip(items, scores.tolist(), strict=True)
    return [ScoredItem(item.id, title_of(item), score) for item, score in pairs]


def grouped(
    asked: Sequence[T], key: Callable[[T], K], answer: Callable[[K, list[T]], Sequence[R]]
) -> list[R]:
    """Answers, in order, of what is answered together where its key is equal."""
    places: dict[K, list[int]] = {}
    for place, one in enumerate(asked):
        places.setdefault(key(one), []).append(place)
    found: dict[int, R] = {}
    for own, members in places.items():
        found.update(zip(members, answer(own, [asked[i] for i in members]), strict=True))
    return [found[place] for place in range(len(asked))]


def excluded_ids(request: Request, exclude_seen: bool) -> list[str]:
    """Ids of items that must not be recommended."""
    seen = [*(item.id for _, item in request.history), *request.unknown] if exclude_seen else []
    return [*seen, *request.exclude]


def check_k(request: Request, max_k: int, setting: str) -> None:
    """Raises RejectedRow where a request asks for too many items."""
    if request.k is not None and request.k > max_k:
        raise RejectedRow("k_too_large", f"'k' is {request.k}, more than {setting} = {max_k}")


def check_default_k(k: int, max_k: int, name: str) -> None:
    """Raises ConfigError where the settings of a job contradict each other."""
    if not 1 <= k <= max_k:
        raise ConfigError(f"{name}.k = {k} must be between 1 and max_k = {max_k}")


def check_finite(accepted: Sequence[Accepted], values: Iterable[npt.ArrayLike]) -> None:
    """Raises DataError for numbers that no reader takes; that is no request's fault."""
    for one, numbers in zip(accepted, values, strict=True):
        if not np.isfinite(numbers).all():
            raise DataError(
                f"request {one.number}: the model's answer to '{one.task}' holds numbers that are "
                "not finite; has its training diverged?"
            )
