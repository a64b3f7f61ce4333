"""Retrieval: the items of the whole catalogue that fit a user best, by the two towers.

Metrics: `hit_rate@k`, `ndcg@k`, `mrr`, `coverage@k`; the same over items never trained on.

`embeddings` gives the vectors of users and items themselves, for a vector database:

    m6rec infer --gin.MODEL_DIR=runs/retrieval --output vectors.parquet \
        --gin.MIXTURE_OR_TASK_NAME=movielens_100k_leave_one_out_embeddings
    m6rec infer --gin.MODEL_DIR=runs/retrieval --gin.JOB=embeddings \
        --requests users.jsonl --output vectors.jsonl
    rec.answer(rows, job="embeddings"); rec.embed_items()

Its metrics are `alignment` and `uniformity` of Wang and Isola (2020), which need no ranking: how
close users are to the items they want, and how evenly items fill the sphere. Lower is better.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.candidates.rows import pack_texts
from m6rec_jax.engine.index.catalogue_index import TopK
from m6rec_jax.engine.index.retrieval import item_embeddings, user_embeddings
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import (
    Accepted,
    Answer,
    Handler,
    check_default_k,
    check_finite,
    check_k,
    excluded_ids,
    grouped,
    scored,
)
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
from m6rec_jax.jobs.past_items import (
    hidden_items,
    own_counts,
    past_of_rows,
    prefixed,
    ranks_apart,
)
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.metrics import ranking
from m6rec_jax.metrics.baselines import popularity_ranks
from m6rec_jax.model import M6Rec
from m6rec_jax.requests.rendering import RequestText
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


# Items of a history that are known beside its text.
_MOST_PAST = 1000
# Pairs of items that uniformity is averaged over, at most.
_MOST_PAIRS = 1_000_000
# What a reranked list is compared with.
TWO_TOWERS = "two_towers"


class ReadRows(NamedTuple):
    """What stands in rows that items are recommended for.

    Attributes:
      past: per row, the items of the history, oldest first.
      excluded: per row, items that are not recommended.
    """

    past: Sequence[np.ndarray]
    excluded: Sequence[np.ndarray]


@register
class RetrievalJob(Job):
    """Ranks the whole catalogue for each user."""

    kind = "retrieval"
    needs = "retrieval projections"
    tasks: ClassVar[tuple[tuple[str, str, str], ...]] = (
        ("retrieval", "next_items", "retrieval_rows"),
    )
    identity = ("decoder_item_ids", "user_ids")
    has_scores = ranks_catalogue = True

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`user`, the embedding of each row's user, `[rows, retrieval]`."""
        return {"user": user_embeddings(model, variables, features)}

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
        index = evaluation.index()
        top = index.top_k(found["user"], min(evaluation.depth, index.num_items), excluded)
        predictions = RetrievalPredictions(
            users=users,
            targets=targets,
            ranks=index.ranks(found["user"], targets, excluded),
            top_items=top.ids.astype(np.int64),
            scores=top.scores,
            num_ranked=index.num_items - np.array([len(items) for items in excluded], np.int64),
        )

        def read() -> ReadRows:
            past = past_of_rows(evaluation, users, targets)
            return ReadRows([items[-_MOST_PAST:] for items in past], excluded)

        return evaluation.reranked(
            predictions,
            read,
            lambda rows, ids: index.similarities(found["user"][rows], ids),
        )

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

    def handler(self, resources: Resources, task: str) -> Handler:
        return RetrievalAnswers(resources, task)


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
    found: dict[str, float] = {}
    users, targets, ks = predictions.users, predictions.targets, _cut_offs(evaluation)
    for name, own in ranks_apart(evaluation, users, targets, ranks):
        metrics = ranking.ranking_metrics(own, ks) | {"num_examples": float(len(own))}
        found |= prefixed(name, metrics)
    return found


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


