"""What users had before the rows that are evaluated: hidden from them, or told apart.

Where a data set's repeats count, nothing is hidden, and metrics are given twice more: `repeats/...`
of items that the user had before, `new_items/...` of others. Where they do not, the items that a
user had are ranked nowhere, and all that rows want is new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from m6rec_jax.jobs.job import Evaluation
from m6rec_jax.metrics import ranking
from m6rec_jax.metrics.baselines import UserItemCounts

REPEATS, NEW_ITEMS = "repeats", "new_items"


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


def apart(
    evaluation: Evaluation, users: np.ndarray, items: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Which items `[n]` users `[n]` had before, and which are new: a name and a mask of each.

    Nothing where repeats do not count, or all are of one kind; nor of the training part, of which
    no row says what came before it.
    """
    had = own_counts(evaluation)
    if had is None or evaluation.data.part == "train":
        return
    repeats = had.of(users, items) > 0
    if repeats.any() and not repeats.all():
        yield REPEATS, repeats
        yield NEW_ITEMS, ~repeats


def metrics_apart(
    evaluation: Evaluation,
    predictions: Any,
    metrics: Callable[[Any], Mapping[str, float]],
) -> dict[str, float]:
    """Metrics of candidates that users had before, and of new ones, by what gives those of all.

    Of a kind that has one label alone there are none.

    Args:
      evaluation: of the task.
      predictions: a dataclass of arrays `[n]`, with `users`, `items` and `labels`.
      metrics: of such predictions.
    """
    found: dict[str, float] = {}
    for name, rows in apart(evaluation, predictions.users, predictions.items):
        if len(np.unique(predictions.labels[rows])) > 1:
            fields = dataclasses.fields(predictions)
            some = {field.name: getattr(predictions, field.name)[rows] for field in fields}
            found |= prefixed(name, metrics(type(predictions)(**some)))
    return found


def ranks_apart(
    evaluation: Evaluation, users: np.ndarray, targets: np.ndarray, ranks: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Ranks of wanted items, of those alone that are repeats, and of those that are new.

    Args:
      evaluation: of the task.
      users: int `[n]`. targets: int `[n, m]`, -1 is padding.
      ranks: of the targets `[n, m]`.

    Yields:
      a name, and ranks of the rows that want such items `[rows, m]`.
    """
    present = targets >= 0
    of_target = np.broadcast_to(users[:, None], targets.shape)
    for name, wanted in apart(evaluation, of_target[present], targets[present]):
        kept = np.full(ranks.shape, ranking.NO_TARGET)
        kept[present] = np.where(wanted, ranks[present], ranking.NO_TARGET)
        yield name, kept[(kept != ranking.NO_TARGET).any(axis=1)]


def prefixed(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of some rows, called after them."""
    return {f"{name}/{metric}": value for metric, value in metrics.items()}
