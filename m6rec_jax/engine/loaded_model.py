"""A model in memory, ready to answer: a training run (`model_folder`) or a bank of tasks.

model = load_model("runs/ctr")
model.scorer("movielens_100k_ctr").score_requests(histories, candidates)
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine.backbone import Backbone
from m6rec_jax.engine.candidates.likelihood import LikelihoodScorer
from m6rec_jax.engine.candidates.scoring import Scorer
from m6rec_jax.engine.computed_folder import read_manifest
from m6rec_jax.engine.decoding.generation import Generator
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.engine.segments.store import STORE_COMMAND, SegmentStore
from m6rec_jax.engine.task_settings import TaskSettings, task_settings
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.hashing import sha256
from m6rec_jax.model import M6Rec
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.vocabulary import Vocabulary

DatasetSpecs = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class InferenceSettings:
    """What inference must know beside the weights.

    Attributes:
      source_length, target_length: S and T of training.
      tasks: seqio task name to its settings. Those of a bank come and go.
      candidate_length: most tokens of one candidate, of any task; None: no other limit than T and
        the tasks' own.
    """

    source_length: int
    target_length: int
    tasks: Mapping[str, TaskSettings] = dataclasses.field(default_factory=dict)
    candidate_length: int | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LoadedModel(abc.ABC):
    """The state of a model at a moment: a value, which is never changed.

    Attributes:
      model: built from the checkpoint's own configuration.
      variables: `{'params': ..., 'prompts': ...}` on the devices.
      vocabulary: checked against the checkpoint's fingerprint.
      settings: see `InferenceSettings`.
      step: of the checkpoint.
      backbone: shared with the other states of the model.
      mesh, rules: where the variables lie; None: the default device.
      data_dir: where prepared data lie that came with the model; None: none came.
    """

    model: M6Rec
    variables: Mapping[str, Any]
    vocabulary: Vocabulary
    settings: InferenceSettings
    step: int
    backbone: Backbone
    mesh: Mesh | None = None
    rules: LogicalRules = ()
    data_dir: Path | None = None

    @property
    def tasks(self) -> Mapping[str, TaskSettings]:
        """Settings of all tasks, by name."""
        return self.settings.tasks

    @abc.abstractmethod
    def dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        """What the `dataset.json` of a task's data set holds; None for tasks of texts.

        Args:
          task: name; there is no need to name the only one.

        Raises:
          ConfigError: no such task.
        """

    @abc.abstractmethod
    def fingerprint(self, task: str = "", exits: bool = True) -> str:
        """What a task's results depend on beside the request: SHA-256 (hex).

        Two models that give other vectors or scores have other fingerprints, whatever their folders
        are called; of one model it is the same on any mesh.

        Args:
          task: see `dataset_spec`; errors, too.
          exits: whether it depends on where the task leaves the decoder; candidates' states do not.
        """

    def template(self, task: str = "") -> DatasetTemplate | None:
        """What renders users, behaviours and candidates of a task; errors as `dataset_spec`."""
        spec = self.dataset_spec(task)
        return None if spec is None else template_of(spec)

    def options(self, task: str = "", **changes: Any) -> EngineOptions:
        """Options of an engine whose requests may name any task of the model.

        Args:
          task: which task a request has that names none; empty: the only one.
          changes: other fields of `EngineOptions`.

        Raises:
          ConfigError: no such task.
        """
        if task:
            task_settings(self.settings.tasks, task)
        settings = {
            f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)
        }
        shared = {name: getattr(self, name) for name in ("mesh", "rules", "backbone", "segments")}
        return EngineOptions(**(settings | shared | {"task": task} | changes))

    def scorer(self, task: str = "", **changes: Any) -> Scorer:
        """A `Scorer` for all tasks with classes; arguments and errors as `options`."""
        return Scorer(self.model, self.variables, self.vocabulary, self.options(task, **changes))

    def retriever(self, task: str = "", **changes: Any) -> Retriever:
        """A `Retriever` for all tasks with projections; arguments and errors as `options`."""
        return Retriever(self.model, self.variables, self.vocabulary, self.options(task, **changes))

    def generator(self, task: str = "", **changes: Any) -> Generator:
        """A `Generator`; arguments and errors as `options`.

        Its texts are at most as long as those that `task` was trained on.
        """
        if task:
            room = self.settings.target_length
            of_task = task_settings(self.settings.tasks, task).target_length
            changes = {"target_length": min(of_task or room, room)} | changes
        return Generator(self.model, self.variables, self.vocabulary, self.options(task, **changes))

    def likelihood_scorer(self, task: str = "", **changes: Any) -> LikelihoodScorer:
        """A `LikelihoodScorer`, by the prompts of the task.

        Arguments and errors as `options`; also its own `contrast`.
        """
        labels = {"contrast": changes.pop("contrast")} if "contrast" in changes else {}
        return LikelihoodScorer(
            self.model, self.variables, self.vocabulary, self.options(task, **changes), **labels
        )

    @property
    def segments(self) -> SegmentCache | None:
        """What all engines share of early layers' work; None: late interaction is off."""
        return self.backbone.segments

    def use_segments(self, folder: str | Path) -> None:
        """Lets the cache read candidates of `m6rec index segments`.

        Raises:
          ConfigError: late interaction is off. CheckpointError: see `SegmentStore`.
        """
        if self.segments is None:
            raise ConfigError(
                f"{folder} holds cached segments, but the model was trained without late "
                "interaction (ModelConfig.late_layers_start = 0)"
            )
        task = read_manifest(folder, STORE_COMMAND).task
        store = SegmentStore(folder, self.fingerprint(task, exits=False))
        self.segments.use_store(store, task_settings(self.settings.tasks, task))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TrainedModel(LoadedModel):
    """The model of a training run.

    Attributes:
      dataset_specs: by the `prepared` of tasks, what the data set's `dataset.json` holds.
    """

    dataset_specs: DatasetSpecs

    def dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        return self.dataset_specs.get(task_settings(self.settings.tasks, task).prepared)

    def fingerprint(self, task: str = "", exits: bool = True) -> str:
        template = self.template(task)
        described = {
            "config": dataclasses.asdict(self.model.config),
            "vocabulary": self.vocabulary.fingerprint,
            "lengths": dataclasses.asdict(self.settings) | {"tasks": None},
            "task": task_settings(self.settings.tasks, task).fingerprinted(exits),
            "template": None if template is None else template.to_spec(),
            "backbone": self.backbone.checksums,
            "prompts": checksums(flatten(dict(self.variables.get("prompts", {})))),
        }
        return digest(described)


def digest(described: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what results depend on."""
    return sha256(json.dumps(described, sort_keys=True, default=str))


def template_of(spec: Mapping[str, Any]) -> DatasetTemplate | None:
    """The template in a `dataset.json`; None where it has none."""
    if not spec.get("template"):
        return None
    return DatasetTemplate.parse(spec["template"], f"the model's data set {spec.get('name')!r}")
