"""A bank on disk: a folder of tasks, each of which comes and goes as a whole.

A manifest says of each what its prompts are, and the one model that they fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from m6rec_jax.bank.capacity import SHARED
from m6rec_jax.checkpoints.fingerprint import fingerprint
from m6rec_jax.checkpoints.host_tensors import read_tensors, write_tensors
from m6rec_jax.checkpoints.manifest import TensorSpec, library_versions, read_model_config
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import CheckpointError, ConfigError, M6RecError
from m6rec_jax.io.atomic import new_folder, scratch_folder
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.locks import LOCK_FILE, locked_folder
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.tuning import METHODS

MANIFEST_FILE, TENSORS_FOLDER = "manifest.json", "prompts"
# No dots, which temporary folders have.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FORMAT = 5
# Settings of the model that change how it is computed, not what.
_HOW = {
    "prompts",
    "dropout_rate",
    "embedding_stddev",
    "exit_losses",
    "dtype",
    "matmul_dtype",
    "remat",
    "scan_unroll",
}
WHAT = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name not in _HOW)


@dataclasses.dataclass(frozen=True, slots=True)
class PromptManifest:
    """`manifest.json` of a task's folder.

    Attributes:
      task, method: name in the bank; how it was tuned (`method_of`).
      date: of the checkpoint that the prompts were taken from; UTC, ISO 8601.
      backbone_fingerprint, prompts_fingerprint: see `checkpoints.fingerprint`.
      backbone_size: parameters of the backbone.
      vocabulary_fingerprint: `text.Vocabulary.fingerprint`.
      model_config: of the model with this task alone.
      settings: what inference must know; its task_id is 0.
      metrics: by split and name, such as 'validation/auc'.
      source: where the prompts come from: `run`, `task` (of seqio) and `step`.
      tensors: name to spec; of the task alone, so without the axis of tasks.
      dataset_spec: what the data set's `dataset.json` holds, whose template renders requests; None
        for tasks of texts.
      versions: of m6rec_jax and libraries.
    """

    task: str
    method: str
    date: str
    backbone_fingerprint: str
    backbone_size: int
    vocabulary_fingerprint: str
    prompts_fingerprint: str
    model_config: ModelConfig
    settings: TaskSettings
    metrics: Mapping[str, float]
    source: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]
    dataset_spec: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=library_versions)

    @property
    def prompts(self) -> PromptConfig:
        """What the task has."""
        return self.model_config.prompts

    @property
    def size(self) -> int:
        """Parameters of the prompts."""
        return sum(math.prod(spec.shape) for spec in self.tensors.values())

    def requirements(self) -> dict[str, Any]:
        """See the function."""
        fingerprints = self.backbone_fingerprint, self.vocabulary_fingerprint
        return requirements(self.model_config, *fingerprints)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


def _read_manifest(folder: Path) -> PromptManifest:
    """Raises CheckpointError where it is missing, damaged, or of another version."""
    path = folder / MANIFEST_FILE
    try:
        values = json.loads(path.read_bytes())
        if (format_ := values.pop("format")) != FORMAT:
            raise CheckpointError(
                f"{path} is of format {format_}, this reads {FORMAT}: add it anew"
            )
        values["settings"] = msgspec.convert(values["settings"], TaskSettings)
        values["tensors"] = msgspec.convert(values["tensors"], dict[str, TensorSpec])
        version = str(values["versions"]["m6rec_jax"])
        values["model_config"] = read_model_config(values["model_config"], version)
        return PromptManifest(**values)
    except CheckpointError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError, M6RecError) as error:
        raise CheckpointError(f"{path} is damaged, or of another version: {error}") from error


def method_of(prompts: PromptConfig, trainable: str | None) -> str:
    """The name of a task's tuning method, as its file in `gin_configs/tuning/` is called.

    Names of methods joined by '_', such as 'option_adapter': soft prompts are 'option' where they
    are options, else 'prompt'. With none 'linear_probe'; 'full' where the backbone trained as well.
    """
    if trainable == "all":
        return "full"
    used = [method.label(prompts) for method in METHODS if method.used(prompts)]
    return "_".join(filter(None, used)) or "linear_probe"


def requirements(
    config: ModelConfig, backbone_fingerprint: str, vocabulary_fingerprint: str
) -> dict[str, Any]:
    """What all prompts of a bank must have in common, by name."""
    common: dict[str, Any] = {
        "vocabulary_fingerprint": vocabulary_fingerprint,
        "backbone_fingerprint": backbone_fingerprint,
    }
    for name in WHAT:
        # Of `decoder_late_start` None has a meaning, too.
        computed = "first_cross_layer" if name == "decoder_late_start" else name
        common[f"ModelConfig.{name}"] = getattr(config, computed)
    for name, method in SHARED.items():
        if method.used(config.prompts):
            value = getattr(config.prompts, name)
            common[f"PromptConfig.{name} (BankCapacity.{name})"] = value
    return common


def check_owner(manifest: PromptManifest, owner: str, common: Mapping[str, Any]) -> None:
    """Prompts mean something only with the backbone and vocabulary that they were trained on.

    Args:
      manifest: of the prompts.
      owner: what the other model is called in errors.
      common: its `requirements`, or some of them.

    Raises:
      CheckpointError: another vocabulary or backbone, or one that computes something else.
    """
    for what, mine in manifest.requirements().items():
        if mine != (its := common.get(what, mine)):
            raise CheckpointError(
                f"the prompts of '{manifest.task}' were trained with {what} {mine!r}, but "
                f"{owner} has {its!r}, with which they mean nothing: tune the task on it, or "
                "keep its prompts in a bank of their own"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class TaskPrompts:
    """One task's prompts in host memory: `tensors` are without the axis of tasks."""

    manifest: PromptManifest
    tensors: Mapping[str, np.ndarray]

    def named(self, name: str) -> TaskPrompts:
        """The same by another name."""
        manifest = dataclasses.replace(self.manifest, task=name)
        return dataclasses.replace(self, manifest=manifest)


