"""What answers are made of: a model's engines, data and indexes, shared by jobs and tasks."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import jax

from m6rec_jax.data.getting.sources import default_data_dir
from m6rec_jax.engine.candidates.scoring import LikelihoodScorer, Scorer
from m6rec_jax.engine.decoding.continuous import ContinuousGenerator
from m6rec_jax.engine.decoding.generation import Generator
from m6rec_jax.engine.index.index_files import StoredIndex, open_index
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.model_folder import DATASETS_FOLDER, LoadedModel
from m6rec_jax.engine.programs.kept_programs import warming_up
from m6rec_jax.engine.task_settings import TaskSettings, task_name, task_settings
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import kept_copy, path_of
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.requests.serving_data import ServingData, prepared_dataset_spec, texts_alone
from m6rec_jax.text.labels import Contrast

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
      batch_sizes: numbers of rows to pad to, over all devices; None: 1 and 8 on a CPU, where a
        padded row costs as much as a real one, 1 and 32 elsewhere.
      source_buckets: lengths of histories to pad to; None: the longest alone.
      continuous: a `Scheduler` answers: texts grow one by one, and others join at any step.
    """

    prepared: str | None = None
    items: str | None = None
    index: str | Mapping[str, str] | None = None
    segments: str | None = None
    batch_sizes: Sequence[int] | None = None
    source_buckets: Sequence[int] | None = None
    continuous: bool = False


