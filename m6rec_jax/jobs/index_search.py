"""Jobs that look for a user's items in an index."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import numpy as np

from m6rec_jax.engine.index.catalogue_index import TopK
from m6rec_jax.engine.index.index_files import StoredIndex
from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.answering import (
    Accepted,
    Answerer,
    ScoredItem,
    TaskState,
    check_default_k,
    check_finite,
    check_k,
    excluded_ids,
    grouped,
    title_of,
)
from m6rec_jax.jobs.parts import Parts
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import Request
from m6rec_jax.text.records import Item


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
    """

    titles: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class RetrievalTask:
    """What looking for items of one task takes."""

    renderer: RequestRenderer
    index: StoredIndex
    catalogue: Mapping[str, Item]


class IndexAnswerer(Answerer[TaskState]):
    """Answers with items of an index; see the module.

    Args:
      parts: see `Answerer`.
      k: how many items, for requests that do not say.
      max_k: the most a request may ask for, at most `depth`.
      depth: so many are searched for in any case, so that all requests run the same program; None:
        `max_k`. More where many items share a text.
      exclude_seen: leave out the items of a request's behaviours, beside those of its `exclude`;
        None: where the data set's repeats do not count.

    Raises:
      ConfigError: k, max_k and depth do not ascend.
    """

    result = Retrieved

    def __init__(
        self,
        parts: Parts,
        k: int = 10,
        max_k: int = 100,
        depth: int | None = None,
        exclude_seen: bool | None = None,
    ) -> None:
        self._name = type(self).__name__
        check_default_k(k, max_k, self._name)
        self._depth = max_k if depth is None else depth
        if max_k > self._depth:
            raise ConfigError(f"{self._name}.max_k = {max_k} is more than depth = {depth}")
        super().__init__(parts)
        self.default_k, self.max_k, self._exclude_seen = k, max_k, exclude_seen
        self.lists = ItemLists()

    @property
    def column_types(self) -> Mapping[str, str]:
        titles = {"titles": "string"} if self.lists.titles else {}
        return {**super().column_types, **titles}

    def listed(
        self, task: str, ids: Sequence[str], scores: np.ndarray, k: int, items: Mapping[str, Item]
    ) -> Retrieved:
        """The k best of what was found; of items with the same text, which tie, only the first.

        Args:
          task: of retrieval.
          ids, scores: of the items found, best first; scores may go on.
          k: how many are wanted; there are fewer where the items found have fewer texts.
          items: of the catalogue, by id.
        """
        template, places = self.parts.data(task).template, dict[str, int]()
        for place, id_ in enumerate(ids):
            if len(places) == k:
                break
            places.setdefault(template.item(items[id_]) if id_ in items else id_, place)
        first = list(places.values())
        return Retrieved([ids[place] for place in first], scores[first], items)

    @abc.abstractmethod
    def retrieval(self, task: str) -> RetrievalTask:
        """What looking for the items of a task takes."""

    def accept(self, request: Request, task: str) -> RequestText:
        check_k(request, self.max_k, f"{self._name}.max_k")
        return self.retrieval(task).renderer.render(request)

    def index(self, task: str) -> StoredIndex:
        """Of a task's catalogue."""
        return self.retrieval(task).index

    def excluded(self, accepted: Sequence[Accepted]) -> list[list[str]]:
        """Of each request, ids of items that must not be found."""
        return [
            excluded_ids(one.request, self.parts.hides_seen(one.task, self._exclude_seen))
            for one in accepted
        ]

    @abc.abstractmethod
    def results(
        self, task: str, accepted: Sequence[Accepted], users: np.ndarray, found: TopK
    ) -> list[Any]:
        """One `Result` per request of a task.

        Args:
          task, accepted: the requests.
          users: their vectors.
          found: items of each, best first.
        """

    def answer(self, accepted: Sequence[Accepted]) -> list[Any]:
        if not accepted:
            return []
        users = self.parts.retriever().embed_users(
            [one.text.history for one in accepted],
            [one.task for one in accepted],
        )
        check_finite(accepted, users)
        excluded = self.excluded(accepted)

        def answer(task: str, places: list[int]) -> list[Any]:
            hidden, sizes = [excluded[i] for i in places], self.parts.batch_sizes
            found = self.index(task).top_k(users[places], self._depth, hidden, sizes)
            return self.results(task, [accepted[i] for i in places], users[places], found)

        return grouped(range(len(accepted)), lambda place: accepted[place].task, answer)

    def describe(self, task: str) -> Mapping[str, Any]:
        index = self.index(task)
        return {
            "index": [index.manifest.model, index.manifest.catalogue],
            "k": self.default_k,
            "max_k": self.max_k,
            "depth": self._depth,
            "exclude_seen": self.parts.hides_seen(task, self._exclude_seen),
            "lists": dataclasses.asdict(self.lists),
        }

    def warm_up(self, tasks: Iterable[str]) -> None:
        self.parts.warm_once("retriever", self.parts.retriever().warm_up)
        for task in tasks:
            self.index(task).warm_up(self._depth, self.parts.batch_sizes)
