"""Items recommended in dialogues by generating their titles: a beam search within the catalogue.

Metrics: those of `dialogue_items`, and the likelihood of the titles that were recommended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import numpy as np

from m6rec_jax.engine.candidates.likelihood import token_sums
from m6rec_jax.engine.decoding.generation import Generator, TextRequest
from m6rec_jax.engine.decoding.title_trie import ItemScores, TitleTrie
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.task_settings import TaskSettings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import (
    Accepted,
    Answerer,
    ScoredItem,
    check_default_k,
    check_finite,
    check_k,
    grouped,
)
from m6rec_jax.jobs.dialogue_items import (
    RecommendationJob,
    RecommendationPredictions,
    named_items,
    target_items,
)
from m6rec_jax.jobs.job import Array, Evaluation, Features, Variables, register
from m6rec_jax.jobs.language import LanguagePredictions
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.metrics import ranking
from m6rec_jax.model import M6Rec
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow, Request, RequestFields
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import WritingTemplate


@register
class TitleRecommendationJob(RecommendationJob):
    """The likeliest titles of the catalogue for each dialogue.

    Items of one title are ordered by the two towers where a task of them is evaluated beside this
    one; else they stay in the catalogue's order.
    """

    kind = "title_recommendation"
    on_request = True

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`TokenSums` of the titles that were recommended, `[rows]`."""
        return token_sums(model, variables, features)._asdict()

    def predict(self, evaluation: Evaluation) -> RecommendationPredictions:
        language = LanguagePredictions.of(evaluation.outputs())
        generator, texts = evaluation.generator(), evaluation.data.prepared().catalogue().texts
        trie = evaluation.once(
            "titles", lambda: TitleTrie(generator.vocabulary, texts, generator.max_tokens)
        )
        rows = evaluation.rows()
        requests = [TextRequest(row["source"], task=evaluation.data.name) for row in rows]
        towers = evaluation.beside("item_recommendation")
        scores = None
        if towers is not None:
            sources = [row["source"] for row in rows]
            scores = SharedTitles(towers.retriever(), trie, texts).item_scores(sources)
        longest = max(evaluation.ks)

        def top(requests: Sequence[TextRequest]) -> tuple[np.ndarray, np.ndarray]:
            """Items in the order of their titles and the scores of these, `[n, k]` both."""
            k = min(longest, len(trie))
            titles = generator.recommend(requests, trie, k, item_scores=scores)
            shape = len(rows), min(longest, len(texts))
            items, of_items = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
            for row, of_row in enumerate(titles):
                # Several items may share a title.
                pairs = [(i, t.score) for t in of_row for i in t.indices][: shape[1]]
                for place, pair in enumerate(pairs):
                    items[row, place], of_items[row, place] = pair
            return items, of_items

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

    def answerer(self, resources: Resources) -> Answerer[Any]:
        return TitlesAnswers(resources)

    @property
    def asked_of(self) -> tuple[str, ...]:
        return ("generation",)

    def may_be_asked_of(self, settings: TaskSettings) -> bool:
        return super().may_be_asked_of(settings) and settings.writing in NAMING


class SharedTitles:
    """Similarities of histories and items that share a title, for `Generator.recommend`.

    Only those items are embedded: a large catalogue with few shared titles costs next to nothing.

    Args:
      retriever: of the two towers.
      trie: of the catalogue.
      texts: of the catalogue, as the item tower reads them.
      task: by whose prompts users and items are embedded; None: the retriever's default one.
    """

    def __init__(
        self, retriever: Retriever, trie: TitleTrie, texts: Sequence[str], task: str | None = None
    ) -> None:
        self._retriever, self._task = retriever, task
        self._shared = trie.shared_indices()
        if len(self._shared):
            self._index = retriever.index([texts[index] for index in self._shared], task)

    def item_scores(self, histories: Sequence[Sequence[str]]) -> ItemScores | None:
        """What orders items of one title; None where no title is shared.

        Args:
          histories: of the requests, as for `Retriever.embed_users`.
        """
        if not len(self._shared) or not histories:
            return None
        tasks = None if self._task is None else [self._task] * len(histories)
        users = self._retriever.embed_users(histories, tasks)

        def scores(request: int, indices: np.ndarray) -> np.ndarray:
            places = np.searchsorted(self._shared, indices)
            return self._index.similarities(users[request][None], places[None])[0]

        return scores


