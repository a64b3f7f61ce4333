"""Requests answered with titles of the catalogue, written by constrained beam search."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gin
import pyarrow as pa

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.inference.generation import Generator
from m6rec_jax.inference.request_jobs import Accepted
from m6rec_jax.inference.retrieval import Retriever
from m6rec_jax.inference.shared_titles import SharedTitles
from m6rec_jax.inference.title_trie import TitleTrie
from m6rec_jax.tables.request_files import ResultTypes
from m6rec_jax.tables.request_text import RequestRenderer
from m6rec_jax.tables.requests import RejectedRow, Request
from m6rec_jax.text.records import Item
from m6rec_jax.text.templates import DatasetTemplate

# Kinds of texts that name an item, see `text.writing_templates`.
NAMING = ("titles", "contents")


@gin.configurable(allowlist=["k", "max_k", "exclude_seen"])
class RecommendationJob:
    """Ids of items whose titles the model finds likeliest, a `request_jobs.RequestJob`.

    Titles are written over a trie of the catalogue, so each of them exists, and none of which all
    items were seen. A title leads to all of its items.

    A task may begin its titles with words about the item, such as its category: a request says what
    they tell with `about`, an item of its own; what nobody says is left out.

    Args:
      generator: of the model and the task.
      renderer: of requests, without their candidates.
      template: of the data set.
      kind: of `NAMING`, what the task writes.
      items: the catalogue by id.
      retriever: orders the items of one title; None: they stand in the catalogue's order.
      retriever_fingerprint: of the model and the task of the retriever.
      k: how many titles, for requests that do not say.
      max_k: the most titles a request may ask for; so many beams search in any case.
      exclude_seen: leave out the items of a request's behaviours, beside those of its `exclude`.

    Raises:
      ConfigError: k is not between 1 and max_k, the task writes no titles, or the model has no room
        for them.
      DataError: there is no catalogue, or an item lacks what its title needs.
    """

    candidates_field: str | None = None
    about_field: str | None = "about"

    def __init__(
        self,
        generator: Generator,
        renderer: RequestRenderer,
        template: DatasetTemplate,
        kind: str,
        items: Mapping[str, Item],
        retriever: Retriever | None = None,
        retriever_fingerprint: str = "",
        k: int = 10,
        max_k: int = 20,
        exclude_seen: bool = True,
    ) -> None:
        if not 1 <= k <= max_k:
            raise ConfigError(f"RecommendationJob.k = {k} must be between 1 and max_k = {max_k}")
        if kind not in NAMING or kind not in template.writing:
            known = ", ".join(template.writing) or "nothing"
            raise ConfigError(
                f"titles are recommended by tasks that write {' or '.join(NAMING)} of the data "
                f"set's 'template.writing' (there: {known}), and this one writes "
                f"{repr(kind) if kind else 'nothing'}"
            )
        if not items:
            raise DataError("the catalogue is empty: there is nothing to recommend")
        self._generator, self._renderer = generator, renderer
        self._template = template.writing[kind]
        self._k, self._max_k, self._exclude_seen = k, max_k, exclude_seen
        self._ids = list(items)
        self._places = {id_: place for place, id_ in enumerate(self._ids)}
        titles = [self._title(item) for item in items.values()]
        self._places_of_title: dict[str, list[int]] = {}
        for place, title in enumerate(titles):
            self._places_of_title.setdefault(title, []).append(place)
        self._trie = TitleTrie(generator.vocabulary, titles, self._room(items.values()))
        self._num_beams = min(max_k, len(self._trie))
        self._shared: SharedTitles | None = None
        self._retriever_fingerprint = retriever_fingerprint
        if retriever is not None and len(self._trie.shared_places()):
            texts = [template.item(item) for item in items.values()]
            self._shared = SharedTitles(retriever, self._trie, texts)
        self.result_types: ResultTypes = {
            "item_ids": pa.list_(pa.string()),
            "titles": pa.list_(pa.string()),
            "log_probabilities": pa.list_(pa.float32()),
        }

    def accept(self, request: Request, row: int) -> Accepted:
        """See `RequestJob`."""
        if request.k is not None and request.k > self._max_k:
            raise RejectedRow(
                "k_too_large",
                f"'k' is {request.k}, more than RecommendationJob.max_k = {self._max_k}",
            )
        text = self._renderer.render(request)
        about = _about(request)
        try:
            source = self._template.source(text.history, about)
            number = len(self._generator.vocabulary.encode(self._template.render_prefix(about)))
        except DataError as error:
            raise RejectedRow("no_text", f"'{self.about_field}' says too little: {error}") from None
        if number + self._trie.length > self._generator.max_tokens:
            raise RejectedRow(
                "no_text",
                f"'{self.about_field}' makes {number} tokens before the title, which leave no room "
                f"for the longest one, of {self._trie.length}, in {self._generator.max_tokens}",
            )
        return Accepted(request, text._replace(history=source), row)

    def answer(self, accepted: Sequence[Accepted]) -> dict[str, list[Any]]:
        """See `RequestJob`."""
        histories = [one.text.history for one in accepted]
        found = self._generator.recommend(
            histories,
            self._trie,
            self._num_beams,
            lead_ins=[self._template.render_prefix(_about(one.request)) for one in accepted],
            seen=[self._excluded(one.request) for one in accepted],
            item_scores=None if self._shared is None else self._shared.item_scores(histories),
        )
        results: dict[str, list[Any]] = {name: [] for name in self.result_types}
        for one, titles in zip(accepted, found, strict=True):
            k = self._k if one.request.k is None else one.request.k
            rows = [(place, title) for title in titles[:k] for place in title.places]
            results["item_ids"].append([self._ids[place] for place, _ in rows])
            results["titles"].append([title.title for _, title in rows])
            results["log_probabilities"].append([title.score for _, title in rows])
        return results

    def describe(self) -> Mapping[str, Any]:
        """See `RequestJob`."""
        return {
            "job": "recommendation",
            "template": self._template.to_spec(),
            "ordered_by": None if self._shared is None else self._retriever_fingerprint,
            "k": self._k,
            "max_k": self._max_k,
            "exclude_seen": self._exclude_seen,
        }

    def _title(self, item: Item) -> str:
        written = self._template.written(item, (), {})
        if written is None:
            raise DataError(f"item {item.id!r} has no title to write")
        return written.text

    def _room(self, items: Iterable[Item]) -> int:
        """Most tokens of a title, after what any item's begins with; as training cuts it."""
        vocabulary = self._generator.vocabulary
        beginnings = {""}
        for item in items:
            # What an item lacks for its own beginning, a request may give.
            with contextlib.suppress(DataError):
                beginnings.add(self._template.render_prefix(item))
        room = self._generator.max_tokens - max(len(vocabulary.encode(b)) for b in beginnings)
        if room < 2:
            raise ConfigError(
                f"the model writes {self._generator.max_tokens} tokens, and what stands before a "
                f"title may take {self._generator.max_tokens - room} of them"
            )
        return room

    def _excluded(self, request: Request) -> list[int]:
        """Places of seen items; one without an id is seen where it has the title of others."""
        found = [self._places[id_] for id_ in request.exclude if id_ in self._places]
        for _, item in request.behaviours if self._exclude_seen else ():
            if item.id:
                found += [self._places[item.id]] if item.id in self._places else []
                continue
            # One that lacks what a title needs has none of the catalogue's.
            with contextlib.suppress(DataError):
                found += self._places_of_title.get(self._title(item), [])
        return sorted(set(found))


def _about(request: Request) -> Item:
    return request.about or Item("", {})
