"""What answers are made of: a model's engines, data and indexes, shared among jobs and tasks."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from m6rec_jax.engine.candidates.likelihood import LikelihoodScorer
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.decoding.continuous import ContinuousGenerator
from m6rec_jax.engine.decoding.generation import Generator
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
      model: a state of a run or a bank.
      options: what to answer with, and in which shapes.
      read: data and indexes that were read before, as of `kept_for`.
      warm: what has been warmed up; programs are those of all states of a model.

    Attributes:
      lock: held while something is made.

    Raises:
      ConfigError: an index of a task that there is not.
    """

    def __init__(
        self,
        model: LoadedModel,
        options: ServiceOptions,
        read: Mapping[Any, Any] | None = None,
        warm: set[Any] | None = None,
    ) -> None:
        self.model, self.options = model, options
        # An export has programs of whole batches alone.
        self.continuous = options.continuous and model.options().programs is None
        self.prepared, self._items, self._index = options.prepared, options.items, options.index
        _check_tasks_of_indexes(options.index, model)
        self._shapes: dict[str, Any] = {
            "batch_sizes": tuple(sorted(options.batch_sizes)),
            "source_buckets": options.source_buckets or (model.settings.source_length,),
            "target_buckets": (model.settings.target_length,),
        }
        self._made: dict[Any, Any] = dict(read or {})
        self._warm: set[Any] = set() if warm is None else warm
        self.lock = threading.RLock()

    def changed(
        self,
        model: LoadedModel | None = None,
        data: Mapping[str, Any] | None = None,
        index: Mapping[str, str] | None = None,
    ) -> Parts:
        """Those of another state of the model, or with other data. Nothing is compiled.

        Args:
          model: None: the same.
          data: any of `prepared`, `items` and `index`, which are then read anew, also where they
            have the same names; None: data that were read stay.
          index: further folders of indexes by task, which are read anew.

        Raises:
          ConfigError: an index of a task that there is not.
        """
        model = model or self.model
        indexes = self.indexes()
        for named in ((data or {}).get("index"), index):
            _check_tasks_of_indexes(named, model)
            if isinstance(named, str):
                named = dict.fromkeys(model.tasks, named)
            indexes |= dict(named or {})  # tasks that are not named keep theirs
        indexes = {t: indexes[t] for t in indexes if t in model.tasks and _is_indexed(model, t)}
        options = dataclasses.replace(self.options, **{**(data or {}), "index": indexes})
        read = {} if data is not None else self._kept_for(model, index or {})
        return Parts(model, options, read, self._warm)

    def _kept_for(self, model: LoadedModel, index: Mapping[str, str]) -> dict[Any, Any]:
        """What was read and is the same for another state of the model."""
        old, tasks = self.model.tasks, model.tasks
        described = [self.model.dataset_spec(task) for task in old]
        keeps_data = all(model.dataset_spec(task) in described for task in tasks)

        def is_kept(key: Any, value: Any) -> bool:
            if isinstance(value, ServingData):
                return keeps_data
            if key[0] not in ("described", "index") or not {key[1]} <= tasks.keys() & old.keys():
                return False
            if key[0] == "index":
                same = model.fingerprint(key[1]) == self.model.fingerprint(key[1])
                return key[1] not in index and same
            same = tasks[key[1]].prepared == old[key[1]].prepared
            return keeps_data and same and model.dataset_spec(key[1]) in described

        with self.lock:
            return {key: value for key, value in self._made.items() if is_kept(key, value)}

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
        """Runs an engine's warm-up, unless it ran for another state of the model."""
        if key not in self._warm:
            with warming_up():
                warm_up()
            self._warm.add(key)

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
            ("index", task, folder),
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
        tasks = [task for task in self.model.tasks if _is_indexed(self.model, task)]
        return {} if self._index is None else dict.fromkeys(tasks, self._index)

    def beside(self, task: str, kind: str) -> str | None:
        """The one task of a kind that was trained on the same data; None: none, or several."""
        own = self.settings(task).prepared
        tasks = self.model.settings.tasks
        names = [name for name, s in tasks.items() if s.kind == kind and s.prepared == own]
        return names[0] if len(names) == 1 else None


def _is_indexed(model: LoadedModel, task: str) -> bool:
    return model.settings.tasks[task].kind in INDEXED


def _check_tasks_of_indexes(index: Any, model: LoadedModel) -> None:
    known = model.settings.tasks
    for task in index if isinstance(index, Mapping) else ():
        if task not in known:
            raise ConfigError(
                f"an index is named for '{task}'{did_you_mean(task, known)}; the model's tasks: "
                f"{', '.join(sorted(known))}"
            )
        if not _is_indexed(model, task):
            raise ConfigError(
                f"an index is named for '{task}', and a task of kind '{known[task].kind}' searches "
                "none"
            )
