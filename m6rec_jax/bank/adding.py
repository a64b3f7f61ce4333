"""`m6rec prompts add`: from a run or another bank into a bank, all that was asked for or none."""

from __future__ import annotations

import dataclasses
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
from m6rec_jax.errors import ConfigError


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
      ConfigError: arguments that do not fit each other, a name that is taken, a run without
        tasks, or a bank that is none (`BankFolder`).
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
        # A copied or linked folder is called what its owner called it.
        folder_name = Path(source).absolute().name
        if folder_name in ("", ".."):
            folder_name = Path(source).resolve().name
        found = [_named(found[0], folder_name)]
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
    return folder.add_all(found)


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
