"""Items recommended in dialogues by generating their titles: a beam search within the catalogue.

Metrics: those of `dialogue_items`, and the likelihood of the titles that were recommended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import gin
import numpy as np

from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.decoding.title_trie import TitleTrie
from m6rec_jax.engine.index.catalogue_index import NO_ITEM
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import Accepted, Answer, CatalogueHandler, ScoredItem
from m6rec_jax.jobs.dialogue_items import (
    RecommendationJob,
    RecommendationPredictions,
    named_items,
    target_items,
)
from m6rec_jax.jobs.job import Evaluation, register
from m6rec_jax.jobs.language import LanguagePredictions, TargetsJob
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.metrics import ranking
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.requests.request import RejectedRow, Request, RequestFields
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import WritingTemplate

# Kinds of texts that name an item, see `text.writing_templates`.
NAMING = ("titles", "contents")
# That a request may ask for, unless gin says otherwise.
MAX_K = 20


@gin.configurable(allowlist=["k", "max_k", "exclude_seen"])
class TitlesAnswers(CatalogueHandler):
    """Ids of items whose titles the model finds likeliest.

    Titles are generated over a trie of the catalogue, so all of them exist; those of which all
    items were seen are left out. A title stands for all of its items.

    A task may put a prefix about the item before its titles, such as its category. A request gives
    the prefix's attributes in `about`; missing ones are left out.

    Args:
      resources, task, k, max_k, exclude_seen: see `CatalogueHandler`. Of k, titles are counted;
        `max_k` beams search in any case.
    """

    job = "title_recommendation"
    column_types: ClassVar[Mapping[str, str]] = {
        "item_ids": "string",
        "titles": "string",
        "log_probabilities": "float",
    }

    def __init__(
        self,
        resources: Resources,
        task: str,
        k: int = 10,
        max_k: int = MAX_K,
        exclude_seen: bool | None = None,
    ) -> None:
        data, kind = resources.data(task), resources.settings(task).writing
        writing = data.template.writing
        if kind not in NAMING or kind not in writing:
            raise ConfigError(
                f"titles are recommended by tasks that write {' or '.join(NAMING)} of the data "
                f"set's 'template.writing' (there: {', '.join(writing) or 'nothing'}), and "
                f"'{task}' writes {repr(kind) if kind else 'nothing'}"
            )
        if not data.items:
            raise DataError("the catalogue is empty: there is nothing to recommend")
        fields = RequestFields(None, about="about")
        super().__init__(resources, task, k, max_k, exclude_seen, fields)
        self._template, self._generator = writing[kind], resources.generator(task)
        items = list(data.items.values())
        self._trie = trie_of_items(self._template, items, self._generator)
        self._num_beams = min(max_k, len(self._trie))
        self._ids = list(data.items)
        self._index_of = {id_: index for index, id_ in enumerate(self._ids)}
        self._items_of_title: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            self._items_of_title.setdefault(_title(self._template, item), []).append(index)

    @property
    def group(self) -> Hashable:
        """One task at a time."""
        return self.job, self.task

    def render(self, request: Request) -> RequestText:
        generator, text, about = self._generator, super().render(request), _about(request)
        try:
            source = self._template.source(text.history, about)
            generator.prefix_tokens(self._template.render_prefix(about), self._trie.length)
        except DataError as error:
            raise RejectedRow("no_text", f"'about' does not fit: {error}") from None
        return text._replace(history=source)

    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        requests = [
            TextRequest(
                one.text.history,
                self._template.render_prefix(_about(one.request)),
                self.task,
                seen=self._excluded(one.request),
            )
            for one in accepted
        ]
        best = self._generator.recommend(requests, self._trie, self._num_beams)
        answers = []
        for one, titles in zip(accepted, best, strict=True):
            items = [
                ScoredItem(self._ids[index], title.title, title.score)
                for title in titles[: one.request.k or self.default_k]
                for index in title.indices
            ]
            columns = zip(*items, strict=True) if items else ((), (), ())
            values = dict(zip(self.column_types, map(list, columns), strict=True))
            answers.append(Answer(values, items))
        return answers

    def describe(self) -> Mapping[str, Any]:
        return {"template": self._template.to_spec(), **super().describe()}

    def warm_up(self) -> None:
        def warm_up() -> None:
            for histories in self._generator.warm_up_batches():
                requests = [TextRequest(history, task=self.task) for history in histories]
                self._generator.recommend(requests, self._trie, self._num_beams)

        key = "titles", self._generator.max_tokens, self._num_beams, self._trie.shapes
        self.resources.warm_once(key, warm_up)

    def _excluded(self, request: Request) -> list[int]:
        """Indices of seen items; one without an id is seen where it has the title of others."""
        ids = self.excluded(request)
        excluded = {self._index_of[id_] for id_ in ids if id_ in self._index_of}
        for _, item in request.history if self.hides_seen else ():
            # An item without what a title needs has no title of the catalogue.
            with contextlib.suppress(DataError):
                if not item.id:
                    excluded.update(self._items_of_title.get(_title(self._template, item), ()))
        return sorted(excluded)


def _title(template: WritingTemplate, item: Item) -> str:
    written = template.written(item, (), {})
    if written is None:
        raise DataError(f"item {item.id!r} has no title to write")
    return written.text


def trie_of_items(
    template: WritingTemplate, items: Sequence[Item], generator: Generator
) -> TitleTrie:
    """What a task writes of items, as long as there is room after any prefix, as in training.

    Raises:
      ConfigError: there is no room. DataError: an item has no title.
    """
    prefixes = {""}
    for item in items:
        # A request may give what an item lacks for its own prefix.
        with contextlib.suppress(DataError):
            prefixes.add(template.render_prefix(item))
    longest = max(len(generator.vocabulary.encode(prefix)) for prefix in prefixes)
    if generator.max_tokens - longest < 2:
        raise ConfigError(
            f"the model writes {generator.max_tokens} tokens, and what stands before a title may "
            f"take {longest} of them"
        )
    titles = [_title(template, item) for item in items]
    return TitleTrie(generator.vocabulary, titles, generator.max_tokens - longest)


def _about(request: Request) -> Item:
    return request.about or Item("", {})


@register
class TitleRecommendationJob(RecommendationJob, TargetsJob):
    """The likeliest titles of the catalogue for each dialogue."""

    kind = "title_recommendation"
    handler = TitlesAnswers
    asked_of = ("generation",)
    on_request = True

    def predict(self, evaluation: Evaluation) -> RecommendationPredictions:
        language = LanguagePredictions.of(evaluation.outputs())
        generator, texts = evaluation.generator(), evaluation.data.prepared().catalogue().texts
        trie = evaluation.once(
            "titles", lambda: TitleTrie(generator.vocabulary, texts, generator.max_tokens)
        )
        rows = evaluation.rows()
        requests = [TextRequest(row["source"], task=evaluation.data.name) for row in rows]
        k = min(max(evaluation.ks), len(texts))

        def top(requests: Sequence[TextRequest]) -> tuple[np.ndarray, np.ndarray]:
            """Items in the order of their titles and the scores of these, `[n, k]` both."""
            titles = generator.recommend(requests, trie, min(k, len(trie)))
            pairs = [[(i, t.score) for t in of_row for i in t.indices] for of_row in titles]
            filled = np.array([[*row, *[(NO_ITEM, -np.inf)] * k][:k] for row in pairs])
            return filled[..., 0].astype(np.int64), filled[..., 1].astype(np.float32)

        of_all, _ = top(requests)
        named = [named_items(row).tolist() for row in rows]
        new = [request._replace(seen=seen) for request, seen in zip(requests, named, strict=True)]
        top_items, scores_of_items = top(new)
        targets = target_items(rows)
        return RecommendationPredictions(
            rows=rows,
            top_items=top_items,
            scores=scores_of_items,
            ranks=ranking.target_ranks(of_all, targets),
            new_ranks=ranking.target_ranks(top_items, targets),
            language=language,
        )

    def may_be_asked_of(self, settings: TaskSettings) -> bool:
        return super().may_be_asked_of(settings) and settings.writing in NAMING
