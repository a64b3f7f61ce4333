"""A bank on disk: a folder with a safetensors file for each task.

The file's metadata hold a manifest: what the prompts are, and the one model that they fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from m6rec_jax.bank.capacity import SHARED
from m6rec_jax.checkpoints.fingerprint import fingerprint
from m6rec_jax.checkpoints.manifest import library_versions, read_model_config
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import CheckpointError, ConfigError, M6RecError
from m6rec_jax.io.atomic import put_in_place
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.model.config import ModelConfig, PromptConfig
from m6rec_jax.model.tuning import METHODS

SUFFIX, _MANIFEST = ".safetensors", "manifest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
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
    """What a task's file says of it.

    Attributes:
      task, method: name in the bank; how it was tuned (`method_of`).
      date: of the checkpoint that the prompts were taken from; UTC, ISO 8601.
      backbone_fingerprint, prompts_fingerprint: see `checkpoints.fingerprint`.
      size, backbone_size: parameters of the prompts, and of the backbone.
      vocabulary_fingerprint: `text.Vocabulary.fingerprint`.
      model_config: of the model with this task alone.
      settings: what inference must know; its task_id is 0.
      metrics: by split and name, such as 'validation/auc'.
      source: where the prompts come from: `run`, `task` (of seqio) and `step`.
      dataset_spec: what the data set's `dataset.json` holds, whose template renders requests; None
        for tasks of texts.
      versions: of m6rec_jax and libraries.
    """

    task: str
    method: str
    date: str
    backbone_fingerprint: str
    size: int
    backbone_size: int
    vocabulary_fingerprint: str
    prompts_fingerprint: str
    model_config: ModelConfig
    settings: TaskSettings
    metrics: Mapping[str, float]
    source: Mapping[str, Any]
    dataset_spec: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=library_versions)

    @property
    def prompts(self) -> PromptConfig:
        """What the task has."""
        return self.model_config.prompts

    def requirements(self) -> dict[str, Any]:
        """See the function."""
        fingerprints = self.backbone_fingerprint, self.vocabulary_fingerprint
        return requirements(self.model_config, *fingerprints)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[PromptManifest, Any]]:
    """A task's manifest and tensors; raises CheckpointError where they cannot be read."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            values = json.loads(tensors.metadata()[_MANIFEST])
            values["settings"] = msgspec.convert(values["settings"], TaskSettings)
            version = str(values["versions"]["m6rec_jax"])
            values["model_config"] = read_model_config(values["model_config"], version)
            # A copied file may have a new name.
            yield PromptManifest(**(values | {"task": path.stem})), tensors
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, M6RecError) as error:
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


def read_prompts(path: str | Path) -> TaskPrompts:
    """One task's file, proved intact; its name is the file's.

    Raises:
      CheckpointError: it is missing, truncated or damaged.
    """
    with _opened(Path(path)) as (manifest, file):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if fingerprint(tensors) != manifest.prompts_fingerprint:
        raise CheckpointError(f"{path} is damaged: its values have changed since they were saved")
    return TaskPrompts(manifest, tensors)


class BankFolder:
    """A bank on a local disk.

    Files appear whole, and no other task's file is touched. One process changes a bank at a time;
    others read meanwhile.

    Args:
      path: made when the first task is added.

    Raises:
      ConfigError: a bucket's address.
    """

    def __init__(self, path: str | Path) -> None:
        if in_bucket(path):
            raise ConfigError(f"a bank lies on a local disk: copy {path} to one")
        self.path = Path(path)

    def names(self) -> list[str]:
        """Its tasks, also those that turn out to be damaged.

        Raises:
          CheckpointError: there is no such folder.
        """
        if not self.path.is_dir():
            raise CheckpointError(
                f"no bank at {self.path}: no such folder (`m6rec prompts add` makes one)"
            )
        return sorted(path.stem for path in self.path.glob(f"*{SUFFIX}"))

    def manifests(self) -> dict[str, PromptManifest | CheckpointError]:
        """What every task says of itself; of a damaged one the error. Raises as `names`."""
        manifests: dict[str, PromptManifest | CheckpointError] = {}
        for name in self.names():
            try:
                with _opened(self._file(name)) as (manifest, _):
                    manifests[name] = manifest
            except CheckpointError as error:
                manifests[name] = error
        return manifests

    def read(self, name: str) -> TaskPrompts:
        """A task's prompts, proved intact; raises CheckpointError, also for no such task."""
        return read_prompts(self._file(name))

    def add(self, *tasks: TaskPrompts) -> list[Path]:
        """Writes tasks under the names in their manifests, and returns their files.

        The files of all are written before the first of them gets its name.

        Raises:
          ConfigError: a name that no file can have, or that is taken.
          CheckpointError: the bank's other tasks belong to another backbone or vocabulary.
          DataError: another process is changing the bank.
        """
        with self._locked(), tempfile.TemporaryDirectory(dir=self.path) as unfinished:
            there, common = self.manifests(), dict[str, Any]()
            for manifest in there.values():
                common |= {} if isinstance(manifest, CheckpointError) else manifest.requirements()
            for prompts in tasks:
                name = prompts.manifest.task
                if not _NAME.fullmatch(name):
                    raise ConfigError(
                        f"{name!r} is no name for a task in a bank: letters, digits, '_' and '-' "
                        "only, a letter or digit first (--name gives another one)"
                    )
                if name in there:
                    raise ConfigError(
                        f"{self.path} has a task '{name}' already: remove it first, or give this "
                        "one another name (--name)"
                    )
                check_owner(prompts.manifest, f"the bank {self.path}", common)
                there[name], common = prompts.manifest, common | prompts.manifest.requirements()
                text = json.dumps(dataclasses.asdict(prompts.manifest))
                content = save(dict(prompts.tensors), {_MANIFEST: text})
                Path(unfinished, name + SUFFIX).write_bytes(content)
            put_in_place({Path(unfinished): self.path})
        return [self.path / (prompts.manifest.task + SUFFIX) for prompts in tasks]

    def remove(self, name: str) -> None:
        """Deletes a task, damaged or not.

        Raises:
          CheckpointError: no such task.
          DataError: another process is changing the bank.
        """
        with self._locked():
            self._file(name).unlink()

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked_folder(self.path, f"changing the bank {self.path}")

    def _file(self, name: str) -> Path:
        names = self.names()
        if name not in names:
            raise CheckpointError(
                f"{self.path} has no task '{name}'; its tasks: {', '.join(names) or 'none'}"
            )
        return self.path / (name + SUFFIX)