def read_prompts(folder: str | Path) -> TaskPrompts:
    """One task's folder, proved intact.

    Raises:
      CheckpointError: it is missing, truncated or damaged.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    tensors = read_tensors(folder / TENSORS_FOLDER, manifest.tensors)
    if fingerprint(tensors) != manifest.prompts_fingerprint:
        raise CheckpointError(
            f"{folder / TENSORS_FOLDER} is damaged: its values have changed since they were saved"
        )
    return TaskPrompts(manifest, tensors)


class BankFolder:
    """A bank on a local disk.

    Adding and removing are atomic: a task is there with all its files or not at all, and no other
    task is touched. One process changes it at a time; others read meanwhile.

    Args:
      path: made when the first task is added.

    Raises:
      ConfigError: a bucket's address.
    """

    def __init__(self, path: str | Path) -> None:
        if in_bucket(path):
            raise ConfigError(f"a bank lies on a local disk: copy {path} to one")
        self.path = Path(path)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Keeps other processes from changing the bank during the block."""
        try:
            with locked_folder(self.path, f"changing the bank {self.path}"):
                yield
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be changed: {error}") from error

    def names(self) -> list[str]:
        """Its tasks, also those that turn out to be damaged.

        Raises:
          CheckpointError: there is no such folder.
        """
        if not self.path.is_dir():
            raise CheckpointError(
                f"no bank at {self.path}: no such folder (`m6rec prompts add` makes one)"
            )
        names = (path.parent.name for path in self.path.glob(f"*/{MANIFEST_FILE}"))
        return sorted(name for name in names if _NAME.fullmatch(name))

    def manifest(self, name: str) -> PromptManifest:
        """What a task says of itself; its tensors are not read.

        Raises:
          CheckpointError: no such task, or a damaged manifest.
        """
        # A copied folder may have a new name.
        return dataclasses.replace(_read_manifest(self._folder(name)), task=name)

    def manifests(self) -> dict[str, PromptManifest | CheckpointError]:
        """Of every task by its name; of a damaged one the error. Raises as `names`."""
        manifests: dict[str, PromptManifest | CheckpointError] = {}
        for name in self.names():
            try:
                manifests[name] = self.manifest(name)
            except CheckpointError as error:
                manifests[name] = error
        return manifests

    def read(self, name: str) -> TaskPrompts:
        """A task's prompts, proved intact; errors as `read_prompts`."""
        return read_prompts(self._folder(name)).named(name)

    def add(self, *tasks: TaskPrompts) -> list[Path]:
        """Writes tasks under the names in their manifests, and returns their folders.

        The files of all are written before the first of them gets its name.

        Raises:
          ConfigError: a name that no folder can have, or that is taken.
          CheckpointError: the bank's other tasks belong to another backbone or vocabulary; or
            nothing can be written.
          DataError: another process is changing the bank.
        """
        for prompts in tasks:
            name = prompts.manifest.task
            if not _NAME.fullmatch(name) or name == LOCK_FILE:
                raise ConfigError(
                    f"{name!r} is no name for a task in a bank: letters, digits, '_' and '-' "
                    "only, a letter or digit first (--name gives another one)"
                )
        folders: list[Path] = []
        with self._changing():
            self._check_new([prompts.manifest for prompts in tasks])
            try:
                with contextlib.ExitStack() as unfinished:
                    for prompts in tasks:
                        folder = self.path / prompts.manifest.task
                        scratch = unfinished.enter_context(new_folder(folder))
                        folders.append(folder)
                        write_tensors(scratch / TENSORS_FOLDER, prompts.tensors)
                        text = json.dumps(prompts.manifest.to_json(), indent=2)
                        (scratch / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
            except BaseException:  # it may come when some have got their names
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
        return folders

    def _check_new(self, manifests: Sequence[PromptManifest]) -> None:
        there = self.manifests()
        for manifest in manifests:
            if manifest.task in there:
                raise ConfigError(
                    f"{self.path} has a task '{manifest.task}' already: remove it first, or give "
                    "this one another name (--name)"
                )
            for name, other in there.items():
                if not isinstance(other, CheckpointError):
                    check_owner(manifest, f"that of '{name}'", other.requirements())
            there[manifest.task] = manifest

    def remove(self, name: str) -> None:
        """Deletes a task, damaged or not.

        Raises:
          CheckpointError: no such task, files in its folder that are none of a task's (nothing is
            deleted then), or it cannot be deleted.
          DataError: another process is changing the bank.
        """
        with self._changing(), scratch_folder(self.path / f"{name}.removed") as removed:
            folder = self._folder(name)
            if others := {path.name for path in folder.iterdir()} - {MANIFEST_FILE, TENSORS_FOLDER}:
                raise CheckpointError(f"{folder} has more than a task's files: {min(others)}")
            folder.rename(removed / name)

    def _folder(self, name: str) -> Path:
        names = self.names()
        if name not in names:
            raise CheckpointError(
                f"{self.path} has no task '{name}'; its tasks: {', '.join(names) or 'none'}"
            )
        return self.path / name
