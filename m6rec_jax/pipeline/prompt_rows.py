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
    """The row of the prompt bank that a seqio task uses.

    Args:
      task: its name.
      num_tasks: rows of the model's bank; None: not checked.

    Raises:
      ConfigError: `prompt_task_ids.ids` has no row for the task, though it has some or the bank
        several; or a row that the bank has not.
    """
    ids = prompt_task_ids()
    if task not in ids:
        if not ids and num_tasks in (None, 1):
            return 0
        raise ConfigError(
            f"prompt_task_ids.ids has no row of the prompt bank for '{task}'"
            f". It names {', '.join(sorted(ids)) or 'no task'}"
            + ("" if num_tasks is None else f", and PromptConfig.num_tasks = {num_tasks}")
            + ": add the task (it may have the number of another one, whose prompts it then shares)"
        )
    row = ids[task]
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise ConfigError(f"prompt_task_ids.ids gives '{task}' {row!r}, which is no row: 0, 1, ...")
    if num_tasks is not None and row >= num_tasks:
        raise ConfigError(
            f"prompt_task_ids.ids gives '{task}' row {row} of the prompt bank, but "
            f"PromptConfig.num_tasks = {num_tasks}"
        )
    return row


def check_prompt_rows(tasks: Sequence[str], num_tasks: int) -> None:
    """Checks `prompt_task_ids` for the tasks of a run and the `num_tasks` rows of its bank.

    Raises:
      ConfigError: as `prompt_row`; a name that no task has; or tasks that share a row while
        another row is nobody's, which is more likely a wrong number than meant.
    """
    ids = prompt_task_ids()
    for name in sorted(set(ids) - {*tasks, *seqio.TaskRegistry.names()}):
        raise ConfigError(
            f"prompt_task_ids.ids names '{name}', but no seqio task is called so"
            f"{did_you_mean(name, tasks)}. Tasks of this run: {', '.join(tasks)}"
        )
    by_row: dict[int, list[str]] = {}
    for task in tasks:
        by_row.setdefault(prompt_row(task, num_tasks), []).append(task)
    idle = sorted(set(range(num_tasks)) - {*by_row, *ids.values()})
    shared = [sharing for _, sharing in sorted(by_row.items()) if len(sharing) > 1]
    if idle and shared:
        raise ConfigError(
            f"prompt_task_ids.ids gives {' and '.join(map(repr, shared[0]))} the same row of the "
            f"prompt bank, while row {idle[0]} is nobody's. Where they are to share their prompts, "
            "lower PromptConfig.num_tasks; otherwise give each a row"
        )
