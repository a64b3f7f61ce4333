"""How jobs answer requests: checked and rendered one by one, answered together.

    handler = job_of("scoring").handler(resources, "ctr")
    accepted = handler.accept({"candidates": ["181"], ...})     # on the host
    results = handler.answer([accepted])                        # on the devices

A `Handler` keeps nothing of a request, so several threads may use it at once.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from m6rec_jax.engine.decoding.generation import GeneratedText
from m6rec_jax.engine.decoding.graphs import TextChoices
from m6rec_jax.engine.decoding.stream import GenerationStream
from m6rec_jax.engine.decoding.text_decoding import TextOptions
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow, Request, RequestFields, RequestParser
from m6rec_jax.text.records import Item

T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R")


class Accepted(NamedTuple):
    """A request that can be answered.

    Attributes:
      handler: that answers it.
      request, text: as it was checked, and as the model reads it.
      number: of the request in its file, from 0: what is drawn at random depends on no other.
      wanted: of its texts.
      choices: what each of its texts may say, made here, since it takes long.
    """

    handler: Handler
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


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Numbers, ids and texts; raises DataError for numbers that no reader takes.

    Attributes:
      values: by column, of `Handler.column_types`.
      items: that are scored or found, in order.
      texts: that were generated.
    """

    values: Mapping[str, Any]
    items: Sequence[ScoredItem] = ()
    texts: Sequence[GeneratedText] = ()

    def __post_init__(self) -> None:
        for column in map(np.asarray, self.values.values()):
            if column.dtype.kind == "f" and not np.isfinite(column).all():
                raise DataError(
                    "the model's answer holds numbers that are not finite; has its training "
                    "diverged?"
                )


class Handler(abc.ABC):
    """Answers the requests of one job for one task.

    Args:
      resources: what it is made of.
      task: by name.
      fields: where requests have what is read.

    Attributes:
      job: by name.
      column_types: of the columns that results add to a row of a file: lists of 'float', 'int' or
        'string'.
      any_data_set: whether requests may be rendered with data of another data set than the task's.
      renders_candidates: whether candidates are read, and so must have what that needs.
      data, renderer, parser: what the task's requests are checked and rendered with.

    Raises:
      ConfigError: the task is none for this job, or something is missing.
      CheckpointError: an index of another model.
      DataError: data that are missing or damaged, or lack what the job needs.
    """

    job: ClassVar[str]
    column_types: ClassVar[Mapping[str, str]]
    any_data_set: ClassVar[bool] = False
    renders_candidates: ClassVar[bool] = False

    def __init__(
        self, resources: Resources, task: str, fields: RequestFields | None = None
    ) -> None:
        self.resources, self.task = resources, task
        self.data = data = resources.data(task, any_data_set=self.any_data_set)
        self.parser = RequestParser(
            data.spec, data.items, data.statistics_names(), fields or RequestFields(None)
        )
        spec = resources.model.dataset_spec(task) or {}
        # A data set that the task was not trained on has a history length of its own.
        is_trained_on = data.spec.name == spec.get("name")
        max_events = resources.settings(task).max_events if is_trained_on else data.max_events
        self.renderer = RequestRenderer(
            data.template, data.statistics, max_events, self.renders_candidates
        )

    @property
    def group(self) -> Hashable:
        """Requests of equal ones are answered together, where they have the same resources."""
        return self.job

    def accept(self, row: Mapping[str, Any], number: int = 0) -> Accepted:
        """Checks and renders a request.

        Args:
          row: see `requests.request`.
          number: of the row in its file.

        Raises:
          RejectedRow: it cannot be answered.
        """
        request = self.parser.parse(row)
        return self.rendered(request, self.render(request), number)

    def render(self, request: Request) -> RequestText:
        """What the model reads of a request; raises RejectedRow where it cannot be answered."""
        return self.renderer.render(request)

    def rendered(
        self,
        request: Request,
        text: RequestText,
        number: int = 0,
        wanted: TextOptions | None = None,
    ) -> Accepted:
        """A request whose text is known; arguments as of `Accepted`."""
        return Accepted(self, request, text, number, wanted or TextOptions(), self.choices(request))

    def choices(self, request: Request) -> Sequence[TextChoices | None]:
        """What each text about a request may say."""
        del request
        return ()

    @abc.abstractmethod
    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        """One per request, in their order; their handlers have an equal `group`."""

    def texts(self, accepted: Accepted) -> list[GenerationStream] | None:
        """The texts of `answer`, to be submitted to `Resources.continuous_generator`; None: they do
        not grow one by one.
        """
        del accepted
        return None

    def describe(self) -> Mapping[str, Any]:
        """What results depend on beside the model and the data, for JSON."""
        return {}

    @abc.abstractmethod
    def warm_up(self) -> None:
        """Compiles every program that requests may run."""


class CatalogueHandler(Handler):
    """Recommends items of the catalogue.

    Args:
      resources, task, fields: see `Handler`.
      k: how many, for requests that do not say.
      max_k: the most a request may ask for.
      exclude_seen: leave out the items of a request's behaviours, beside those of its `exclude`;
        None: where the data set's repeats do not count.

    Attributes:
      default_k, max_k: see above.
      hides_seen: whether the items of behaviours are left out.

    Raises:
      ConfigError: k is not between 1 and max_k.
    """

    def __init__(
        self,
        resources: Resources,
        task: str,
        k: int,
        max_k: int,
        exclude_seen: bool | None = None,
        fields: RequestFields | None = None,
    ) -> None:
        name = type(self).__name__
        if not 1 <= k <= max_k:
            raise ConfigError(f"{name}.k = {k} must be between 1 and max_k = {max_k}")
        super().__init__(resources, task, fields)
        self.default_k, self.max_k = k, max_k
        self.hides_seen = not self.data.spec.repeats_count if exclude_seen is None else exclude_seen

    def render(self, request: Request) -> RequestText:
        if request.k is not None and request.k > self.max_k:
            setting = f"{type(self).__name__}.max_k = {self.max_k}"
            raise RejectedRow("k_too_large", f"'k' is {request.k}, more than {setting}")
        return super().render(request)

    def excluded(self, request: Request) -> list[str]:
        """Ids of items that must not be recommended."""
        seen = [*(item.id for _, item in request.history), *request.unknown]
        return [*(seen if self.hides_seen else ()), *request.exclude]

    def describe(self) -> Mapping[str, Any]:
        return {"k": self.default_k, "max_k": self.max_k, "exclude_seen": self.hides_seen}


def title_of(item: Item) -> str:
    """What a person calls an item."""
    return item.title or str(item.attributes.get("title") or item.id)


def scored(items: Iterable[Item], scores: np.ndarray) -> list[ScoredItem]:
    """Items with their scores `[items]`."""
    pairs = zip(items, scores.tolist(), strict=True)
    return [ScoredItem(item.id, title_of(item), score) for item, score in pairs]


def grouped(
    requests: Sequence[T], key: Callable[[T], K], answer: Callable[[K, list[T]], Sequence[R]]
) -> list[R]:
    """Answers, in order, of what is answered together where its key is equal."""
    places: dict[K, list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault(key(request), []).append(place)
    answers: dict[int, R] = {}
    for of_key, members in places.items():
        answers.update(zip(members, answer(of_key, [requests[i] for i in members]), strict=True))
    return [answers[place] for place in range(len(requests))]