class IndexHandler(Handler):
    """Answers with items of an index, in the order of the two towers' similarities.

    Args:
      resources, task: see `Handler`.
      k: how many items, for requests that do not say.
      max_k: the most a request may ask for, at most `depth`.
      depth: so many are searched for in any case, so that all requests run the same program; None:
        100, or `max_k` where that is more. More where many items share a text.
      exclude_seen: leave out the items of a request's behaviours, beside those of its `exclude`;
        None: where the data set's repeats do not count.

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
        self._name = type(self).__name__
        check_default_k(k, max_k, self._name)
        self._depth = max(max_k, 100) if depth is None else depth
        if max_k > self._depth:
            raise ConfigError(f"{self._name}.max_k = {max_k} is more than depth = {depth}")
        self.default_k, self.max_k = k, max_k
        resources.retriever().settings(task)
        self._index = index = resources.index(task)
        super().__init__(resources, task)
        items = self.data.items
        if items and (lost := [id_ for id_ in index.ids if id_ not in items]):
            raise DataError(
                f"the index of '{task}' has the item {lost[0]!r}, which the catalogue lacks (and "
                f"{len(lost) - 1} more): build it anew with this catalogue"
            )
        self._hides_seen = resources.hides_seen(task, exclude_seen)

    def render(self, request: Request) -> RequestText:
        check_k(request, self.max_k, f"{self._name}.max_k")
        return super().render(request)

    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        users = self.resources.retriever().embed_users(
            [one.text.history for one in accepted], [one.handler.task for one in accepted]
        )
        check_finite(accepted, users)

        def answer(handler: Any, places: list[int]) -> list[Answer]:
            return handler._search([accepted[place].request for place in places], users[places])

        return grouped(range(len(accepted)), lambda place: accepted[place].handler, answer)

    def describe(self) -> Mapping[str, Any]:
        manifest = self._index.manifest
        return {
            "k": self.default_k,
            "max_k": self.max_k,
            "depth": self._depth,
            "index": [manifest.model, manifest.content],
            "exclude_seen": self._hides_seen,
        }

    def warm_up(self) -> None:
        self.resources.warm_once("retriever", self.resources.retriever().warm_up)
        self._index.search.warm_up(self._depth, self.resources.batch_sizes)

    def _search(self, requests: Sequence[Request], users: np.ndarray) -> list[Answer]:
        """Answers requests of users `[requests, retrieval]`."""
        excluded = [excluded_ids(request, self._hides_seen) for request in requests]
        hits = self._index.top_k(users, self._depth, excluded, self.resources.batch_sizes)
        lists = self._ordered(requests, excluded, users, hits)
        return [
            self._listed(ids, scores, request.k or self.default_k)
            for request, (ids, scores) in zip(requests, lists, strict=True)
        ]

    def _ordered(
        self,
        requests: Sequence[Request],
        excluded: Sequence[Sequence[str]],
        users: np.ndarray,
        hits: TopK,
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Ids of the items for each request, best first, and their scores, which may go on.

        Args:
          requests: of this task.
          excluded: of each request, ids that must not come.
          users: their vectors, `[requests, retrieval]`.
          hits: each request's nearest items, as places in the index, best first.
        """
        del requests, excluded, users
        for items, scores in zip(hits.ids, hits.scores, strict=True):
            yield [self._index.ids[item] for item in items[items >= 0]], scores

    def _listed(self, ids: Sequence[str], scores: np.ndarray, k: int) -> Answer:
        """The k best of ordered ones; of items with the same text, which tie, only the first.

        There are fewer where the items have fewer texts.
        """
        catalogue, places = self.data.items, dict[str, int]()
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


@gin.configurable(allowlist=["k", "max_k", "depth", "exclude_seen"])
class RetrievalAnswers(IndexHandler):
    """Ids *and* scores of the items that fit best; arguments and errors as `IndexHandler`."""

    job = "retrieval"


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingPredictions:
    """Unit vectors.

    Attributes:
      users: int64 `[n]`, indices into the users table, one for each row of the task.
      user_vectors: float32 `[n, retrieval]`.
      targets: int64 `[n, m]`, items that came next; -1 is padding.
      item_vectors: float32 `[items, retrieval]`, of the whole catalogue.
    """

    users: np.ndarray
    user_vectors: np.ndarray
    targets: np.ndarray
    item_vectors: np.ndarray


