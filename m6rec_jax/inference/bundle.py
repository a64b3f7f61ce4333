"""A model folder: everything that is needed to use a trained model, loaded in one call.

    MODEL_DIR/
      checkpoints/                 written by training, see `m6rec_jax.checkpoints`
      inference/
        vocabulary.model           the SentencePiece file the model was trained with
        dataset.json               template and columns of its data set, when there is one
        settings.json              lengths, tasks: `InferenceSettings`

`save_assets` writes the `inference` folder (`evaluation.assets` fills it in for registered tasks),
`load_model` reads a whole model folder.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.manifest import check_vocabulary
from m6rec_jax.checkpoints.restore import PARAMS, PROMPTS, restore_item
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.inference.generation import Generator
from m6rec_jax.inference.retrieval import Retriever
from m6rec_jax.inference.scoring import Scorer
from m6rec_jax.model import M6Rec
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.sharding import LogicalRules, make_mesh, unboxed_shapes, variable_shardings
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.vocabulary import Vocabulary

ASSETS_FOLDER = "inference"
VOCABULARY_FILE, DATASET_FILE, SETTINGS_FILE = "vocabulary.model", "dataset.json", "settings.json"


@dataclasses.dataclass(frozen=True, slots=True)
class TaskSettings:
    """What inference must know of a task.

    Attributes:
      task_id: row of the prompt bank.
      positive_classes: classes whose probabilities a score adds up.
      sampling_rate: share of the negatives that training saw; 1 where none were sampled.
    """

    task_id: int = 0
    positive_classes: tuple[int, ...] = (1,)
    sampling_rate: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class InferenceSettings:
    """What inference must know beside the weights.

    Attributes:
      source_length, target_length: S and T of training.
      tasks: seqio task name to its settings.
      candidate_length: most tokens of one candidate; None: no other limit than T.
    """

    source_length: int
    target_length: int
    tasks: Mapping[str, TaskSettings] = dataclasses.field(default_factory=dict)
    candidate_length: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded model.

    Attributes:
      model: built from the checkpoint's own configuration.
      variables: `{'params': ..., 'prompts': ...}` on the devices.
      vocabulary: checked against the checkpoint's fingerprint.
      template: renders users, behaviours and candidates; None when the folder has none.
      settings: see `InferenceSettings`.
      step: of the checkpoint.
      mesh, rules: where the variables lie.
    """

    model: M6Rec
    variables: Mapping[str, Any]
    vocabulary: Vocabulary
    template: DatasetTemplate | None
    settings: InferenceSettings
    step: int
    mesh: Mesh | None = None
    rules: LogicalRules = ()

    def scorer(self, task: str = "", **changes: Any) -> Scorer:
        """A `Scorer` for one of the model's tasks (there is no need to name the only one).

        Raises:
          ConfigError: no such task.
        """
        settings = self._task(task)
        arguments: dict[str, Any] = {
            **self._shared(settings),
            "positive_classes": settings.positive_classes,
            "sampling_rate": settings.sampling_rate,
            "candidate_length": self.settings.candidate_length,
        }
        return Scorer(self.model, self.variables, self.vocabulary, **(arguments | changes))

    def retriever(self, task: str = "", **changes: Any) -> Retriever:
        """A `Retriever` for one of the model's tasks; arguments and errors as `scorer`."""
        arguments: dict[str, Any] = {
            **self._shared(self._task(task)),
            "item_length": self.settings.candidate_length,
        }
        return Retriever(self.model, self.variables, self.vocabulary, **(arguments | changes))

    def generator(self, task: str = "", **changes: Any) -> Generator:
        """A `Generator` for one of the model's tasks; arguments and errors as `scorer`."""
        arguments = self._shared(self._task(task))
        return Generator(self.model, self.variables, self.vocabulary, **(arguments | changes))

    def _shared(self, task: TaskSettings) -> dict[str, Any]:
        return {
            "task_id": task.task_id,
            "source_length": self.settings.source_length,
            "target_length": self.settings.target_length,
            "mesh": self.mesh,
            "rules": self.rules,
        }

    def _task(self, name: str) -> TaskSettings:
        tasks = self.settings.tasks
        if not name and len(tasks) == 1:
            return next(iter(tasks.values()))
        if name not in tasks:
            asked = f"no task '{name}'" if name else "several tasks; name one"
            raise ConfigError(f"the model knows {asked}: {', '.join(sorted(tasks)) or 'none'}")
        return tasks[name]


