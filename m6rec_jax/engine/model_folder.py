"""A model folder: everything that is needed to use a trained model, loaded in one call.

    MODEL_DIR/
      checkpoints/                 written by training, see `m6rec_jax.checkpoints`
      inference/
        vocabulary.model           the SentencePiece file the model was trained with
        settings.json              lengths, tasks: `InferenceSettings`
        early_exit.json            where tasks leave the decoder, if `m6rec calibrate` was run
        ranking.json               weights by which found items are ordered, likewise
        datasets/<prepared>.json   columns and template of each data set of users, items and events
                                   that a task was trained on

`save_assets` writes the `inference` folder (`evaluation.assets` fills it in for registered tasks),
`load_model` reads a whole model folder.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import msgspec
import numpy as np
from etils import epath
from jax.sharding import Mesh

from m6rec_jax.checkpoints.checkpoint import PARAMS, PROMPTS, open_checkpoint
from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.manifest import library_versions
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.engine import computed_folder
from m6rec_jax.engine.candidates.scoring import LikelihoodScorer, Scorer
from m6rec_jax.engine.decoding.generation import Generator
from m6rec_jax.engine.engine import Backbone, EngineOptions
from m6rec_jax.engine.index.ranking_weights import RankingWeights
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.programs.packed_archive import Archive, read_archive, write_files
from m6rec_jax.engine.programs.packed_file import (
    packed_config,
    packed_variables,
    quantized_variables,
)
from m6rec_jax.engine.programs.runtime import Runtime
from m6rec_jax.engine.segments.cache import SegmentCache
from m6rec_jax.engine.segments.store import STORE_COMMAND, SegmentStore
from m6rec_jax.engine.task_settings import ExitSettings, TaskSettings, task_settings
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.buckets import kept_copy, path_of
from m6rec_jax.io.hashing import sha256
from m6rec_jax.model import M6Rec
from m6rec_jax.model.m6rec import abstract_variables
from m6rec_jax.model.quantization import BITS
from m6rec_jax.sharding import LogicalRules, make_mesh, placed_shapes, replicated
from m6rec_jax.text.labels import Contrast
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
T = TypeVar("T")
DatasetSpecs = Mapping[str, Mapping[str, Any]]
ASSETS_FOLDER = "inference"
DATA_FOLDER = "data"
VOCABULARY_FILE, SETTINGS_FILE, DATASETS_FOLDER = "vocabulary.model", "settings.json", "datasets"
EXITS_FILE, RANKING_FILE = "early_exit.json", "ranking.json"
# What a packed file tells of the data sets that its model was trained on.
_TOLD = ("description", "licence", "provenance")


@dataclasses.dataclass(frozen=True, slots=True)
class InferenceSettings:
    """What inference must know beside the weights.

    Attributes:
      source_length, target_length: S and T of training.
      tasks: seqio task name to its settings. Those of a bank come and go.
    """

    source_length: int
    target_length: int
    tasks: Mapping[str, TaskSettings] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LoadedModel:
    """The state of a training run's model at a moment: a value, which is never changed.

    Attributes:
      model: built from the checkpoint's own configuration.
      variables: `{'params': ..., 'prompts': ...}` on the devices.
      vocabulary: checked against the checkpoint's fingerprint.
      settings: see `InferenceSettings`.
      step: of the checkpoint.
      backbone: shared with the other states of the model.
      dataset_specs: by the `prepared` of tasks, what the data set's `dataset.json` holds.
      data_dir: where prepared data lie that came with the model; None: none came.
    """

    model: M6Rec
    variables: Mapping[str, Any]
    vocabulary: Vocabulary
    settings: InferenceSettings
    step: int
    backbone: Backbone
    dataset_specs: DatasetSpecs = dataclasses.field(default_factory=dict)
    data_dir: Path | None = None

    @property
    def tasks(self) -> Mapping[str, TaskSettings]:
        """Settings of all tasks, by name."""
        return self.settings.tasks

    def dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        """What the `dataset.json` of a task's data set holds; None for tasks of texts.

        There is no need to name the only task. Raises ConfigError where there is no such one.
        """
        return self.dataset_specs.get(task_settings(self.settings.tasks, task).prepared)

    def fingerprint(self, task: str = "", exits: bool = True) -> str:
        """What a task's results depend on beside the request: SHA-256 (hex).

        Two models that give other vectors or scores have other fingerprints, whatever their folders
        are called; of one model it is the same on any mesh.

        Where the task leaves the decoder belongs to it, but for what no exit changes, such as
        states of candidates (`exits`). Task and errors as `dataset_spec`.
        """
        template = self.template(task)
        described = self._described(task, exits) | {
            "vocabulary": self.vocabulary.fingerprint,
            "template": None if template is None else template.to_spec(),
            "backbone": self.backbone.checksums,
        }
        return digest(described)

    def _described(self, task: str, exits: bool) -> dict[str, Any]:
        """What else is in a fingerprint."""
        lengths = {"source_length": self.settings.source_length}
        lengths["target_length"] = self.settings.target_length
        return {
            "config": dataclasses.asdict(self.model.config),
            # Two that are no longer there are in the fingerprints of indexes.
            "lengths": lengths | {"tasks": None, "candidate_length": None},
            "task": task_settings(self.tasks, task).fingerprinted(exits),
            "prompts": checksums(flatten(dict(self.variables.get("prompts", {})))),
        }

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
            task_settings(self.tasks, task)
        options = EngineOptions(
            self.settings.source_length,
            self.settings.target_length,
            tasks=self.tasks,
            task=task,
            runtime=self.backbone.runtime,
            backbone=self.backbone,
            segments=self.segments,
        )
        return dataclasses.replace(options, **changes)

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
        room = self.settings.target_length
        longest = task_settings(self.tasks, task).target_length if task else None
        changes = {"target_length": min(longest or room, room)} | changes
        return Generator(self.model, self.variables, self.vocabulary, self.options(task, **changes))

    def likelihood_scorer(
        self, contrast: Contrast, task: str = "", **changes: Any
    ) -> LikelihoodScorer:
        """A `LikelihoodScorer` of two labels; other arguments and errors as `options`."""
        return LikelihoodScorer(
            self.model, self.variables, self.vocabulary, self.options(task, **changes), contrast
        )

    @property
    def segments(self) -> SegmentCache | None:
        """See `Backbone`."""
        return self.backbone.segments

    def use_segments(self, folder: str | Path) -> None:
        """Lets the cache read candidates of `m6rec index segments`; raises as `SegmentStore`, and
        ConfigError where late interaction is off.
        """
        if self.segments is None:
            raise ConfigError(
                f"{folder} holds cached segments, but the model was trained without late "
                "interaction (ModelConfig.late_layers_start = 0)"
            )
        task = computed_folder.read_manifest(folder, STORE_COMMAND).task
        store = SegmentStore(folder, self.fingerprint(task, exits=False))
        self.segments.candidates.store = store, task_settings(self.tasks, task)


def digest(described: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what results depend on."""
    return sha256(json.dumps(described, sort_keys=True, default=str))


