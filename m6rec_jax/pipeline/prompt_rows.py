"""Which row of the prompt bank each seqio task uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import gin
import seqio

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean


@gin.configurable
def prompt_task_ids(ids: Mapping[str, int] | None = None) -> Mapping[str, int]:
    """The rows that gin gives to tasks.

        prompt_task_ids.ids = {"movielens_100k_ctr": 0, "movielens_100k_retrieval": 1}

    Not needed with one set of prompts for all tasks (`PromptConfig.num_tasks` 1). Tasks with the
    same number share its row.
    """
    return ids or {}


def prompt_row(task: str, num_tasks: int | None = None) -> int:
    """The row of the prompt bank that a seqio task uses, of `num_tasks` (None: not checked).

    Raises:
      ConfigError: `prompt_task_ids.ids` has no row for the task, though it has some or the bank
        several; or a row that the bank has not.
    """
    ids = prompt_task_ids()
    size = "" if num_tasks is None else f", and PromptConfig.num_tasks = {num_tasks}"
    if task not in ids:
        if not ids and num_tasks in (None, 1):
            return 0
        raise ConfigError(
            f"prompt_task_ids.ids has no row of the prompt bank for '{task}'. It names "
            f"{', '.join(sorted(ids)) or 'no task'}{size}: add the task (it may have the number of "
            "another one, whose prompts it then shares)"
        )
    row = ids[task]
    if type(row) is not int or not 0 <= row < (row + 1 if num_tasks is None else num_tasks):
        raise ConfigError(f"prompt_task_ids.ids gives '{task}' {row!r}, no row: 0, 1, ...{size}")
    return row


def check_prompt_rows(tasks: Sequence[str], num_tasks: int) -> None:
    """Checks `prompt_task_ids` for the tasks of a run and the `num_tasks` rows of its bank.

    Raises:
      ConfigError: as `prompt_row`, or a name that no task has.
    """
    for name in sorted(set(prompt_task_ids()) - {*tasks, *seqio.TaskRegistry.names()}):
        raise ConfigError(
            f"prompt_task_ids.ids names '{name}', but no seqio task is called so"
            f"{did_you_mean(name, tasks)}. Tasks of this run: {', '.join(tasks)}"
        )
    for task in tasks:
        prompt_row(task, num_tasks)