@register
class EmbeddingsJob(Job):
    """Vectors of users and items."""

    kind = "embeddings"
    needs = "retrieval projections"
    tasks = (("embeddings", "next_items", "retrieval_rows"),)
    asked_of = ("retrieval", "embeddings")
    identity = ("decoder_item_ids", "user_ids")

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`user`, the vector of each row's user, `[rows, retrieval]`."""
        return {"user": user_embeddings(model, variables, features)}

    def predict(self, evaluation: Evaluation) -> EmbeddingPredictions:
        outputs = evaluation.outputs()
        texts = evaluation.data.prepared().catalogue().texts
        return EmbeddingPredictions(
            outputs["user_ids"][:, 0].astype(np.int64),
            outputs["user"],
            pad_targets(outputs["decoder_item_ids"]),
            evaluation.retriever().embed_items(texts),
        )

    def metrics(
        self, evaluation: Evaluation, predictions: EmbeddingPredictions
    ) -> dict[str, float]:
        """`alignment`, `uniformity`, `num_examples`, `num_items`."""
        del evaluation
        wanted = predictions.targets >= 0
        rows = np.nonzero(wanted)[0]
        users = predictions.user_vectors[rows].astype(np.float64)
        items = predictions.item_vectors[predictions.targets[wanted]].astype(np.float64)
        return {
            "alignment": float(np.mean(np.sum((users - items) ** 2, axis=1))),
            "uniformity": uniformity(predictions.item_vectors),
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

    def handler(self, resources: Resources, task: str) -> Handler:
        return EmbeddingAnswers(resources, task)


def uniformity(vectors: np.ndarray) -> float:
    """log mean exp(-2 |x - y|²) over pairs of unit vectors `[n, dim]`, at most `_MOST_PAIRS` drawn.

    Raises:
      DataError: there is no pair.
    """
    number = len(vectors)
    if number < 2:
        raise DataError("uniformity needs at least two items")
    if number * (number - 1) <= 2 * _MOST_PAIRS:
        first, second = np.triu_indices(number, 1)
    else:
        first, second = np.random.default_rng(0).integers(number, size=(2, _MOST_PAIRS))
        first, second = first[first != second], second[first != second]
    similarity = np.einsum("nd,nd->n", vectors[first], vectors[second], dtype=np.float64)
    return float(np.log(np.mean(np.exp(-2.0 * (2.0 - 2.0 * similarity)))))


class EmbeddingAnswers(Handler):
    """User vectors; one batch may mix tasks."""

    job = "embeddings"
    column_types: ClassVar[Mapping[str, str]] = {"embedding": "float"}

    def __init__(self, resources: Resources, task: str) -> None:
        resources.retriever().settings(task)
        super().__init__(resources, task)

    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        vectors = self.resources.retriever().embed_users(
            [one.text.history for one in accepted], [one.handler.task for one in accepted]
        )
        check_finite(accepted, vectors)
        return [Answer({"embedding": vector}) for vector in vectors]

    def warm_up(self) -> None:
        self.resources.warm_once("retriever", self.resources.retriever().warm_up)
        self.resources.warm_once("items", self._warm_up_items)

    def _warm_up_items(self) -> None:
        """Compiles what embeds items given as text, for every number of rows."""
        retriever = self.resources.retriever()
        length = retriever.options.target_length
        texts = ["a"] * length
        packed = pack_texts(retriever.vocabulary, texts, length, retriever.candidate_length)
        per_row = -(-len(texts) // len(packed.rows))
        for size in self.resources.batch_sizes:
            retriever.embed_items(["a"] * (per_row * size), self.task)
