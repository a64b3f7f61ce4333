"""What answers are made of: a model's engines, data and indexes, shared among jobs and tasks."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from m6rec_jax.engine.candidates.likelihood import LikelihoodScorer
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.decoding.continuous import ContinuousGenerator
from m6rec_jax.engine.decoding.generation import Generator
from m6rec_jax.engine.engine import Engine
from m6rec_jax.engine.index.index_files import StoredIndex, open_index
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.loaded_model import LoadedModel
from m6rec_jax.engine.programs.kept_programs import warming_up
from m6rec_jax.engine.task_settings import TaskSettings, task_settings
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.jobs.request_data import dataset_spec_of, open_serving_data
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.serving_data import ServingData, texts_alone

T = TypeVar("T")
# Kinds of tasks that an index of the catalogue may be named for.
INDEXED = ("retrieval", "reranking", "item_recommendation")


@dataclasses.dataclass(frozen=True)
class ServiceOptions:
    """What a service answers with, and in which shapes.

    Attributes:
      prepared: folder with the catalogue and the statistics; None: what each task was trained on,
        in the data folder; '': neither, requests bring all of it.
      items: Parquet or CSV file of a newer catalogue.
      index: folder of `m6rec index build`, or one for each task by name.
      segments: folder of `m6rec index segments`, for a model with late interaction.
      batch_sizes: numbers of rows to pad to, over all devices.
      source_buckets: lengths of histories to pad to; None: the longest alone.
      continuous: a `Scheduler` answers: texts grow one by one, and others join at any step.
    """

    prepared: str | None = None
    items: str | None = None
    index: str | Mapping[str, str] | None = None
    segments: str | None = None
    batch_sizes: Sequence[int] = (1, 32)
    source_buckets: Sequence[int] | None = None
    continuous: bool = False


class Parts:
    """What answerers are made of; engines and data are shared among jobs and tasks.

    Args:
      model: of a run or a bank.
      options: what to answer with, and in which shapes.

    Attributes:
      lock: held while something is made.

    Raises:
      ConfigError: an index of a task that there is not.
    """

    def __init__(self, model: LoadedModel, options: ServiceOptions) -> None:
        self.model = model
        # An export has programs of whole batches alone.
        self.continuous = options.continuous and model.options().programs is None
        self.prepared, self._items, self._index = options.prepared, options.items, options.index
        _check_tasks_of_indexes(options.index, model)
        self._shapes: dict[str, Any] = {
            "batch_sizes": tuple(sorted(options.batch_sizes)),
            "source_buckets": options.source_buckets or (model.settings.source_length,),
            "target_buckets": (model.settings.target_length,),
        }
        self._made: dict[Any, Any] = {}
        self._warm: set[Any] = set()
        self.lock = threading.RLock()

    def over(
        self,
        model: LoadedModel,
        data: Mapping[str, Any] | None = None,
        index: Mapping[str, str] | None = None,
    ) -> Parts:
        """The same for another state of the same bank, or with other data. Nothing is compiled.

        Args:
          model: this one's, or a `fork` of it.
          data: any of `prepared`, `items` and `index`, which are then read anew, also where they
            have the same names; None: data that were read stay.
          index: further folders of indexes by task, which are read anew.

        Raises:
          ConfigError: an index of a task that there is not.
        """
        other = copy.copy(self)
        other.model, other.lock = model, threading.RLock()
        if model is not self.model:
            other._index = self.indexes()  # new tasks have indexes of their own
        if data is not None:
            other.prepared = data.get("prepared", self.prepared)
            other._items = data.get("items", self._items)
            _check_tasks_of_indexes(data.get("index"), model)
            named = data.get("index", self._index)
            # Tasks that are not named keep theirs.
            other._index = self.indexes() | named if isinstance(named, dict) else named
        if index is not None:
            _check_tasks_of_indexes(index, model)
            other._index = other.indexes() | dict(index)
        with self.lock:
            made = dict(self._made)
        known = [self.model.dataset_spec(task) for task in self.model.settings.tasks]
        keeps_data = data is None and all(
            model.dataset_spec(task) in known for task in model.settings.tasks
        )
        other._made = {
            key: value.over(model.variables, model.settings.tasks)
            if isinstance(value, Engine)
            else value
            for key, value in made.items()
            if isinstance(value, Engine)
            or (isinstance(value, ServingData) and keeps_data)
            or (key[0] == "described" and keeps_data and self._described_alike(model, key[1]))
            or (
                isinstance(value, StoredIndex)
                and data is None
                and key[-1] not in (index or ())
                and self._same(model, key[-1])
            )
        }
        return other

    def _described_alike(self, model: LoadedModel, task: str) -> bool:
        if task not in model.settings.tasks:
            return False
        same_data = model.settings.tasks[task].prepared == self.settings(task).prepared
        return same_data and model.dataset_spec(task) == self.model.dataset_spec(task)

    def _same(self, model: LoadedModel, task: str) -> bool:
        return task in model.settings.tasks and (
            model is self.model or model.fingerprint(task) == self.model.fingerprint(task)
        )

    @property
    def has_newer_catalogue(self) -> bool:
        """Whether requests are answered with another catalogue than the prepared data's."""
        return self._items is not None

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Numbers of rows to pad to, ascending."""
        return self._shapes["batch_sizes"]

    def settings(self, task: str) -> TaskSettings:
        """Of a task; raises ConfigError where there is no such task."""
        return task_settings(self.model.settings.tasks, task)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` gives, made once."""
        with self.lock:
            if key not in self._made:
                self._made[key] = make()
            found: T = self._made[key]
        return found

    def warm_once(self, key: Any, warm_up: Callable[[], Any]) -> None:
        """Runs an engine's warm-up, unless it ran here or in what this was made `over` of."""
        if key not in self._warm:
            with warming_up():
                warm_up()
            self._warm.add(key)

    def num_compilations(self) -> int:
        """Programs that the engines have traced so far."""
        with self.lock:
            return sum(e.num_compilations for e in self._made.values() if isinstance(e, Engine))

    def data(self, task: str, *, any_data_set: bool = False) -> ServingData:
        """What a task's requests are rendered with; errors as `open_serving_data`."""
        if self.settings(task).reads_text:
            return texts_alone()
        own = self.settings(task).prepared if self.prepared is None else self.prepared
        # Two runs on one folder may know the data set by other templates.
        described = self.once(
            ("described", task, any_data_set),
            lambda: json.dumps(
                dataset_spec_of(self.model, task, self.prepared, any_data_set), sort_keys=True
            ),
        )
        return self.once(
            ("data", own, described),
            lambda: open_serving_data(
                self.model, task, self.prepared, self._items, any_data_set=any_data_set
            ),
        )

    def hides_seen(self, task: str, exclude_seen: bool | None) -> bool:
        """Whether items of a request's behaviours must not come; None: as the data set says."""
        return not self.data(task).spec.repeats_count if exclude_seen is None else exclude_seen

    def renderer(
        self,
        task: str,
        *,
        candidates: bool = True,
        any_data_set: bool = False,
    ) -> RequestRenderer:
        """Renders requests as the task was trained to read them; see `RequestRenderer`."""
        data = self.data(task, any_data_set=any_data_set)
        spec = self.model.dataset_spec(task) or {}
        # A data set that the task was not trained on has a history length of its own.
        own = data.spec.name == spec.get("name")
        max_events = self.settings(task).max_events if own else data.max_events
        return RequestRenderer(data.template, data.statistics, max_events, candidates)

    def scorer(self) -> Scorer:
        """For all tasks."""
        return self.once("scorer", lambda: self.model.scorer(**self._shapes))

    def retriever(self) -> Retriever:
        """For all tasks."""
        return self.once("retriever", lambda: self.model.retriever(**self._shapes))

    def likelihood_scorer(self) -> LikelihoodScorer:
        """For all tasks."""
        return self.once("likelihood", lambda: self.model.likelihood_scorer(**self._shapes))

    def generator(self, task: str) -> Generator:
        """For tasks whose texts are as long as this one's."""
        shapes = {name: sizes for name, sizes in self._shapes.items() if name != "target_buckets"}
        length = self.settings(task).target_length
        return self.once(("generator", length), lambda: self.model.generator(task, **shapes))

    def continuous_generator(self) -> ContinuousGenerator:
        """For all tasks; as many slots as the largest batch has rows, see `continuous`."""
        model, shapes = self.model, self._shapes
        return self.once(
            "continuous",
            lambda: ContinuousGenerator(
                model.model,
                model.variables,
                model.vocabulary,
                model.options(source_buckets=shapes["source_buckets"]),
                num_slots=self.batch_sizes[-1],
                row_counts=self.batch_sizes,
            ),
        )

    def index(self, task: str) -> StoredIndex:
        """The catalogue's index for a task.

        Raises:
          ConfigError: none is named. CheckpointError: it is one of another model.
        """
        folder = self._index.get(task) if isinstance(self._index, Mapping) else self._index
        if folder is None:
            raise ConfigError(
                f"'{task}' needs an index of the catalogue: make one with `m6rec index build`, and "
                "name it with --index FOLDER"
            )
        return self.once(
            ("index", folder, task),
            lambda: open_index(folder, self.model.fingerprint(task), mesh=self.model.mesh),
        )

    def has_index(self, task: str) -> bool:
        """Whether an index is named for a task."""
        return self._index is not None and (
            not isinstance(self._index, Mapping) or task in self._index
        )

    def indexes(self) -> dict[str, str]:
        """The folder of each task's index, as far as one is named."""
        if isinstance(self._index, Mapping):
            return dict(self._index)
        tasks = self.model.settings.tasks
        return {} if self._index is None else dict.fromkeys(tasks, self._index)

    def beside(self, task: str, kind: str) -> str | None:
        """The one task of a kind that was trained on the same data; None: none, or several."""
        own = self.settings(task).prepared
        tasks = self.model.settings.tasks
        names = [name for name, s in tasks.items() if s.kind == kind and s.prepared == own]
        return names[0] if len(names) == 1 else None


def _check_tasks_of_indexes(index: Any, model: LoadedModel) -> None:
    known = model.settings.tasks
    for task in index if isinstance(index, Mapping) else ():
        if task not in known:
            raise ConfigError(
                f"an index is named for '{task}'{did_you_mean(task, known)}; the model's tasks: "
                f"{', '.join(sorted(known))}"
            )
        if known[task].kind not in INDEXED:
            raise ConfigError(
                f"an index is named for '{task}', and a task of kind '{known[task].kind}' searches "
                "none"
            )
