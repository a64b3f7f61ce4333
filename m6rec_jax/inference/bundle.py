"""A model folder: everything that is needed to use a trained model, loaded in one call.

    MODEL_DIR/
      checkpoints/                 written by training, see `m6rec_jax.checkpoints`
      inference/
        vocabulary.model           the SentencePiece file the model was trained with
        settings.json              lengths, tasks: `InferenceSettings`
        datasets/<prepared>.json   columns and template of each data set of users, items and events
                                   that a task was trained on

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

from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.manifest import check_vocabulary, warn_of_a_better_step
from m6rec_jax.checkpoints.restore import PARAMS, PROMPTS, restore_item
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.inference.generation import Generator
from m6rec_jax.inference.likelihood_scoring import LikelihoodScorer
from m6rec_jax.inference.retrieval import Retriever
from m6rec_jax.inference.scoring import Scorer
from m6rec_jax.inference.task_settings import TaskSettings, dialogue_part, task_settings
from m6rec_jax.io.hashing import sha256
from m6rec_jax.model import M6Rec
from m6rec_jax.model.m6rec import initial_features
from m6rec_jax.sharding import LogicalRules, make_mesh, unboxed_shapes, variable_shardings
from m6rec_jax.text.templates import DatasetTemplate
from m6rec_jax.text.vocabulary import Vocabulary

ASSETS_FOLDER = "inference"
VOCABULARY_FILE, SETTINGS_FILE, DATASETS_FOLDER = "vocabulary.model", "settings.json", "datasets"
# Older versions had one data set for all tasks, whichever came first.
_OLD_DATASET_FILE = "dataset.json"

DatasetSpecs = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class InferenceSettings:
    """What inference must know beside the weights.

    Attributes:
      source_length, target_length: S and T of training.
      tasks: seqio task name to its settings.
      candidate_length: most tokens of one candidate, of any task; None: no other limit than T and
        the tasks' own.
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
      settings: see `InferenceSettings`.
      step: of the checkpoint.
      mesh, rules: where the variables lie.
      dataset_specs: by the `prepared` of tasks, what the data set's `dataset.json` holds.
    """

    model: M6Rec
    variables: Mapping[str, Any]
    vocabulary: Vocabulary
    settings: InferenceSettings
    step: int
    mesh: Mesh | None = None
    rules: LogicalRules = ()
    dataset_specs: DatasetSpecs = dataclasses.field(default_factory=dict)

    def dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        """See `dataset_spec_of`; there is no need to name the only task."""
        return dataset_spec_of(self.settings, self.dataset_specs, task)

    def saved_dataset_spec(self, task: str = "") -> Mapping[str, Any] | None:
        """As `dataset_spec`, but of a folder of an older version its only one, whoever's it is."""
        return self.dataset_specs.get(task_settings(self.settings.tasks, task).prepared)

    def template(self, task: str = "") -> DatasetTemplate | None:
        """What renders users, behaviours and candidates of a task; errors as `dataset_spec_of`."""
        spec = self.dataset_spec(task)
        return None if spec is None else _template(spec)

    def scorer(self, task: str = "", **changes: Any) -> Scorer:
        """A `Scorer` whose requests have this task, or any other of the model's that they name.

        Args:
          task: name; there is no need to name the only one.
          changes: other arguments of `Scorer`.

        Raises:
          ConfigError: no such task.
        """
        arguments: dict[str, Any] = {
            **self._shared(task),
            "candidate_length": self.settings.candidate_length,
        }
        return Scorer(self.model, self.variables, self.vocabulary, **(arguments | changes))

    def retriever(self, task: str = "", **changes: Any) -> Retriever:
        """A `Retriever`; arguments and errors as `scorer`."""
        arguments: dict[str, Any] = {
            **self._shared(task),
            "item_length": self.settings.candidate_length,
        }
        return Retriever(self.model, self.variables, self.vocabulary, **(arguments | changes))

    def generator(self, task: str = "", **changes: Any) -> Generator:
        """A `Generator`; arguments and errors as `scorer`."""
        arguments = self._shared(task)
        return Generator(self.model, self.variables, self.vocabulary, **(arguments | changes))

    def likelihood_scorer(self, task: str = "", **changes: Any) -> LikelihoodScorer:
        """A `LikelihoodScorer`, which needs no task: with none, row 0 of the prompt bank is used.

        Args:
          task: whose prompts are used.
          **changes: arguments of `LikelihoodScorer`, such as its sentence.

        Raises:
          ConfigError: no such task.
        """
        tasks = self.settings.tasks if task else {"": TaskSettings()}
        arguments = {
            **self._shared(task, tasks),
            "candidate_length": self.settings.candidate_length,
        }
        return LikelihoodScorer(
            self.model, self.variables, self.vocabulary, **(arguments | changes)
        )

    def fingerprint(self, task: str = "") -> str:
        """What a task's results depend on beside the request: SHA-256 (hex).

        Two models that give other vectors or scores have other fingerprints, whatever their folders
        are called; of one model it is the same on any mesh. Arguments and errors as `scorer`.
        """
        settings = task_settings(self.settings.tasks, task)
        spec = self.dataset_specs.get(settings.prepared)
        template = None if spec is None else _template(spec)
        own = dataclasses.asdict(settings)
        del own["prepared"]  # where the data lie changes no result
        described = {
            "config": dataclasses.asdict(self.model.config),
            "vocabulary": self.vocabulary.fingerprint,
            "lengths": dataclasses.asdict(self.settings) | dict.fromkeys(("tasks", "prepared")),
            "task": own,
            "template": None if template is None else template.to_spec(),
            "checksums": checksums(flatten(dict(self.variables))),
        }
        return digest(described)

    def _shared(self, task: str, tasks: Mapping[str, TaskSettings] | None = None) -> dict[str, Any]:
        tasks = self.settings.tasks if tasks is None else tasks
        task_settings(tasks, task)  # there is such a task
        return {
            "tasks": tasks,
            "task": task,
            "source_length": self.settings.source_length,
            "target_length": self.settings.target_length,
            "mesh": self.mesh,
            "rules": self.rules,
        }


