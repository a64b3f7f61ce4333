"""Which row of the prompt bank a task uses: said, or the only one there is; never guessed."""

from collections.abc import Mapping
from typing import Any

import gin
import pytest
import seqio

from m6rec_jax.errors import ConfigError
from m6rec_jax.pipeline.row_layout import check_prompt_rows, prompt_row

pytestmark = pytest.mark.usefixtures("no_gin")

TASKS = ("shop_ctr", "shop_stars", "shop_next")


def check(ids: Mapping[str, Any] | None, num_tasks: int, tasks: tuple[str, ...] = TASKS) -> None:
    gin.bind_parameter("prompt_task_ids.ids", ids)
    check_prompt_rows(tasks, num_tasks)


def test_every_task_has_the_row_that_gin_gives(monkeypatch) -> None:
    check_prompt_rows(TASKS, 1)  # one set of prompts needs no rows
    assert [prompt_row(task, 1) for task in TASKS] == [0, 0, 0]
    ids = {"shop_ctr": 2, "shop_stars": 0, "shop_next": 1}
    check(ids, 3)
    assert {task: prompt_row(task, 3) for task in TASKS} == ids
    # The gin file of a bank also serves a run, or an evaluation, of one of its tasks.
    monkeypatch.setattr(seqio.TaskRegistry, "names", lambda: TASKS)
    check(ids, 3, ("shop_stars",))


@pytest.mark.parametrize(
    ("ids", "num_tasks", "message"),
    [
        (None, 3, "'shop_ctr'"),
        ({"shop_ctr": 0, "shop_stars": 1}, 2, "'shop_next'"),
        (
            dict(zip((*TASKS, "shop_nxt"), range(4), strict=True)),
            4,
            r"'shop_nxt', but .* mean 'shop_next'",
        ),
        *(({"shop_ctr": row}, 2, f"'shop_ctr' the row {row!r}") for row in (2, -1, True, "0", 1.0)),
    ],
)
def test_rows_that_are_missing_or_that_the_bank_has_not(ids, num_tasks, message):
    with pytest.raises(ConfigError, match=message):
        check(ids, num_tasks)
