"""Retrieval: the items of the whole catalogue that fit a user best, by the two towers.

Metrics: `hit_rate@k`, `ndcg@k`, `mrr`, `coverage@k`; the same over items never trained on.

`reranking` answers with the best ranking that there is: what the towers and others find, in one
order (`engine.index.reranking`).

`embeddings` gives the vectors of users and items themselves, for a vector database:

    m6rec infer --gin.MODEL_DIR=runs/retrieval --output vectors.parquet \
        --gin.MIXTURE_OR_TASK_NAME=movielens_100k_leave_one_out_embeddings
    m6rec infer --gin.MODEL_DIR=runs/retrieval --gin.JOB=embeddings \
        --requests users.jsonl --output vectors.jsonl
    rec.answer(rows, job="embeddings"); rec.embed_items()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.index.catalogue_index import NO_ITEM, CatalogueIndex, TopK
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.engine.index.retrieval import item_embeddings, user_embeddings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import Accepted, Answer, CatalogueHandler, Handler, grouped, scored
from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    ExampleScores,
    Features,
    Found,
    Job,
    TaskData,
    Variables,
    candidate_names,
    register,
)
from m6rec_jax.jobs.past_items import hidden_items, metrics_apart, own_counts, past_of_rows
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.metrics import ranking
from m6rec_jax.metrics.baselines import popularity_ranks
from m6rec_jax.model import M6Rec
from m6rec_jax.requests.request import Request
from m6rec_jax.text.records import Item

DEFAULT_KS = (1, 5, 10, 50)


@dataclasses.dataclass(frozen=True, slots=True)
class RetrievalPredictions:
    """One entry per row of the task.

    Attributes:
      users: int64 `[n]`, indices into the users table.
      targets: int64 `[n, m]`, wanted items; -1 is padding.
      ranks: int64 `[n, m]`, their ranks from 1 among all items but the seen ones; 0 is padding.
      top_items: int64 `[n, k]`, best first; -1 where fewer are left.
      scores: float32 `[n, k]`, cosine similarities, or what a reranker ordered by.
      num_ranked: int64 `[n]`, how many items were ranked, all but the seen ones.
      towers_ranks, rest_ranks: likewise `ranks` by the two towers alone, and by all else that a
        reranker knows, where these are a reranker's.
    """

    users: np.ndarray
    targets: np.ndarray
    ranks: np.ndarray
    top_items: np.ndarray
    scores: np.ndarray
    num_ranked: np.ndarray
    towers_ranks: np.ndarray | None = None
    rest_ranks: np.ndarray | None = None


class Retrieval(NamedTuple):
    """What the two towers found for rows of a task, and what else is known of these.

    Attributes:
      predictions: by the towers.
      excluded: per row, items that are not recommended.
      past: gives per row the items of the history, oldest first.
      similarities: of some rows, a slice, and items `[rows, k]`.
      name: of what is wanted, where a task wants several things: each has weights of its own.
    """

    predictions: RetrievalPredictions
    excluded: Sequence[np.ndarray]
    past: Callable[[], Sequence[np.ndarray]]
    similarities: Callable[[slice, np.ndarray], np.ndarray]
    name: str = ""


# Items of a history that are known beside its text.
_MOST_PAST = 1000
# What a reranked list is compared with.
TWO_TOWERS = "two_towers"


class IndexHandler(CatalogueHandler):
    """Answers with items of an index, in the order of the two towers' similarities.

    Args:
      resources, task, k, max_k, exclude_seen: see `CatalogueHandler`.
      depth: so many are searched for in any case, so that all requests run the same program; at
        least `max_k`; None: 100, or `max_k` where that is more. More where many items share a text.

    Raises:
      ConfigError: k, max_k and depth do not ascend.
    """

    column_types: ClassVar[Mapping[str, str]] = {
        "item_ids": "string",
        "scores": "float",
        "titles": "string",
    }

    def __init__(
        self,
        resources: Resources,
        task: str,
        k: int = 10,
        max_k: int = 100,
        depth: int | None = None,
        exclude_seen: bool | None = None,
    ) -> None:
        self._depth = max(max_k, 100) if depth is None else depth
        if max_k > self._depth:
            raise ConfigError(f"{type(self).__name__}.max_k = {max_k} is more than depth = {depth}")
        resources.retriever().settings(task)
        self._index = index = resources.index(task)
        super().__init__(resources, task, k, max_k, exclude_seen)
        items = self.data.items
        if items and (lost := [id_ for id_ in index.ids if id_ not in items]):
            raise DataError(
                f"the index of '{task}' has the item {lost[0]!r}, which the catalogue lacks (and "
                f"{len(lost) - 1} more): build it anew with this catalogue"
            )

    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        users = _user_vectors(self.resources, accepted)

        def answer(handler: Any, places: list[int]) -> list[Answer]:
            requests = [accepted[place].request for place in places]
            found = handler._ordered(requests, users[places])
            return list(map(handler._listed, requests, *zip(*found, strict=True)))

        return grouped(range(len(accepted)), lambda place: accepted[place].handler, answer)

    def describe(self) -> Mapping[str, Any]:
        manifest = self._index.manifest
        index = {"depth": self._depth, "index": [manifest.model, manifest.content]}
        return {**super().describe(), **index}

    def warm_up(self) -> None:
        self.resources.warm_once("retriever", self.resources.retriever().warm_up)
        self._index.search.warm_up(self._depth, self.resources.batch_sizes)

    def _hits(self, excluded: Sequence[Sequence[str]], users: np.ndarray) -> TopK:
        """Each request's nearest items, as places in the index, without ids that must not come."""
        seen, sizes = [self._index.places_of(ids) for ids in excluded], self.resources.batch_sizes
        return self._index.search.top_k(users, self._depth, seen, sizes)

    def _ordered(
        self, requests: Sequence[Request], users: np.ndarray
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids of the items for each request, best first, and their scores, which may go on.

        `requests` are of this task, `users` their vectors, `[requests, retrieval]`.
        """
        return _ids_and_scores(self._index.ids, self._hits([*map(self.excluded, requests)], users))

    def _listed(self, request: Request, ids: Sequence[str], scores: np.ndarray) -> Answer:
        """The k best of ordered ones; of items with the same text, which tie, only the first.

        There are fewer where the items have fewer texts.
        """
        k, catalogue, places = request.k or self.default_k, self.data.items, dict[str, int]()
        for place, id_ in enumerate(ids):
            if len(places) == k:
                break
            item = catalogue.get(id_)
            places.setdefault(id_ if item is None else self.data.template.item(item), place)
        first = list(places.values())
        ids, scores = [ids[place] for place in first], scores[first]
        items = scored((catalogue.get(id_) or Item(id_, {}) for id_ in ids), scores)
        titles = [item.title for item in items]
        return Answer({"item_ids": ids, "scores": scores, "titles": titles}, items)


def _ids_and_scores(ids: Sequence[str], best: TopK) -> Iterator[tuple[list[str], np.ndarray]]:
    """Of each row, the ids of its items, and their scores, which may go on."""
    for items, scores in zip(best.ids, best.scores, strict=True):
        yield [ids[item] for item in items[items != NO_ITEM]], scores


def _user_vectors(resources: Resources, accepted: Sequence[Accepted]) -> np.ndarray:
    """Of the users of requests, float32 `[requests, retrieval]`."""
    return resources.retriever().embed_users(
        [one.text.history for one in accepted], [one.handler.task for one in accepted]
    )


@gin.configurable(allowlist=["k", "max_k", "depth", "exclude_seen"])
class RetrievalAnswers(IndexHandler):
    """Ids *and* scores of the items that fit best; arguments and errors as `IndexHandler`."""

    job = "retrieval"


@gin.configurable(allowlist=["k", "max_k", "depth", "exclude_seen"])
class RerankingAnswers(IndexHandler):
    """Items of an index in the order of `Reranker`; arguments and errors as `IndexHandler`.

    Each of the towers, co-occurrence, EASE, words and the past find `depth` items.
    """

    job = "reranking"

    def __init__(self, resources: Resources, task: str, **options: Any) -> None:
        super().__init__(resources, task, **options)
        data, index = self.data, self._index
        catalogue, co_occurrence, ease = data.counted
        place_of = {item.id: place for place, item in enumerate(catalogue.items)}
        # Items that are newer than the prepared data co-occur with nothing, and stand at the end.
        new = [id_ for id_ in index.ids if id_ not in place_of]
        place_of |= {id_: len(place_of) + number for number, id_ in enumerate(new)}
        # The reranker's items, and the place of each; of items of the index, and the other way.
        self._ids, self._place_of = list(place_of), place_of
        self._of_found = np.array([place_of[id_] for id_ in index.ids])
        self._in_index = np.full(len(place_of), NO_ITEM)
        self._in_index[self._of_found] = np.arange(len(self._of_found))
        self._reranker = Reranker(
            co_occurrence,
            ease,
            [*catalogue.texts, *(data.template.item(data.items[id_]) for id_ in new)],
            catalogue.train_counts,
            resources.settings(task).ranking,
            depth=self._depth,
            offered=self._in_index != NO_ITEM,
            kinds=catalogue.kinds,
        )

    def describe(self) -> Mapping[str, Any]:
        return {**super().describe(), "reranker": dataclasses.asdict(self._reranker.weights)}

    def _ordered(
        self, requests: Sequence[Request], users: np.ndarray
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        excluded = [*map(self.excluded, requests)]
        hits, search = self._hits(excluded, users), self._index.search
        best = self._reranker.rerank(
            [self._places(item.id for _, item in one.history) for one in requests],
            [self._places(ids) for ids in excluded],
            TopK(np.where(hits.ids >= 0, self._of_found[hits.ids], hits.ids), hits.scores),
            lambda ids: search.similarities(users, np.where(ids >= 0, self._in_index[ids], ids)),
        )
        return _ids_and_scores(self._ids, best)

    def _places(self, ids: Iterable[str]) -> list[int]:
        return [self._place_of[id_] for id_ in ids if id_ in self._place_of]


class EmbeddingAnswers(Handler):
    """User vectors; one batch may mix tasks."""

    job = "embeddings"
    column_types: ClassVar[Mapping[str, str]] = {"embedding": "float"}

    def __init__(self, resources: Resources, task: str) -> None:
        resources.retriever().settings(task)
        super().__init__(resources, task)

    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        vectors = _user_vectors(self.resources, accepted)
        return [Answer({"embedding": vector}) for vector in vectors]

    def warm_up(self) -> None:
        retriever = self.resources.retriever()
        self.resources.warm_once("retriever", retriever.warm_up)
        self.resources.warm_once("items", retriever.warm_up_items)


class TowersJob(Job):
    """Jobs that compare users, or dialogues, with items by the two towers."""

    needs = "retrieval projections"
    identity = ("decoder_item_ids", "user_ids")

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`user`, the vector of each row's user or dialogue, `[rows, retrieval]`."""
        return {"user": user_embeddings(model, variables, features)}


@register
class RetrievalJob(TowersJob):
    """Ranks the whole catalogue for each user."""

    kind = "retrieval"
    handler: ClassVar[type[Handler] | None] = RetrievalAnswers
    tasks: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("retrieval", "next_items", "retrieval_rows"),
    )
    has_scores = ranks_catalogue = True

    def scores(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`similarity` `[rows, target]` of the row's user and the item that ends there."""
        users = user_embeddings(model, variables, features)
        items = item_embeddings(model, variables, features)
        return {"similarity": jnp.einsum("br,btr->bt", users, items)}

    def predict(self, evaluation: Evaluation) -> RetrievalPredictions:
        """Leaves out items already seen where repeats do not count, but never a wanted one.

        Raises:
          DataError: a row wants nothing.
        """
        found = evaluation.outputs()
        users = found["user_ids"][:, 0].astype(np.int64)
        targets = pad_targets(found["decoder_item_ids"])
        excluded = hidden_items(evaluation, users, targets)

        def past() -> list[np.ndarray]:
            return [items[-_MOST_PAST:] for items in past_of_rows(evaluation, users, targets)]

        index = evaluation.index()
        return ranked(evaluation, index, users, found["user"], targets, excluded, past)

    def metrics(
        self, evaluation: Evaluation, predictions: RetrievalPredictions
    ) -> dict[str, float]:
        """See `retrieval_metrics`; of repeats and new items apart, too."""
        catalogue = evaluation.data.prepared().catalogue()
        found = retrieval_metrics(
            predictions, len(catalogue.texts), evaluation.ks, catalogue.held_out
        )
        return found | _of_kinds(evaluation, predictions, predictions.ranks)

    def baselines(
        self, evaluation: Evaluation, predictions: RetrievalPredictions
    ) -> dict[str, dict[str, float]]:
        """See `baseline_ranks`."""
        ks = _cut_offs(evaluation)
        return {
            name: ranking.ranking_metrics(ranks, ks) | _of_kinds(evaluation, predictions, ranks)
            for name, ranks in baseline_ranks(evaluation, predictions).items()
        }

    def example_scores(self, predictions: RetrievalPredictions) -> ExampleScores:
        """Reciprocal rank of each row."""
        values = ranking.reciprocal_ranks(predictions.ranks)
        return ExampleScores("reciprocal rank", predictions.users, values)

    def columns(self, data: TaskData, predictions: RetrievalPredictions) -> Columns:
        """User, wanted items with their ranks, and the best items with their scores."""
        users = data.user_names()
        ids = np.array([item.id for item in data.prepared().catalogue().items] + [""], object)
        return {
            "user_id": np.array([users[int(user)] for user in predictions.users], object),
            "target_item_ids": ids[predictions.targets],  # -1 is the empty id at the end
            "top_item_ids": ids[predictions.top_items],
            "user_index": predictions.users,
            "targets": predictions.targets,
            "ranks": predictions.ranks,
            "top_item_indices": predictions.top_items,
            "scores": predictions.scores,
        }

    def score_columns(self, data: TaskData, found: Found) -> Columns:
        """User, item and similarity for each item of the rows."""
        rows, positions = np.nonzero(found["decoder_item_ids"] >= 0)
        users, items = found["user_ids"][rows, 0], found["decoder_item_ids"][rows, positions]
        similarity = {"similarity": found["similarity"][rows, positions]}
        return candidate_names(data, users, items) | similarity


def ranked(
    evaluation: Evaluation,
    index: CatalogueIndex,
    users: np.ndarray,
    vectors: np.ndarray,
    targets: np.ndarray,
    excluded: Sequence[np.ndarray],
    past: Callable[[], Sequence[np.ndarray]],
    name: str = "",
) -> RetrievalPredictions:
    """The catalogue ranked for users by the two towers, and by the evaluation's reranker, if any.

    Args:
      index: of the catalogue.
      users: int64 `[n]`. vectors: theirs, float32 `[n, retrieval]`.
      targets: wanted items, int64 `[n, m]`; -1 is padding.
      excluded, past, name: see `Retrieval`.
    """
    top = index.top_k(vectors, min(evaluation.depth, index.num_items), excluded)
    by_towers = RetrievalPredictions(
        users=users,
        targets=targets,
        ranks=index.ranks(vectors, targets, excluded),
        top_items=top.ids.astype(np.int64),
        scores=top.scores,
        num_ranked=index.num_items - np.array(list(map(len, excluded)), np.int64),
    )

    def similarities(rows: slice, ids: np.ndarray) -> np.ndarray:
        return index.similarities(vectors[rows], ids)

    return evaluation.reranked(Retrieval(by_towers, excluded, past, similarities, name))


def baseline_ranks(
    evaluation: Evaluation, predictions: RetrievalPredictions
) -> dict[str, np.ndarray]:
    """Ranks `[n, m]` of the wanted items by each baseline, as `predictions.ranks`.

    By popularity; by co-occurrence with the user's last items; by EASE; where repeats count, by
    what the user had most often; where the predictions are reranked, by the two towers alone and by
    the hybrid without them.
    """
    prepared, users = evaluation.data.prepared(), predictions.users
    hidden = hidden_items(evaluation, users, predictions.targets)

    def ranked(
        preferred: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> np.ndarray:
        counts = prepared.catalogue().train_counts
        return popularity_ranks(counts, predictions.targets, hidden, preferred)

    found = {"popularity": ranked()}
    past = past_of_rows(evaluation, users, predictions.targets)
    co_occurrence, ease = prepared.co_occurrence(), prepared.ease()
    found["co_occurrence"] = ranked(lambda row: co_occurrence.related(past[row], hidden[row]))
    found["ease"] = ranked(lambda row: ease.related(past[row], hidden[row]))
    own = own_counts(evaluation)
    if own is not None:
        found["user_item_times"] = ranked(lambda row: own.of_user(int(users[row])))
    if predictions.towers_ranks is not None:
        found[TWO_TOWERS] = predictions.towers_ranks
    if predictions.rest_ranks is not None:
        found["hybrid_without_model"] = predictions.rest_ranks
    return found


def _of_kinds(
    evaluation: Evaluation, predictions: RetrievalPredictions, ranks: np.ndarray
) -> dict[str, float]:
    """Metrics of ranks `[n, m]`, of repeats and of new items apart."""
    present, ks = predictions.targets >= 0, _cut_offs(evaluation)
    users = np.broadcast_to(predictions.users[:, None], present.shape)

    def metrics(wanted: np.ndarray) -> dict[str, float]:
        kept = np.full(ranks.shape, ranking.NO_TARGET)
        kept[present] = np.where(wanted, ranks[present], ranking.NO_TARGET)
        kept = kept[(kept != ranking.NO_TARGET).any(axis=1)]
        return ranking.ranking_metrics(kept, ks) | {"num_examples": float(len(kept))}

    return metrics_apart(evaluation, users[present], predictions.targets[present], metrics)


def _cut_offs(evaluation: Evaluation) -> tuple[int, ...]:
    num_items = len(evaluation.data.prepared().catalogue().items)
    return tuple(k for k in evaluation.ks if k <= num_items)


def retrieval_metrics(
    predictions: RetrievalPredictions,
    num_items: int,
    ks: Sequence[int] = DEFAULT_KS,
    held_out: np.ndarray | None = None,
) -> dict[str, float]:
    """`hit_rate@k`, `ndcg@k`, `mrr`, `coverage@k` of the lists, `num_examples`.

    Args:
      predictions: of users.
      num_items: of the catalogue; larger k than that are left out.
      ks: cut-offs.
      held_out: bool `[items]`: items never trained on. Given and wanted by some row, the same
        metrics over those rows alone are added as `held_out/...`, with `held_out/chance@k`, the
        hit rate of a random order of the items that were ranked.
    """
    ks = tuple(k for k in ks if k <= num_items)
    metrics = ranking.ranking_metrics(predictions.ranks, ks)
    length = predictions.top_items.shape[1]
    metrics[f"coverage@{length}"] = ranking.coverage(predictions.top_items, num_items)
    metrics["num_examples"] = float(len(predictions.users))
    if held_out is not None:
        wanted = predictions.targets >= 0
        unseen = held_out[np.where(wanted, predictions.targets, 0)] & wanted
        rows = unseen.any(axis=1)
        if rows.any():
            ranks = np.where(unseen, predictions.ranks, ranking.NO_TARGET)[rows]
            of_unseen = ranking.ranking_metrics(ranks, ks) | {"num_examples": float(rows.sum())}
            ranked, wanted_by_row = predictions.num_ranked[rows], unseen[rows].sum(axis=1)
            for k in ks:
                of_unseen[f"chance@{k}"] = ranking.chance_hit_rate(ranked, wanted_by_row, k)
            metrics |= {f"held_out/{name}": value for name, value in of_unseen.items()}
    return metrics


def pad_targets(item_ids: np.ndarray) -> np.ndarray:
    """Wanted items of each row, first come first: `[n, target]` with -1 between, to `[n, m]`.

    An item that a row wants twice (a repeated purchase) is wanted once: it has one rank in a list.

    Raises:
      DataError: a row has none.
    """
    wanted = [list(dict.fromkeys(row[row >= 0].tolist())) for row in item_ids]
    if not all(wanted):
        raise DataError(f"{wanted.count([])} rows want no item; is this a retrieval task?")
    padded = np.full((len(wanted), max(map(len, wanted))), -1, np.int64)
    for row, items in zip(padded, wanted, strict=True):
        row[: len(items)] = items
    return padded


@register
class RerankingJob(RetrievalJob):
    """The best ranking that there is, see `engine.index.reranking`: asked of tasks of retrieval."""

    kind = "reranking"
    handler = RerankingAnswers
    tasks = ()
    asked_of = ("retrieval",)


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingPredictions:
    """Unit vectors.

    Attributes:
      users: int64 `[n]`, indices into the users table, one for each row of the task.
      user_vectors: float32 `[n, retrieval]`.
      item_vectors: float32 `[items, retrieval]`, of the whole catalogue.
    """

    users: np.ndarray
    user_vectors: np.ndarray
    item_vectors: np.ndarray


@register
class EmbeddingsJob(TowersJob):
    """Vectors of users and items."""

    kind = "embeddings"
    handler = EmbeddingAnswers
    tasks = (("embeddings", "next_items", "retrieval_rows"),)
    asked_of = ("retrieval", "embeddings")

    def predict(self, evaluation: Evaluation) -> EmbeddingPredictions:
        outputs = evaluation.outputs()
        texts = evaluation.data.prepared().catalogue().texts
        return EmbeddingPredictions(
            outputs["user_ids"][:, 0].astype(np.int64),
            outputs["user"],
            evaluation.retriever().embed_items(texts),
        )

    def metrics(
        self, evaluation: Evaluation, predictions: EmbeddingPredictions
    ) -> dict[str, float]:
        """`num_examples` and `num_items`: what vectors are good for, retrieval measures."""
        return {
            "num_examples": float(len(predictions.users)),
            "num_items": float(len(predictions.item_vectors)),
        }

    def columns(self, data: TaskData, predictions: EmbeddingPredictions) -> Columns:
        """`kind` ('user' or 'item'), `id` and `embedding`: users in the rows' order, then items."""
        names, items = data.user_names(), data.prepared().catalogue().items
        users = [names[int(user)] for user in predictions.users]
        return {
            "kind": np.array(["user"] * len(users) + ["item"] * len(items), object),
            "id": np.array([*users, *(item.id for item in items)], object),
            "embedding": np.concatenate([predictions.user_vectors, predictions.item_vectors]),
        }
