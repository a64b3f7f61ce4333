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
from typing import Any

import numpy as np

from m6rec_jax.bank.manifest import (
    PromptManifest,
    check_owner,
    dataset_fingerprint,
    owner_of,
    parse_prompt_manifest,
)
from m6rec_jax.checkpoints.fingerprint import fingerprint
from m6rec_jax.checkpoints.host_tensors import read_tensors, write_tensors
from m6rec_jax.checkpoints.location import CHECKPOINTS_FOLDER
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.atomic import new_folder
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.locks import LOCK_FILE, locked_folder

MANIFEST_FILE, TENSORS_FOLDER, DATASET_FILE = "manifest.json", "prompts", "dataset.json"
_FILES = {MANIFEST_FILE, TENSORS_FOLDER, DATASET_FILE}
_OF_TENSORS = f"{TENSORS_FOLDER}/_METADATA"  # Orbax's
# No dots: 'ctr.1a2b3c4d.unfinished' and 'ctr.removed' are on their way in and out.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ON_THEIR_WAY = re.compile(rf"{_NAME.pattern}\.(\w+\.unfinished|removed)")
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class TaskPrompts:
    """One task's prompts in host memory.

    Attributes:
      manifest: see `PromptManifest`.
      tensors: `{name: array}` without the axis of tasks.
      dataset_spec: what the data set's `dataset.json` holds, whose template renders requests; None
        for tasks of texts.
    """

    manifest: PromptManifest
    tensors: Mapping[str, np.ndarray]
    dataset_spec: Mapping[str, Any] | None = None


def check_task_name(name: str) -> None:
    """Names are folders' names.

    Raises:
      ConfigError: it has other characters than letters, digits, '_' and '-', or is that of the
        bank's lock.
    """
    if not _NAME.fullmatch(name) or name == LOCK_FILE:
        raise ConfigError(
            f"{name!r} is no name for a task in a bank: letters, digits, '_' and '-' only, a "
            f"letter or digit first, and not '{LOCK_FILE}' (--name gives another one, of a run's "
            "several tasks to the one that --task names)"
        )


def read_prompts(folder: str | Path) -> TaskPrompts:
    """One task's folder, proved intact.

    Raises:
      CheckpointError: it is missing, truncated or damaged.
    """
    folder = Path(folder)
    manifest = read_prompt_manifest(folder)
    tensors = read_tensors(folder / TENSORS_FOLDER, manifest.tensors)
    if fingerprint(tensors) != manifest.prompts_fingerprint:
        raise CheckpointError(
            f"{folder / TENSORS_FOLDER} is damaged: its values have changed since they were saved"
        )
    return TaskPrompts(manifest, tensors, _read_dataset(folder / DATASET_FILE, manifest))