def save_assets(
    model_dir: str | Path,
    vocabulary: Vocabulary,
    settings: InferenceSettings,
    dataset_spec: Mapping[str, Any] | None = None,
) -> None:
    """Writes `MODEL_DIR/inference`.

    Args:
      model_dir: may be a bucket address.
      vocabulary: its SentencePiece file is copied.
      settings: see `InferenceSettings`.
      dataset_spec: what the data set's `dataset.json` holds; its template renders requests.
    """
    folder = epath.Path(model_dir) / ASSETS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCABULARY_FILE).write_bytes(Path(vocabulary.model_file).read_bytes())
    if dataset_spec is not None:
        (folder / DATASET_FILE).write_text(json.dumps(dict(dataset_spec), indent=2) + "\n")
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
      model_dir: MODEL_DIR of a training run, or a checkpoint's folder; may be a bucket address.
      step: which checkpoint; None: the newest.
      vocabulary_fingerprint: of the vocabulary in use, compared with the checkpoint's.
      mesh: devices to spread the variables over; None: the default device.
      rules: logical-axis rules, with a mesh.

    Raises:
      CheckpointError: no checkpoint, damage, or another vocabulary.
    """
    location = locate(model_dir, step)
    manifest = read_manifest(location)
    check_vocabulary(manifest, vocabulary_fingerprint, str(location.folder))
    config = manifest.build_model_config()
    model = M6Rec(config)
    target = variable_targets(model, mesh, rules)
    variables = {
        name: restore_item(location, manifest, item, target[name], config)
        for name, item in (("params", PARAMS), ("prompts", PROMPTS))
        if target.get(name)
    }
    return RestoredModel(model, variables, location.step)


def load_model(
    model_dir: str | Path,
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
    rules: LogicalRules = (),
) -> Bundle:
    """Loads a model folder: checkpoint, vocabulary, template and settings.

    Args and errors as `restore_model`; besides:

    Raises:
      CheckpointError: there is no `inference` folder.
    """
    locate(model_dir, step)  # a missing checkpoint is the first thing to say
    folder = epath.Path(model_dir) / ASSETS_FOLDER
    for name in (VOCABULARY_FILE, SETTINGS_FILE):
        if not (folder / name).exists():
            raise CheckpointError(
                f"{folder / name} is missing: {model_dir} has a checkpoint, but not what inference "
                "needs beside it. `m6rec_jax.inference.bundle.save_assets` writes it"
            )
    settings = _read_settings(folder / SETTINGS_FILE)
    vocabulary = _read_vocabulary(folder / VOCABULARY_FILE)
    template = None
    if (folder / DATASET_FILE).exists():
        raw = json.loads((folder / DATASET_FILE).read_text())
        if raw.get("template"):
            template = DatasetTemplate.parse(raw["template"], str(folder / DATASET_FILE))
    restored = restore_model(
        model_dir,
        step=step,
        vocabulary_fingerprint=vocabulary.fingerprint,
        mesh=mesh,
        rules=rules,
    )
    return Bundle(
        restored.model,
        restored.variables,
        vocabulary,
        template,
        settings,
        restored.step,
        mesh,
        tuple(rules),
    )


def variable_targets(
    model: M6Rec, mesh: Mesh | None = None, rules: LogicalRules = ()
) -> dict[str, Any]:
    """Shapes, types and places of a model's variables, without computing any.

    Returns:
      `{'params': ..., 'prompts': ...}` of `jax.ShapeDtypeStruct` with shardings.
    """
    boxed = dict(jax.eval_shape(model.init, jax.random.key(0), initial_features()))
    if mesh is None:
        mesh, rules = make_mesh(1, 1, 1, devices=jax.local_devices()[:1]), ()
    return {
        name: jax.tree.map(
            lambda leaf, sharding: leaf.update(sharding=sharding),
            unboxed_shapes(tree),
            variable_shardings(tree, mesh, rules),
        )
        for name, tree in boxed.items()
    }


def _read_settings(path: epath.Path) -> InferenceSettings:
    try:
        values = json.loads(path.read_text())
        tasks = {}
        for name, task in values.pop("tasks").items():
            classes = tuple(task.pop("positive_classes"))
            tasks[name] = TaskSettings(**task, positive_classes=classes)
        return InferenceSettings(**values, tasks=tasks)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _read_vocabulary(path: epath.Path) -> Vocabulary:
    if Path(path).exists():
        return Vocabulary(path)
    # SentencePiece reads local files only.
    with tempfile.NamedTemporaryFile(suffix=".model", delete=False) as file:
        file.write(path.read_bytes())
    return Vocabulary(file.name)