def template_of(spec: Mapping[str, Any]) -> DatasetTemplate | None:
    """The template in a `dataset.json`; None where it has none."""
    if not spec.get("template"):
        return None
    return DatasetTemplate.parse(spec["template"], f"the model's data set {spec.get('name')!r}")


def save_assets(
    model_dir: str | Path,
    vocabulary: Vocabulary,
    settings: InferenceSettings,
    dataset_specs: DatasetSpecs | None = None,
) -> None:
    """Writes `MODEL_DIR/inference`.

    Args:
      model_dir: may be a bucket address.
      vocabulary, settings: its SentencePiece file is copied; see `InferenceSettings`.
      dataset_specs: by the `prepared` of tasks, what the data set's `dataset.json` holds; its
        template renders requests.
    """
    folder = epath.Path(model_dir) / ASSETS_FOLDER
    datasets = folder / DATASETS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCABULARY_FILE).write_bytes(vocabulary.file_content)
    for name, spec in (dataset_specs or {}).items():
        datasets.mkdir(exist_ok=True)
        (datasets / f"{name}.json").write_text(json.dumps(dict(spec), indent=2) + "\n")
    values = dataclasses.asdict(settings)
    (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


class RestoredModel(NamedTuple):
    """A model as a checkpoint has it, and the step of that checkpoint."""

    model: M6Rec
    variables: Mapping[str, Any]
    step: int


def restore_model(
    model_dir: str | Path,
    *,
    step: int | None = None,
    vocabulary_fingerprint: str | None = None,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> RestoredModel:
    """Backbone and prompts of a checkpoint, built by its own configuration.

    Args:
      model_dir: MODEL_DIR of a training run, or a checkpoint's folder; may be a bucket address. Or
        a packed file.
      step: which checkpoint; None: the newest (warns where the run says that another is better).
        A packed file has one.
      vocabulary_fingerprint: of the vocabulary in use, compared with the checkpoint's.
      mesh: devices to spread the variables over; None: the default device.
      rules: logical-axis rules, with a mesh.

    Raises:
      CheckpointError: no checkpoint, none of that step, damage, or another vocabulary.
    """
    if Path(model_dir).is_file():
        if vocabulary_fingerprint not in (None, read_vocabulary(model_dir).fingerprint):
            raise CheckpointError(f"{model_dir} has another vocabulary than the one in use")
        packed, _ = _opened(model_dir)
        if step not in (None, of_file := int(packed.manifest["step"])):
            raise CheckpointError(f"{model_dir} is step {of_file}, not step {step}")
        # It is small: of several devices each has all of it.
        place = None if mesh is None else replicated(mesh)
        variables = jax.device_put(packed_variables(packed), place)
        return RestoredModel(M6Rec(packed_config(packed)), variables, of_file)
    checkpoint = open_checkpoint(model_dir, step)
    checkpoint.check_vocabulary(vocabulary_fingerprint)
    if step is None:
        checkpoint.warn_of_a_better_step(model_dir)
    config = checkpoint.config
    target = variable_targets(M6Rec(config), mesh, rules)
    variables = {
        item: checkpoint.restore(item, target[item], config)
        for item in (PARAMS, PROMPTS)
        if target.get(item)
    }
    return RestoredModel(M6Rec(config), variables, checkpoint.step)


def load_model(
    model_dir: str | Path,
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> LoadedModel:
    """Loads a model folder: checkpoint, vocabulary, templates and settings; or a file of `m6rec
    compress pack`, whose weights stay bytes.

    Args and errors as `restore_model`; besides:

    Raises:
      CheckpointError: there is no `inference` folder.
    """
    if not Path(model_dir).is_file():
        open_checkpoint(model_dir, step)  # a missing checkpoint is the first thing to say
    vocabulary, settings = read_vocabulary(model_dir), read_settings(model_dir)
    dataset_specs, data_dir = read_dataset_specs(model_dir), assets_of(model_dir) / DATA_FOLDER
    for spec in dataset_specs.values():
        template_of(spec)  # raises where it is none
    rules = tuple(rules)
    restored = restore_model(
        model_dir,
        step=step,
        vocabulary_fingerprint=vocabulary.fingerprint,
        mesh=mesh,
        rules=rules,
    )
    return LoadedModel(
        model=restored.model,
        variables=restored.variables,
        vocabulary=vocabulary,
        settings=calibrated(settings, model_dir, restored.step),
        step=restored.step,
        backbone=Backbone(
            restored.model,
            restored.variables["params"],
            Runtime(mesh, rules),
            settings.source_length,
            settings.target_length,
        ),
        dataset_specs=dataset_specs,
        data_dir=data_dir if data_dir.is_dir() else None,
    )


def assets_of(model_dir: str | Path) -> Path:
    """The folder in which `inference/` lies, on a local disk until Python ends: the run's own, a
    copy of one in a bucket, or what a packed file carries.
    """
    if Path(model_dir).is_file():
        return _opened(model_dir)[1]
    return kept_copy(path_of(model_dir) / ASSETS_FOLDER).parent


def _opened(path: str | Path) -> tuple[Archive, Path]:
    """A packed model, and a folder with what it carries."""
    return _opened_once(path, Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _opened_once(path: str | Path, _: int) -> tuple[Archive, Path]:
    packed, folder = read_archive(path), Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_files(folder, packed.files)
    return packed, folder


def packed_of(model_dir: str | Path, bits: int = BITS) -> Archive:
    """What `m6rec compress pack` writes of the newest checkpoint of a run, in bits of each weight.

    Raises:
      CheckpointError: as `restore_model`; it is packed already.
    """
    if Path(model_dir).is_file():
        raise CheckpointError(f"{model_dir} is packed already")
    restored = restore_model(
        model_dir, vocabulary_fingerprint=read_vocabulary(model_dir).fingerprint
    )
    folder, specs = assets_of(model_dir), read_dataset_specs(model_dir)
    told = {spec["name"]: {key: spec.get(key) for key in _TOLD} for spec in specs.values()}
    packed = flatten(quantized_variables(restored.variables, bits))
    return Archive(
        {
            "versions": library_versions(),
            "model": dataclasses.asdict(restored.model.config),
            "step": restored.step,
            "about": {"trained_on": told},
        },
        {name: np.asarray(leaf) for name, leaf in packed.items()},
        {
            str(path.relative_to(folder)): path.read_bytes()
            for pattern in ("*.model", "*.json", f"{DATASETS_FOLDER}/*.json")
            for path in sorted((folder / ASSETS_FOLDER).glob(pattern))
        },
    )


def variable_targets(
    model: M6Rec, mesh: Mesh | None = None, rules: LogicalRules = ()
) -> dict[str, Any]:
    """Shapes, types and shardings of a model's variables, without computing any.

    Returns:
      `{'params': ..., 'prompts': ...}` of `jax.ShapeDtypeStruct` with shardings.
    """
    boxed = dict(abstract_variables(model.config))
    if mesh is None:
        mesh, rules = make_mesh(1, 1, 1, devices=jax.local_devices()[:1]), ()
    return {name: placed_shapes(tree, mesh, rules) for name, tree in boxed.items()}


def read_settings(model_dir: str | Path) -> InferenceSettings:
    """`inference/settings.json`; raises CheckpointError where it is missing or damaged."""
    return _read(_asset(model_dir, SETTINGS_FILE), InferenceSettings)


def calibrated(settings: InferenceSettings, model_dir: str | Path, step: int) -> InferenceSettings:
    """Settings with what `m6rec calibrate` has written to `MODEL_DIR/inference` for this step.

    What was made for another step is left out, with a warning.

    Raises:
      CheckpointError: a file is damaged.
    """
    exits = _calibrated(model_dir, EXITS_FILE, step, ExitSettings)
    ranking = read_ranking(model_dir, step)
    tasks = {
        name: dataclasses.replace(
            task, exits=exits.get(name, task.exits), ranking=ranking.get(name, task.ranking)
        )
        for name, task in settings.tasks.items()
    }
    return dataclasses.replace(settings, tasks=tasks)


def read_ranking(model_dir: str | Path, step: int) -> dict[str, RankingWeights]:
    """Weights by task of `MODEL_DIR/inference/ranking.json`; errors, warnings: `calibrated`."""
    return _calibrated(model_dir, RANKING_FILE, step, RankingWeights)


class _Calibrated(msgspec.Struct, Generic[T]):
    """A file of `m6rec calibrate`."""

    step: int
    tasks: dict[str, T]


def _calibrated(model_dir: str | Path, file: str, step: int, kind: type[T]) -> dict[str, T]:
    path = assets_of(model_dir) / ASSETS_FOLDER / file
    if not path.exists():
        return {}
    calibrated = _read(path, _Calibrated[kind])  # type: ignore[valid-type]
    if calibrated.step == step:
        return calibrated.tasks
    logger.warning(
        "%s was made for step %d, not %d, and is not used; `m6rec calibrate` makes it anew",
        path,
        calibrated.step,
        step,
    )
    return {}


def read_dataset_specs(model_dir: str | Path) -> dict[str, dict[str, Any]]:
    """`inference/datasets`, by the `prepared` of tasks; raises CheckpointError where damaged."""
    folder = assets_of(model_dir) / ASSETS_FOLDER / DATASETS_FOLDER
    return {path.stem: _read(path, dict[str, Any]) for path in sorted(folder.glob("*.json"))}


def read_vocabulary(model_dir: str | Path) -> Vocabulary:
    """`inference/vocabulary.model`; raises CheckpointError where it is missing."""
    return Vocabulary(_asset(model_dir, VOCABULARY_FILE))


def _read(path: Path, kind: type[T]) -> T:
    """A JSON file; raises CheckpointError where it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _asset(model_dir: str | Path, name: str) -> Path:
    path = assets_of(model_dir) / ASSETS_FOLDER / name
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: {model_dir} has a checkpoint, but not what inference needs beside "
            "it. `m6rec_jax.engine.model_folder.save_assets` writes it"
        )
    return path
