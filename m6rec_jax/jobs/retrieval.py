"""Retrieval: the items of the whole catalogue that fit a user best, by the two towers.

Metrics: `hit_rate@k`, `ndcg@k`, `mrr`, `coverage@k`; the same over items never trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import gin
import jax.numpy as jnp
import numpy as np

from m6rec_jax.engine.index.catalogue_index import TopK
from m6rec_jax.engine.index.retrieval import item_embeddings, user_embeddings
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.answering import Accepted, Answerer
from m6rec_jax.jobs.index_search import IndexAnswerer, RetrievalTask, Retrieved
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
    register,
)
from m6rec_jax.jobs.parts import Parts
from m6rec_jax.jobs.past_items import (
    hidden_items,
    own_counts,
    past_of_rows,
    prefixed,
    ranks_apart,
)
from m6rec_jax.metrics import ranking
from m6rec_jax.metrics.baselines import popularity_ranks
from m6rec_jax.model import M6Rec

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
        return evaluation.reranked(
            predictions,
            lambda: rows_of_predictions(evaluation, predictions, excluded),
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
        users = data.user_names()
        ids = np.array([item.id for item in data.prepared().catalogue().items], object)
        return {
            "user_id": np.array([users[int(user)] for user in found["user_ids"][rows, 0]], object),
            "item_id": ids[found["decoder_item_ids"][rows, positions]],
            "similarity": found["similarity"][rows, positions],
        }

    def answerer(self, parts: Parts) -> Answerer[Any]:
        return RetrievalAnswers(parts)


def rows_of_predictions(
    evaluation: Evaluation,
    predictions: RetrievalPredictions,
    excluded: Sequence[np.ndarray],
) -> ReadRows:
    """The rows of predictions, in their order; of very long histories the last items."""
    past = past_of_rows(evaluation, predictions.users, predictions.targets)
    return ReadRows([items[-_MOST_PAST:] for items in past], excluded)


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
    found = _in_front(item_ids)
    order = np.argsort(found, axis=1, kind="stable")  # of equal ones the first stays first
    ascending = np.take_along_axis(found, order, axis=1)
    repeated = np.zeros(found.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
    return _in_front(np.where(repeated, -1, found))


def _in_front(item_ids: np.ndarray) -> np.ndarray:
    """Without the -1 between: `[n, target]` to `[n, m]`, -1 at the ends of shorter rows."""
    present = item_ids >= 0
    counts = present.sum(axis=1)
    if (counts == 0).any():
        raise DataError(f"{int((counts == 0).sum())} rows want no item; is this a retrieval task?")
    order = np.argsort(~present, axis=1, kind="stable")[:, : int(counts.max())]
    return np.take_along_axis(item_ids, order, axis=1).astype(np.int64)


@gin.configurable(allowlist=["k", "max_k", "depth", "exclude_seen"])
class RetrievalAnswers(IndexAnswerer[RetrievalTask]):
    """Ids *and* scores of the items that fit best; arguments and errors as `IndexAnswerer`."""

    def open_task(self, task: str) -> RetrievalTask:
        self.parts.retriever().check_task(task)
        index, items = self.parts.index(task), self.parts.data(task).items
        if items and (lost := [id_ for id_ in index.ids if id_ not in items]):
            raise DataError(
                f"the index of '{task}' has the item {lost[0]!r}, which the catalogue lacks (and "
                f"{len(lost) - 1} more): build it anew with this catalogue"
            )
        return RetrievalTask(self.parts.renderer(task), index, items)

    def retrieval(self, task: str) -> RetrievalTask:
        return self.of_task(task)

    def results(
        self, task: str, accepted: Sequence[Accepted], users: np.ndarray, found: TopK
    ) -> list[Retrieved]:
        own = self.of_task(task)
        results = []
        for one, items, scores in zip(accepted, found.ids, found.scores, strict=True):
            ids = [own.index.ids[item] for item in items[items >= 0]]
            k = one.request.k or self.default_k
            results.append(self.listed(task, ids, scores, k, own.catalogue))
        return results
