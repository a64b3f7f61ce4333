"""What users had before the rows that are evaluated: hidden from them, or told apart.

Where a data set's repeats count, nothing is hidden, and metrics are given twice more: `repeats/...`
of items that the user had before, `new_items/...` of others. Where they do not, the items that a
user had are ranked nowhere, and all that rows want is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from m6rec_jax.jobs.job import Evaluation
from m6rec_jax.metrics.baselines import UserItemCounts


def past_of_rows(
    evaluation: Evaluation, users: np.ndarray, targets: np.ndarray
) -> list[np.ndarray]:
    """What users had before the rows of predictions, oldest first `[n][past]`.

    A row and its prediction are matched by the user and the first wanted item; several rows that
    agree in both are told apart by their order.

    Args:
      evaluation: of the task.
      users: int `[n]`. targets: int `[n, m]`.
    """

    def read() -> tuple[list[tuple[int, int]], list[np.ndarray]]:
        rows = evaluation.rows(("user_index", "item_indices"))
        keys = [(row["user_index"], int(row["item_indices"][0])) for row in rows]
        return keys, evaluation.past_items()

    by_key: dict[tuple[int, int], list[np.ndarray]] = {}
    for key, items in zip(*evaluation.once("past of rows", read), strict=True):
        by_key.setdefault(key, []).append(items)
    wanted = zip(users.tolist(), targets[:, 0].tolist(), strict=True)
    return [past.pop(0) if len(past) > 1 else past[0] for past in map(by_key.__getitem__, wanted)]


def hidden_items(
    evaluation: Evaluation, users: np.ndarray, targets: np.ndarray
) -> list[np.ndarray]:
    """Items that are not ranked, by row, each once: what the user had, but never a wanted one.

    Args:
      evaluation: of the task.
      users: int `[n]`. targets: int `[n, m]`, -1 is padding.
    """
    if evaluation.data.repeats_count:
        return [np.zeros(0, np.int64)] * len(users)
    past = past_of_rows(evaluation, users, targets)
    return list(map(np.setdiff1d, past, targets))


def own_counts(evaluation: Evaluation) -> UserItemCounts | None:
    """How often users had items before the rows; None where repeats do not count."""
    if not evaluation.data.repeats_count:
        return None
    return evaluation.once("own counts", lambda: UserItemCounts.fit(*evaluation.data.past_events()))


def metrics_apart(
    evaluation: Evaluation,
    users: np.ndarray,
    items: np.ndarray,
    metrics: Callable[[np.ndarray], Mapping[str, float]],
) -> dict[str, float]:
    """Metrics of items `[n]` that users `[n]` had before, as `repeats/...`, and of `new_items/...`.

    Nothing where repeats do not count, or all are of one kind; nor of the training part, of which
    no row says what came before it. `metrics` are of some of the items, a mask `[n]`.
    """
    had = own_counts(evaluation)
    if had is None or evaluation.data.part == "train":
        return {}
    repeats = had.of(users, items) > 0
    if repeats.all() or not repeats.any():
        return {}
    of_kinds = {"repeats": metrics(repeats), "new_items": metrics(~repeats)}
    return {f"{kind}/{name}": value for kind, of in of_kinds.items() for name, value in of.items()}
