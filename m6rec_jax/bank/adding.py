"""`m6rec prompts add`: from a run or another bank into a bank, all that was asked for or none."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from m6rec_jax.bank.export import export_prompts
from m6rec_jax.bank.folder import (
    DATASET_FILE,
    MANIFEST_FILE,
    TENSORS_FOLDER,
    BankFolder,
    TaskPrompts,
    read_prompt_manifest,
    read_prompts,
)
from m6rec_jax.checkpoints.location import CHECKPOINTS_FOLDER, MANIFEST_ITEM
from m6rec_jax.errors import ConfigError, M6RecError
from m6rec_jax.tables.locked_folder import LOCK_FILE


def add_prompts(
    bank: str | Path,
    source: str | Path,
    *,
    tasks: Sequence[str] = (),
    name: str | None = None,
    step: int | None = None,
) -> list[Path]:
    """Adds tasks to a bank, which is made when missing.

    Args:
      bank: its folder.
      source: MODEL_DIR of a training run, or one task's folder of another bank.
      tasks: of the run, by their seqio names; empty: all.
      name: another name in the bank, for one task.
      step: checkpoint of the run; None: the newest.

    Returns:
      The tasks' folders in the bank.

    Raises:
      ConfigError: arguments that do not fit each other, a name that is taken, or a bucket's
        address.
      CheckpointError: truncated or damaged files; prompts of another backbone or vocabulary than
        the bank's. The bank is then as it was, and so it is after Ctrl-C.
      DataError: another process is changing the bank.
    """
    folder = BankFolder(bank)
    if (Path(source) / MANIFEST_FILE).exists():
        if tasks or step is not None:
            raise ConfigError(
                f"{source} is a task's folder of a bank, which has no other tasks or steps: leave "
                "out --task and --step"
            )
        found = [read_prompts(source)]
        # A copied folder is called what its owner called it.
        found = [_named(found[0], Path(source).resolve().name)]
    else:
        _refuse_bank(Path(source))
        found = export_prompts(source, tasks, step=step)
    if name is not None:
        if len(found) != 1:
            raise ConfigError(
                f"--name {name} is for one task, but {source} has {len(found)}: "
                f"{', '.join(p.manifest.task for p in found)}; choose one by --task"
            )
        found = [_named(found[0], name)]
    _add_all(folder, found)
    return [folder.path / prompts.manifest.task for prompts in found]


def _add_all(folder: BankFolder, found: Sequence[TaskPrompts]) -> None:
    """Adds tasks; whatever happens between two of them, Ctrl-C included, none stays alone."""
    was_there = folder.path.is_dir()
    begun: list[str] = []
    with folder.changing():
        before = folder.names()
        try:
            for prompts in found:
                # Noted first: an interrupt may come when the folder has just got its name.
                begun.append(prompts.manifest.task)
                folder.add(prompts)
        except BaseException as error:
            if isinstance(error, M6RecError):
                begun.pop()  # refused: what is called so is another's
            for name in begun:
                if name not in before and (folder.path / name).exists():
                    folder.remove(name)
            if not was_there and all(path.name == LOCK_FILE for path in folder.path.iterdir()):
                shutil.rmtree(folder.path)
            raise


def _refuse_bank(source: Path) -> None:
    """What lies in a bank is no run: say so, rather than that it has no checkpoints.

    Raises:
      CheckpointError: a task's folder that has lost its manifest.
      ConfigError: a whole bank.
    """
    if (source / CHECKPOINTS_FOLDER).exists() or (source / MANIFEST_ITEM).exists():
        return
    if (source / TENSORS_FOLDER).exists() or (source / DATASET_FILE).exists():
        read_prompt_manifest(source)
    names = sorted(path.parent.name for path in source.glob(f"*/{MANIFEST_FILE}"))
    if names:
        raise ConfigError(
            f"{source} is a bank: name the folder of one of its tasks, "
            + " or ".join(str(source / name) for name in names)
        )


def _named(prompts: TaskPrompts, name: str) -> TaskPrompts:
    return dataclasses.replace(prompts, manifest=dataclasses.replace(prompts.manifest, task=name))
