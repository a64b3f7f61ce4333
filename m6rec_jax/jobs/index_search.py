"""Jobs that look for a user's items in an index.

They answer in three steps, so that the middle one may be done by whoever holds parts of the index:

    query = answerer.query(accepted)                          # vectors of the users
    found = answerer.search("next", query)                    # best items of all parts, or of some
    results = answerer.results("next", accepted, query.users, found)
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import numpy as np

from m6rec_jax.engine.catalogue_index import TopK
from m6rec_jax.engine.index_files import StoredIndex
from m6rec_jax.jobs.answering import (
    Accepted,
    Answerer,
    Parts,
    ScoredItem,
    TaskState,
    by_task,
    title_of,
)
from m6rec_jax.text.records import Item


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


@dataclasses.dataclass(frozen=True, slots=True)
class Retrieved:
    """Items of the catalogue, best first.

    Attributes:
      item_ids: of the items.
      scores: cosine similarities, or what a reranker orders by, float32 `[items]`.
      catalogue: items by id, for their titles.
    """

    column_types: ClassVar[Mapping[str, str]] = {"item_ids": "string", "scores": "float"}
    item_ids: Sequence[str]
    scores: np.ndarray
    catalogue: Mapping[str, Item] = dataclasses.field(repr=False)

    @property
    def items(self) -> list[ScoredItem]:
        """Items with their scores."""
        known = [self.catalogue.get(id_) for id_ in self.item_ids]
        return [
            ScoredItem(id_, id_ if item is None else title_of(item), score)
            for id_, item, score in zip(self.item_ids, known, self.scores.tolist(), strict=True)
        ]

    def columns(self) -> Mapping[str, Any]:
        titles = [item.title for item in self.items]
        return {"item_ids": self.item_ids, "scores": self.scores, "titles": titles}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ItemLists:
    """What lists of items are like.

    Attributes:
      titles: files of results have them, too, in the column `titles`.
      distinct: of items with the same text, which tie, only the first stands in a list.
    """

    titles: bool = False
    distinct: bool = False


class IndexAnswerer(Answerer[TaskState]):
    """Answers with items of an index; see the module."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.lists = ItemLists()

    @property
    def column_types(self) -> Mapping[str, str]:
        titles = {"titles": "string"} if self.lists.titles else {}
        return {**super().column_types, **titles}

    def listed(
        self, task: str, ids: Sequence[str], scores: np.ndarray, k: int, items: Mapping[str, Item]
    ) -> Retrieved:
        """The k best of what was found, as `ItemLists` wants them.

        Args:
          task: of retrieval.
          ids, scores: of the items found, best first; scores may go on.
          k: how many are wanted.
          items: of the catalogue, by id.
        """
        places = list(range(len(ids)))
        if self.lists.distinct:
            template, first = self.parts.data(task).template, dict[str, int]()
            for place, id_ in enumerate(ids):
                text = template.item(items[id_]) if id_ in items else id_
                first.setdefault(text, place)
            places = list(first.values())
        return Retrieved([ids[place] for place in places[:k]], scores[places[:k]], items)

    @abc.abstractmethod
    def index(self, task: str) -> StoredIndex:
        """Of a task's catalogue."""

    @abc.abstractmethod
    def query(self, accepted: Sequence[Accepted]) -> Query:
        """Embeds the users of requests, of any tasks."""

    @abc.abstractmethod
    def results(
        self, task: str, accepted: Sequence[Accepted], users: np.ndarray, found: TopK
    ) -> list[Any]:
        """One `Result` per request of a task.

        Args:
          task, accepted: the requests.
          users: their vectors, of `query`.
          found: items of each, of `search`.
        """

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
            own = self.results(task, [accepted[i] for i in members], users[members], found)
            results.update(zip(members, own, strict=True))
        return [results[i] for i in range(len(accepted))]