def read_prompt_manifest(folder: str | Path) -> PromptManifest:
    """The manifest in a task's folder.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: {folder} holds no prompts, or not all of them"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return parse_prompt_manifest(text, str(path))


class BankFolder:
    """A bank on a local disk.

    Adding and removing are atomic: a task is there with all its files or not at all, whatever
    happens in between, and no other task is touched. One process changes it at a time; others read
    meanwhile.

    Args:
      path: made when the first task is added.

    Raises:
      ConfigError: a bucket's address, MODEL_DIR of a training run, or one task's folder.
    """

    def __init__(self, path: str | Path) -> None:
        if in_bucket(path):
            raise ConfigError(
                f"a bank lies on a local disk, where folders can be renamed at once; copy {path} "
                "to one"
            )
        self.path = Path(path)
        checkpoints = self.path / CHECKPOINTS_FOLDER
        if checkpoints.is_dir() and not (checkpoints / MANIFEST_FILE).exists():
            raise ConfigError(
                f"{path} is a training run, since it has '{CHECKPOINTS_FOLDER}', and no bank: "
                "`m6rec prompts add BANK --from RUN` takes prompts out of a run"
            )
        if (self.path / MANIFEST_FILE).is_file() or (self.path / _OF_TENSORS).is_file():
            raise ConfigError(
                f"{path} is the folder of one task and no bank: name the folder that it lies in, "
                f"{self.path.absolute().parent}"
            )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Keeps other processes from changing the bank during the block."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked_folder(self.path, f"changing the bank {self.path}"))
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be changed: {error}") from error
            # Nobody else is changing it: these were left by commands that were killed.
            for left in self.path.iterdir():
                if _ON_THEIR_WAY.fullmatch(left.name) and left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
            yield

    def names(self) -> list[str]:
        """Its tasks, also those that turn out to be damaged.

        Raises:
          CheckpointError: there is no such folder.
        """
        if not self.path.is_dir():
            raise CheckpointError(
                f"no bank at {self.path}: no such folder (`m6rec prompts add` makes one)"
            )
        return sorted(p.name for p in self.path.iterdir() if p.is_dir() and _NAME.fullmatch(p.name))

    def manifest(self, name: str) -> PromptManifest:
        """What a task says of itself, all of whose files are there; tensors are not read.

        Raises:
          CheckpointError: no such task, or a damaged one.
        """
        folder = self._folder(name)
        manifest = read_prompt_manifest(folder)
        if not (folder / TENSORS_FOLDER).is_dir():
            raise CheckpointError(f"{folder / TENSORS_FOLDER} is missing: not all files are there")
        _read_dataset(folder / DATASET_FILE, manifest)
        return dataclasses.replace(manifest, task=name)  # a copied folder may have a new name

    def read(self, name: str) -> TaskPrompts:
        """A task's prompts, proved intact; errors as `manifest`."""
        prompts = read_prompts(self._folder(name))
        return dataclasses.replace(
            prompts, manifest=dataclasses.replace(prompts.manifest, task=name)
        )

    def add(self, prompts: TaskPrompts) -> Path:
        """Writes a task, under the name in its manifest, and returns its folder; see `add_all`."""
        return self.add_all([prompts])[0]

    def add_all(self, found: Sequence[TaskPrompts]) -> list[Path]:
        """Writes tasks under the names in their manifests: all of them or, after any error, none.

        The files of all are written before the first of them gets its name.

        Returns:
          Their folders.

        Raises:
          ConfigError: a name that no folder can have, or that is taken.
          CheckpointError: the bank's other tasks belong to another backbone or vocabulary; or
            nothing can be written. The bank is then as it was, and so it is after Ctrl-C.
          DataError: another process is changing the bank.
        """
        for prompts in found:
            check_task_name(prompts.manifest.task)
        was_there = self.path.is_dir()
        folders: list[Path] = []
        with self._changing():
            try:
                self._check_new([prompts.manifest for prompts in found])
                with contextlib.ExitStack() as unfinished:
                    for prompts in found:
                        folder = self.path / prompts.manifest.task
                        _write(unfinished.enter_context(new_folder(folder)), prompts)
                        folders.append(folder)
            except BaseException:
                # An error, or an interrupt, may come when some have got their names.
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)
                if not was_there and all(path.name == LOCK_FILE for path in self.path.iterdir()):
                    shutil.rmtree(self.path)
                raise
        return folders

    def _check_new(self, manifests: Sequence[PromptManifest]) -> None:
        names = self.names()
        for i, manifest in enumerate(manifests):
            name = manifest.task
            if name in names or name in [other.task for other in manifests[:i]]:
                raise ConfigError(
                    f"{self.path} has a task '{name}' already; remove it first (`m6rec prompts "
                    f"remove {self.path} {name}`), or add this one by another name (--name)"
                )
            self._check_belongs(manifest, names)
            check_owner(manifest, owner_of(manifests[0]))

    def remove(self, name: str) -> None:
        """Deletes a task, damaged or not; of a linked folder the link alone.

        Raises:
          CheckpointError: no such task, files in its folder that are none of a task's (nothing is
            deleted then), or it cannot be deleted.
          DataError: another process is changing the bank.
        """
        self._folder(name)  # a folder that is no bank is left as it is
        with self._changing():
            folder = self._folder(name)
            if others := sorted({path.name for path in folder.iterdir()} - _FILES):
                if (folder / MANIFEST_FILE).is_file():
                    problem = "has more than a task's files: delete them first"
                else:
                    problem = "is no task's folder"
                raise CheckpointError(
                    f"{folder} {problem}, since it has '{others[0]}'; nothing was removed"
                )
            removed = folder.with_name(f"{name}.removed")
            try:
                if folder.is_symlink():
                    folder.unlink()
                    return
                folder.rename(removed)
                shutil.rmtree(removed)
            except OSError as error:
                raise CheckpointError(f"{folder} could not be removed: {error}") from error

    def _folder(self, name: str) -> Path:
        names = self.names()
        if name not in names:
            raise CheckpointError(
                f"{self.path} has no task '{name}'; its tasks: {', '.join(names) or 'none'}"
            )
        return self.path / name

    def _check_belongs(self, manifest: PromptManifest, names: list[str]) -> None:
        for other in names:
            try:
                owner = owner_of(self.manifest(other))
            except CheckpointError as error:
                logger.warning("not compared with '%s', which is damaged: %s", other, error)
                continue
            check_owner(
                manifest, dataclasses.replace(owner, name=f"the bank {self.path} ('{other}')")
            )


def _write(folder: Path, prompts: TaskPrompts) -> None:
    write_tensors(folder / TENSORS_FOLDER, prompts.tensors)
    _write_json(folder / MANIFEST_FILE, prompts.manifest.to_json())
    if prompts.dataset_spec is not None:
        _write_json(folder / DATASET_FILE, prompts.dataset_spec)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _read_dataset(path: Path, manifest: PromptManifest) -> Mapping[str, Any] | None:
    """What `dataset.json` holds, proved to be what was written; None for tasks without one."""
    if manifest.dataset_fingerprint is None:
        return None
    if not path.exists():
        raise CheckpointError(f"{path} is missing: {path.parent} does not hold all its files")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if manifest.dataset_fingerprint != dataset_fingerprint(values):
        raise CheckpointError(
            f"{path} is damaged: it is not what was written, and its template decides what the "
            "model reads. Export the task anew: remove it from the bank and add it"
        )
    return values
