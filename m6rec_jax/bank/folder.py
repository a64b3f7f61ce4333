"""A bank on disk: a folder of tasks, each of which comes and goes as a whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from m6rec_jax.bank.manifest import PromptManifest, check_owner, parse_prompt_manifest
from m6rec_jax.checkpoints.fingerprint import fingerprint
from m6rec_jax.checkpoints.host_tensors import read_tensors, write_tensors
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.atomic import new_folder, scratch_folder
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.locks import LOCK_FILE, locked_folder

MANIFEST_FILE, TENSORS_FOLDER = "manifest.json", "prompts"
# No dots, which temporary folders have.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
logger = logging.getLogger(__name__)


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


def _read_manifest(folder: Path) -> PromptManifest:
    path = folder / MANIFEST_FILE
    try:
        return parse_prompt_manifest(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is missing or damaged: {error}") from error


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
        names = self.names()
        owners = [manifests[0]]
        for name in names:
            try:
                owners.append(self.manifest(name))
            except CheckpointError as error:
                logger.warning("not compared with '%s', which is damaged: %s", name, error)
        for manifest in manifests:
            if manifest.task in names:
                raise ConfigError(
                    f"{self.path} has a task '{manifest.task}' already: remove it first, or give "
                    "this one another name (--name)"
                )
            for owner in owners:
                check_owner(
                    manifest,
                    f"that of '{owner.task}'",
                    owner.backbone_fingerprint,
                    owner.vocabulary_fingerprint,
                    owner.model_config,
                )
            names.append(manifest.task)

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