# Kinds of texts that name an item, see `text.writing_templates`.
NAMING = ("titles", "contents")
# That a request may ask for, unless gin says otherwise.
MAX_K = 20


@dataclasses.dataclass(frozen=True, slots=True)
class RecommendedTitles:
    """Items by the titles that the model finds likeliest, best first.

    Attributes:
      item_ids, titles: of the items; several may share a title.
      log_probabilities: of the titles.
    """

    column_types: ClassVar[Mapping[str, str]] = {
        "item_ids": "string",
        "titles": "string",
        "log_probabilities": "float",
    }
    item_ids: Sequence[str]
    titles: Sequence[str]
    log_probabilities: Sequence[float]

    @property
    def items(self) -> list[ScoredItem]:
        """Items with their scores."""
        rows = zip(self.item_ids, self.titles, self.log_probabilities, strict=True)
        return [ScoredItem(*row) for row in rows]

    def columns(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in self.column_types}


class _TitlesTask(NamedTuple):
    """The catalogue as one task writes it; `towers`: the task whose towers order `shared`."""

    renderer: RequestRenderer
    template: WritingTemplate
    ids: Sequence[str]
    index_of: Mapping[str, int]
    items_of_title: Mapping[str, Sequence[int]]
    trie: TitleTrie
    num_beams: int
    towers: str | None
    shared: SharedTitles | None

    def excluded(self, request: Request, exclude_seen: bool) -> list[int]:
        """Indices of seen items; one without an id is seen where it has the title of others."""
        excluded = [self.index_of[id_] for id_ in request.exclude if id_ in self.index_of]
        for _, item in request.history if exclude_seen else ():
            if item.id:
                excluded += [self.index_of[item.id]] if item.id in self.index_of else []
                continue
            # An item without what a title needs has no title of the catalogue.
            with contextlib.suppress(DataError):
                excluded += self.items_of_title.get(_title(self.template, item), [])
        return sorted(set(excluded))


