"""Jobs that look for a user's items in an index.

They answer in three steps, so that the middle one may be done by whoever holds parts of the index:

    query = answerer.query(accepted)                          # vectors of the users
    found = answerer.search("next", query)                    # best items of all parts, or of some
    results = answerer.results("next", accepted, found)
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from m6rec_jax.engine.catalogue_index import TopK
from m6rec_jax.engine.index_files import StoredIndex
from m6rec_jax.jobs.answering import Accepted, Answerer, TaskState, by_task


class Query(NamedTuple):
    """What is looked for in an index.

    Attributes:
      users: float32 `[users, retrieval]`.
      k: how many items of each.
      excluded: per user, ids of items that must not be found.
    """

    users: np.ndarray
    k: int
    excluded: Sequence[Sequence[str]]


class IndexAnswerer(Answerer[TaskState]):
    """Answers with items of an index; see the module."""

    @abc.abstractmethod
    def index(self, task: str) -> StoredIndex:
        """Of a task's catalogue."""

    @abc.abstractmethod
    def query(self, accepted: Sequence[Accepted]) -> Query:
        """Embeds the users of requests, of any tasks."""

    @abc.abstractmethod
    def results(self, task: str, accepted: Sequence[Accepted], found: TopK) -> list[Any]:
        """One `Result` per request of a task, of the items found for each."""

    def search(self, task: str, query: Query, place: int = 0, of: int = 1) -> TopK:
        """The best items; `place` and `of` as `StoredIndex.top_k`."""
        return self.index(task).top_k(*query, self.parts.batch_sizes, place, of)

    def answer(self, accepted: Sequence[Accepted]) -> list[Any]:
        if not accepted:
            return []
        users, k, excluded = self.query(accepted)
        results: dict[int, Any] = {}
        for task, members in by_task(accepted).items():
            found = self.search(task, Query(users[members], k, [excluded[i] for i in members]))
            own = self.results(task, [accepted[i] for i in members], found)
            results.update(zip(members, own, strict=True))
        return [results[i] for i in range(len(accepted))]