class Resources:
    """What answers are made of; engines and data are shared by jobs and tasks.

    Args:
      model: a state of a run or a bank.
      options: what to answer with, and in which shapes.

    Attributes:
      continuous: whether texts grow one by one.
      batch_sizes: numbers of rows to pad to, ascending.
      indexes: the folder of each task's index, as far as one is named.
      earlier: data and indexes of the state before, by all that they depend on.
      lock: held while something is made.

    Raises:
      ConfigError: an index of a task that there is not, or of one that searches none.
    """

    def __init__(self, model: LoadedModel, options: ServiceOptions) -> None:
        self.model, self.options = model, options
        self.continuous = options.continuous
        sizes = options.batch_sizes or ((1, 8) if jax.default_backend() == "cpu" else (1, 32))
        self.batch_sizes = tuple(sorted(sizes))
        self.indexes = _indexes(options.index, model)
        self._shapes: dict[str, Any] = {
            "batch_sizes": self.batch_sizes,
            "source_buckets": options.source_buckets or (model.settings.source_length,),
            "target_buckets": (model.settings.target_length,),
        }
        self._made: dict[Any, Any] = {}
        self.earlier: dict[Any, Any] = {}
        self._warm = set[Any]()  # programs are those of all states of a model
        self.lock = threading.RLock()

    def changed(
        self,
        model: LoadedModel | None = None,
        data: Mapping[str, Any] | None = None,
        index: Mapping[str, str] | None = None,
    ) -> Self:
        """Those of another state of the model, or with other data. Nothing is compiled.

        Args:
          model: None: the same.
          data: any of `prepared`, `items` and `index`, which are then read anew, also where they
            have the same names; None: data that were read stay.
          index: further folders of indexes by task, which are read anew.

        Raises:
          ConfigError: as the class.
        """
        model, data_options = model or self.model, dict(data or {})
        named = _indexes(data_options.pop("index", None), model) | _indexes(index, model)
        every = (self.indexes | named).items()  # tasks that are not named keep theirs
        indexes = {t: f for t, f in every if (s := model.tasks.get(t)) and s.kind in INDEXED}
        new = type(self)(model, dataclasses.replace(self.options, **data_options, index=indexes))
        new._warm = self._warm
        if data is None:
            kinds, anew = ("data", "index"), {("index", task) for task in index or {}}
            with self.lock:
                made = self._made.items()
                new.earlier = {k: v for k, v in made if k[0] in kinds and k[:2] not in anew}
        return new

    def settings(self, task: str) -> TaskSettings:
        """Of a task; raises ConfigError where there is no such task."""
        return task_settings(self.model.settings.tasks, task)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` gives, unless it was made before, also for `earlier`, by an equal key."""
        if key not in self._made:
            with self.lock:
                if key not in self._made:
                    self._made[key] = self.earlier.pop(key) if key in self.earlier else make()
        made: T = self._made[key]
        return made

    def warm_once(self, key: Any, warm_up: Callable[[], Any]) -> None:
        """Runs an engine's warm-up, unless it ran for another state of the model."""
        if key not in self._warm:
            with warming_up():
                warm_up()
            self._warm.add(key)

    def data(self, task: str, *, any_data_set: bool = False) -> ServingData:
        """What a task's requests are rendered with; errors as `open_serving_data`."""
        settings, prepared, items = self.settings(task), self.options.prepared, self.options.items
        if settings.reads_text:
            return texts_alone()
        # Two runs on one folder may know the data set by other templates.
        spec = dataset_spec_of(self.model, task, prepared, any_data_set)
        folder = settings.prepared if prepared is None else prepared
        return self.once(
            ("data", folder, json.dumps(spec, sort_keys=True)),
            lambda: open_serving_data(self.model, task, prepared, items, any_data_set=any_data_set),
        )

    def scorer(self) -> Scorer:
        """For all tasks."""
        return self.once("scorer", lambda: self.model.scorer(**self._shapes))

    def retriever(self) -> Retriever:
        """For all tasks."""
        return self.once("retriever", lambda: self.model.retriever(**self._shapes))

    def likelihood_scorer(self, contrast: Contrast) -> LikelihoodScorer:
        """For all tasks, of two labels."""
        return self.once(
            ("likelihood", contrast),
            lambda: self.model.likelihood_scorer(contrast, **self._shapes),
        )

    def generator(self, task: str) -> Generator:
        """For tasks whose texts are as long as this one's."""
        length = self.settings(task).target_length
        shapes = {**self._shapes, "target_buckets": None}
        return self.once(("generator", length), lambda: self.model.generator(task, **shapes))

    def continuous_generator(self) -> ContinuousGenerator:
        """For all tasks; as many slots as the largest batch has rows, see `continuous`."""

        def make() -> ContinuousGenerator:
            model, buckets = self.model, self._shapes["source_buckets"]
            state = model.model, model.variables, model.vocabulary
            options = model.options(source_buckets=buckets)
            return ContinuousGenerator(*state, options, self.batch_sizes)

        return self.once("continuous", make)

    def index(self, task: str) -> StoredIndex:
        """The catalogue's index for a task.

        Raises:
          ConfigError: none is named. CheckpointError: it is one of another model.
        """
        folder, model = self.indexes.get(task), self.model.fingerprint(task)
        if folder is None:
            raise ConfigError(
                f"'{task}' needs an index of the catalogue: make one with `m6rec index build`, and "
                "name it with --index FOLDER"
            )
        return self.once(
            ("index", task, folder, model),
            lambda: open_index(folder, model, mesh=self.model.backbone.runtime.mesh),
        )

    def beside(self, task: str, kind: str) -> str | None:
        """The one task of a kind that was trained on the same data; None: none, or several."""
        kind_and_data = kind, self.settings(task).prepared
        tasks = self.model.settings.tasks
        names = [name for name, s in tasks.items() if (s.kind, s.prepared) == kind_and_data]
        return names[0] if len(names) == 1 else None


def _indexes(index: str | Mapping[str, str] | None, model: LoadedModel) -> dict[str, str]:
    """A folder for each task; raises as `Resources`."""
    kinds = {task: settings.kind for task, settings in model.tasks.items()}
    if isinstance(index, str):
        return dict.fromkeys(kinds, index)
    for task in index or {}:
        if kinds.get(task) not in INDEXED:
            kind = f" (of kind '{kinds[task]}')" if task in kinds else did_you_mean(task, kinds)
            raise ConfigError(
                f"an index is named for '{task}'{kind}; tasks of the model that search one: "
                f"{', '.join(sorted(t for t in kinds if kinds[t] in INDEXED)) or 'none'}"
            )
    return dict(index or {})


def open_serving_data(
    model: LoadedModel,
    task: str = "",
    prepared: str | None = None,
    items: str | None = None,
    *,
    with_statistics: bool = True,
    any_data_set: bool = False,
) -> ServingData:
    """Catalogue and statistics for a task of a model.

    Args:
      model: of the model.
      task: name; there is no need to name the only one.
      prepared: folder with the catalogue and the statistics; None: what the task was trained on, in
        the model's own data or the data folder; '': neither, requests bring all of it.
      items: Parquet or CSV file of a newer catalogue.
      with_statistics: see `ServingData.open`.
      any_data_set: whether `prepared` may be of a data set that the task was not trained on; its
        own columns and template are then used.

    Raises:
      ConfigError: no such task, one whose requests have another form, or the model folder does not
        say which data it was trained on.
      DataError: the data are missing or damaged.
    """
    task = task_name(model.settings.tasks, task)
    trained_on = model.settings.tasks[task].prepared
    spec = dataset_spec_of(model, task, prepared, any_data_set)
    if spec is None:
        raise ConfigError(
            f"'{task}' was trained on no data set of users, items and events (there is no "
            f"inference/{DATASETS_FOLDER}/{trained_on or 'NAME'}.json in the model folder, or no "
            "dataset.json with the task of a bank), so nothing renders its requests"
        )
    if prepared is None:
        if not trained_on:
            raise ConfigError(
                f"the model folder does not say which prepared data '{task}' was trained on; name "
                "them with --gin.PREPARED=FOLDER, or --gin.PREPARED=\"''\" where requests bring all"
            )
        folder: Path | None = kept_copy((model.data_dir or default_data_dir()) / trained_on)
    else:
        folder = _folder_of(prepared)
    file = None if items is None else Path(items).expanduser()
    return ServingData.open(spec, folder, file, with_statistics=with_statistics)


def dataset_spec_of(
    model: LoadedModel, task: str, prepared: str | None, any_data_set: bool
) -> Mapping[str, Any] | None:
    """What `dataset.json` says of the data that a task's requests are rendered with, if anything.

    Arguments as `open_serving_data`.

    Raises:
      DataError: the data are missing or damaged.
      ConfigError: they are of another kind than users, items and events.
    """
    trained_on, folder = model.dataset_spec(task), _folder_of(prepared or "")
    if any_data_set and folder is not None:
        there = prepared_dataset_spec(folder)
        # Rendered as in training, where the model was trained on this data set.
        if trained_on is None or trained_on.get("name") != there.get("name"):
            return there
    return trained_on


def _folder_of(prepared: str) -> Path | None:
    return kept_copy(path_of(prepared).expanduser()) if prepared else None