@gin.configurable(allowlist=["k", "max_k", "exclude_seen"])
class TitlesAnswers(Answerer[_TitlesTask]):
    """Ids of items whose titles the model finds likeliest.

    Titles are generated over a trie of the catalogue, so all of them exist; those of which all
    items were seen are left out. A title stands for all of its items. Where several share one, the
    two towers order them, if a task of the model trains them on the same data.

    A task may put a prefix about the item before its titles, such as its category. A request gives
    the prefix's attributes in `about`; missing ones are left out.

    Args:
      resources: see `Answerer`.
      k: how many titles, for requests that do not say.
      max_k: the most titles a request may ask for; so many beams search in any case.
      exclude_seen: leave out the items of a request's behaviours, beside those of its `exclude`;
        None: where the data set's repeats do not count.

    Raises:
      ConfigError: k is not between 1 and max_k.
    """

    column_types = RecommendedTitles.column_types

    def __init__(
        self,
        resources: Resources,
        k: int = 10,
        max_k: int = MAX_K,
        exclude_seen: bool | None = None,
    ) -> None:
        check_default_k(k, max_k, "TitlesAnswers")
        super().__init__(resources)
        self._k, self._max_k, self._exclude_seen = k, max_k, exclude_seen

    def open_task(self, task: str) -> _TitlesTask:
        data, kind = self.resources.data(task), self.resources.settings(task).writing
        writing = data.template.writing
        if kind not in NAMING or kind not in writing:
            raise ConfigError(
                f"titles are recommended by tasks that write {' or '.join(NAMING)} of the data "
                f"set's 'template.writing' (there: {', '.join(writing) or 'nothing'}), and "
                f"'{task}' writes {repr(kind) if kind else 'nothing'}"
            )
        if not data.items:
            raise DataError("the catalogue is empty: there is nothing to recommend")
        template, generator = writing[kind], self.resources.generator(task)
        items, items_of_title = list(data.items.values()), dict[str, list[int]]()
        trie = trie_of_items(template, items, generator)
        for index, item in enumerate(items):
            items_of_title.setdefault(_title(template, item), []).append(index)
        shared = towers = None
        if self.resources.model.model.config.prompts.retrieval_dim and len(trie.shared_indices()):
            towers = self.resources.beside(task, "retrieval")
        if towers is not None:
            texts = [data.template.item(item) for item in items]
            shared = SharedTitles(self.resources.retriever(), trie, texts, towers)
        return _TitlesTask(
            self.resources.renderer(task, candidates=False),
            template,
            list(data.items),
            {id_: index for index, id_ in enumerate(data.items)},
            items_of_title,
            trie,
            min(self._max_k, len(trie)),
            towers,
            shared,
        )

    def fields(self, task: str) -> RequestFields:
        del task
        return RequestFields(None, about="about")

    def accept(self, request: Request, task: str) -> RequestText:
        check_k(request, self._max_k, "TitlesAnswers.max_k")
        state, generator = self.of_task(task), self.resources.generator(task)
        text, about = state.renderer.render(request), _about(request)
        try:
            source = state.template.source(text.history, about)
            number = len(generator.vocabulary.encode(state.template.render_prefix(about)))
        except DataError as error:
            raise RejectedRow("no_text", f"'about' says too little: {error}") from None
        if number + state.trie.length > generator.max_tokens:
            raise RejectedRow(
                "no_text",
                f"'about' makes {number} tokens before the title, which leave no room for the "
                f"longest one, of {state.trie.length}, in {generator.max_tokens}",
            )
        return text._replace(history=source)

    def answer(self, accepted: Sequence[Accepted]) -> list[RecommendedTitles]:
        answers = grouped(accepted, lambda one: one.task, self._answer)
        check_finite(accepted, (answer.log_probabilities for answer in answers))
        return answers

    def _answer(self, task: str, accepted: Sequence[Accepted]) -> list[RecommendedTitles]:
        state = self.of_task(task)
        hides = self.resources.hides_seen(task, self._exclude_seen)
        histories = [one.text.history for one in accepted]
        requests = [
            TextRequest(
                one.text.history,
                state.template.render_prefix(_about(one.request)),
                task,
                seen=state.excluded(one.request, hides),
            )
            for one in accepted
        ]
        scores = None if state.shared is None else state.shared.item_scores(histories)
        best = self.resources.generator(task).recommend(
            requests, state.trie, state.num_beams, item_scores=scores
        )
        answers = []
        for one, titles in zip(accepted, best, strict=True):
            k = one.request.k or self._k
            rows = [(item, title) for title in titles[:k] for item in title.indices]
            answers.append(
                RecommendedTitles(
                    [state.ids[item] for item, _ in rows],
                    [title.title for _, title in rows],
                    [title.score for _, title in rows],
                )
            )
        return answers

    def describe(self, task: str) -> Mapping[str, Any]:
        state = self.of_task(task)
        towers = state.towers and self.resources.model.fingerprint(state.towers)
        return {
            "template": state.template.to_spec(),
            "ordered_by": towers,
            "k": self._k,
            "max_k": self._max_k,
            "exclude_seen": self.resources.hides_seen(task, self._exclude_seen),
        }

    def warm_up(self, tasks: Iterable[str]) -> None:
        for task in tasks:
            state, generator = self.of_task(task), self.resources.generator(task)
            key = ("titles", generator.max_tokens, state.num_beams, state.trie.shapes)
            self.resources.warm_once(key, functools.partial(self._warm, task))

    def _warm(self, task: str) -> None:
        state, generator = self.of_task(task), self.resources.generator(task)
        for history in generator.warm_up_histories():
            for size in self.resources.batch_sizes:
                for seen in state.trie.warm_up_seen():
                    requests = [TextRequest(history, task=task, seen=seen)] * size
                    generator.recommend(requests, state.trie, state.num_beams)


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