def digest(described: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what results depend on."""
    return sha256(json.dumps(described, sort_keys=True, default=str))


def save_assets(
    model_dir: str | Path,
    vocabulary: Vocabulary,
    settings: InferenceSettings,
    dataset_specs: DatasetSpecs | None = None,
) -> None:
    """Writes `MODEL_DIR/inference`.

    Args:
      model_dir: may be a bucket address.
      vocabulary: its SentencePiece file is copied.
      settings: see `InferenceSettings`.
      dataset_specs: by the `prepared` of tasks, what the data set's `dataset.json` holds; its
        template renders requests.
    """
    folder = epath.Path(model_dir) / ASSETS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCABULARY_FILE).write_bytes(Path(vocabulary.model_file).read_bytes())
    for name, spec in (dataset_specs or {}).items():
        (folder / DATASETS_FOLDER).mkdir(exist_ok=True)
        path = folder / DATASETS_FOLDER / f"{name}.json"
        path.write_text(json.dumps(dict(spec), indent=2) + "\n")
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
      step: which checkpoint; None: the newest (warns where the run says that another is better).
      vocabulary_fingerprint: of the vocabulary in use, compared with the checkpoint's.
      mesh: devices to spread the variables over; None: the default device.
      rules: logical-axis rules, with a mesh.

    Raises:
      CheckpointError: no checkpoint, damage, or another vocabulary.
    """
    location = locate(model_dir, step)
    manifest = read_manifest(location)
    check_vocabulary(manifest, vocabulary_fingerprint, str(location.folder))
    if step is None:
        warn_of_a_better_step(location.step, manifest)
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
    """Loads a model folder: checkpoint, vocabulary, templates and settings.

    Args and errors as `restore_model`; besides:

    Raises:
      CheckpointError: there is no `inference` folder.
    """
    locate(model_dir, step)  # a missing checkpoint is the first thing to say
    vocabulary, settings = read_vocabulary(model_dir), read_settings(model_dir)
    dataset_specs = read_dataset_specs(model_dir)
    for spec in dataset_specs.values():
        _template(spec)  # raises where it is none
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
        settings,
        restored.step,
        mesh,
        tuple(rules),
        dataset_specs,
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


def read_settings(model_dir: str | Path) -> InferenceSettings:
    """What `MODEL_DIR/inference/settings.json` says.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    path = _asset(model_dir, SETTINGS_FILE)
    try:
        values = json.loads(path.read_text())
        tasks = {}
        for name, task in values.pop("tasks").items():
            classes = tuple(task.pop("positive_classes"))
            tasks[name] = TaskSettings(**task, positive_classes=classes)
        # An older version's, of the first task: which others it is of is known of dialogues only.
        prepared = values.pop("prepared", "")
        if prepared and (len(tasks) == 1 or all(map(dialogue_part, tasks.values()))):
            tasks = {n: dataclasses.replace(own, prepared=prepared) for n, own in tasks.items()}
        return InferenceSettings(**values, tasks=tasks)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def read_dataset_specs(model_dir: str | Path) -> dict[str, dict[str, Any]]:
    """What `MODEL_DIR/inference/datasets` holds, by the `prepared` of tasks.

    In a folder of an older version the only data set is that of the only task, or nobody's: its key
    is then empty.

    Raises:
      CheckpointError: a file is damaged.
    """
    folder = epath.Path(model_dir) / ASSETS_FOLDER
    datasets, old = folder / DATASETS_FOLDER, folder / _OLD_DATASET_FILE
    if datasets.exists():
        files = {path.stem: path for path in sorted(datasets.glob("*.json"))}
    elif old.exists():
        own = {settings.prepared for settings in read_settings(model_dir).tasks.values()}
        files = {own.pop() if len(own) == 1 else "": old}
    else:
        files = {}
    found = {}
    for name, path in files.items():
        try:
            found[name] = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
    return found


def dataset_spec_of(
    settings: InferenceSettings, dataset_specs: DatasetSpecs, task: str = ""
) -> Mapping[str, Any] | None:
    """What the `dataset.json` of a task's data set holds; None for tasks of texts.

    Args:
      settings, dataset_specs: of a model folder.
      task: name; there is no need to name the only one.

    Raises:
      ConfigError: no such task, or nobody knows which of the tasks the data set is of.
    """
    prepared = task_settings(settings.tasks, task).prepared
    if not prepared and len(settings.tasks) > 1 and "" in dataset_specs:
        raise ConfigError(
            f"the model folder was written by an older version, which kept one data set for all of "
            f"its tasks ({', '.join(sorted(settings.tasks))}), so nobody knows whether it is that "
            f"of '{task}'. Remove MODEL_DIR/{ASSETS_FOLDER} and start the run's training command "
            "again: it writes the folder anew, and trains nothing more"
        )
    return dataset_specs.get(prepared)


def _template(spec: Mapping[str, Any]) -> DatasetTemplate | None:
    if not spec.get("template"):
        return None
    return DatasetTemplate.parse(spec["template"], f"the model's data set {spec.get('name')!r}")


def read_vocabulary(model_dir: str | Path) -> Vocabulary:
    """The vocabulary in `MODEL_DIR/inference`.

    Raises:
      CheckpointError: it is missing.
    """
    path = _asset(model_dir, VOCABULARY_FILE)
    if Path(path).exists():
        return Vocabulary(path)
    # SentencePiece reads local files only.
    with tempfile.NamedTemporaryFile(suffix=".model", delete=False) as file:
        file.write(path.read_bytes())
    return Vocabulary(file.name)


def _asset(model_dir: str | Path, name: str) -> epath.Path:
    path = epath.Path(model_dir) / ASSETS_FOLDER / name
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: {model_dir} has a checkpoint, but not what inference needs beside "
            "it. `m6rec_jax.inference.bundle.save_assets` writes it"
        )
    return path
