"""Items recommended in dialogues, by the similarity of dialogue and item (the two towers), and by
what else is known of the items that were named (`engine.index.reranking`).

Every recommended item of the data is one example, as in the literature (Chen et al., 2019). Metrics
are given twice: `recall@k` over all examples and all items, and `new/recall@k` over those items
that nobody had named before, with the named ones left out: repeating what was said is otherwise the
easiest way to a good recall. `popularity/...` are those of the most popular items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from m6rec_jax.engine.index.catalogue_index import NO_ITEM
from m6rec_jax.jobs.generation import row_columns, source_column
from m6rec_jax.jobs.job import Columns, Evaluation, Job, Row, TaskData, register
from m6rec_jax.jobs.language import LanguagePredictions, language_metrics
from m6rec_jax.jobs.retrieval import RetrievalPredictions, TowersJob, pad_targets, ranked
from m6rec_jax.metrics import ranking

# Of weights that were learnt where items come again that were named before.
ALL_ITEMS = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class RecommendationPredictions:
    """One entry per recommended item of a dialogue.

    Attributes:
      rows: of the view 'recommendations'.
      top_items: int64 `[n, k]`, best first, without items named before; -1 where fewer are left.
      scores: float32 `[n, k]`, log probabilities of titles or cosine similarities.
      ranks: int64 `[n]`, of the item among all items.
      new_ranks: int64 `[n]`, of the item among those that were not named before; `new/...` leaves
        out the rows of an item that was.
      towers_ranks: both by the two towers alone, where the hybrid orders.
      language: how likely the titles are, where they are generated.
    """

    rows: Sequence[Row]
    top_items: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    new_ranks: np.ndarray
    towers_ranks: tuple[np.ndarray, np.ndarray] | None = None
    language: LanguagePredictions | None = None


class RecommendationJob(Job):
    """What both ways to recommend in a dialogue share."""

    def metrics(
        self, evaluation: Evaluation, predictions: RecommendationPredictions
    ) -> dict[str, float]:
        """See `recommendation_metrics`."""

        def counted() -> np.ndarray:
            data, prepared = evaluation.data, evaluation.data.prepared()
            trains = "train" in prepared.num_rows(data.view)
            rows = list(data.rows(("item_indices",), part="train")) if trains else []
            return np.bincount(target_items(rows), minlength=len(prepared.catalogue().items))

        counts = evaluation.once("recommended", counted)
        return recommendation_metrics(predictions, counts, evaluation.ks)

    def columns(self, data: TaskData, predictions: RecommendationPredictions) -> Columns:
        """The title that was recommended, its ranks, the best items and the dialogue."""
        titles = np.array([*data.prepared().catalogue().texts, ""], object)
        return row_columns(predictions.rows, ("text_id", "user_id")) | {
            "title": row_columns(predictions.rows, ("target",))["target"],
            "ranks": predictions.ranks,
            "new_ranks": predictions.new_ranks,
            "top_item_indices": predictions.top_items,
            "scores": predictions.scores,
            "source": source_column(predictions.rows),
            "top_titles": titles[predictions.top_items],
        }


@register
class ItemRecommendationJob(RecommendationJob, TowersJob):
    """Ranks the catalogue for each dialogue by the two towers."""

    kind = "item_recommendation"
    ranks_catalogue = True

    def predict(self, evaluation: Evaluation) -> RecommendationPredictions:
        rows, outputs = evaluation.rows(), evaluation.outputs()
        # A turn has a row for each of its items.
        by_turn = {(row["turn_index"], int(row["item_indices"][0])): row for row in rows}
        turns, items = outputs["user_ids"][:, 0], pad_targets(outputs["decoder_item_ids"])[:, 0]
        ordered = [by_turn[one] for one in zip(turns.tolist(), items.tolist(), strict=True)]
        targets = target_items(ordered)[:, None]
        named = [named_items(row) for row in ordered]
        nobody = [np.zeros(0, np.int64)] * len(ordered)
        is_new = [wanted not in seen for wanted, seen in zip(targets[:, 0], named, strict=True)]
        others = np.where(np.array(is_new)[:, None], targets, NO_ITEM)
        index, places = evaluation.index(), np.arange(len(ordered))

        def listed(name: str, targets: np.ndarray, out: list[np.ndarray]) -> RetrievalPredictions:
            vectors = outputs["user"]
            return ranked(evaluation, index, places, vectors, targets, out, lambda: named, name)

        # In use nothing is recommended that was named: that is what the task is, without a name.
        new, all_ = listed("", others, named), listed(ALL_ITEMS, targets, nobody)
        towers_ranks = None
        if all_.towers_ranks is not None and new.towers_ranks is not None:
            towers_ranks = all_.towers_ranks[:, 0], new.towers_ranks[:, 0]
        return RecommendationPredictions(
            ordered,
            new.top_items,
            new.scores,
            all_.ranks[:, 0],
            new.ranks[:, 0],
            towers_ranks,
        )


def recommendation_metrics(
    predictions: RecommendationPredictions, train_counts: np.ndarray, ks: Sequence[int]
) -> dict[str, float]:
    """`recall@k` and `new/recall@k`, the same of `popularity/...` and, where the hybrid orders, of
    `two_towers/...`, and how many examples.

    Args:
      predictions: of dialogues.
      train_counts: how often each item is recommended in training `[items]`.
      ks: cut-offs; larger ones than the catalogue are left out.
    """
    rows = predictions.rows
    targets = target_items(rows)
    is_new = np.array([t not in row["seen_indices"] for t, row in zip(targets, rows, strict=True)])
    # Of equally popular items the earlier one comes first, as a stable sort has it.
    order = np.argsort(-train_counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    popular = rank[targets] + 1
    ahead = [(rank[named_items(row)] < rank[t]).sum() for t, row in zip(targets, rows, strict=True)]
    ranks = {"": predictions.ranks, "popularity/": popular}
    new = {"new/": predictions.new_ranks, "popularity/new/": popular - np.array(ahead)}
    if predictions.towers_ranks is not None:
        ranks["two_towers/"], new["two_towers/new/"] = predictions.towers_ranks
    metrics = {"num_examples": float(len(rows)), "new/num_examples": float(is_new.sum())}
    for k in (k for k in ks if k <= len(train_counts)):
        for prefix, ranks_of in ranks.items():
            metrics[f"{prefix}recall@{k}"] = ranking.hit_rate(ranks_of, k)
        if is_new.any():
            for prefix, ranks_of in new.items():
                metrics[f"{prefix}recall@{k}"] = ranking.hit_rate(ranks_of[is_new], k)
    if predictions.language is not None:
        metrics |= language_metrics(predictions.language)
    return metrics


def target_items(rows: Sequence[Row]) -> np.ndarray:
    """The item that each row recommends, `[n]`."""
    return np.array([int(row["item_indices"][0]) for row in rows], np.int64)


def named_items(row: Row) -> np.ndarray:
    """Items that the dialogue has named before."""
    return np.asarray(row["seen_indices"], np.int64)
