"""Evaluation of items recommended in dialogues: by writing their titles, and by the two towers.

Every recommended item of the data is one example, as in the literature (Chen et al., 2019). Figures
are given twice: over all examples and all items; and, as `new/...`, over those items that nobody
had named before, with the named ones out of the way: repeating what was said is otherwise the
easiest way to a good recall.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m6rec_jax.engine.catalogue_index import CatalogueIndex
from m6rec_jax.engine.generation import Generator
from m6rec_jax.engine.runtime import Runtime
from m6rec_jax.engine.shared_titles import SharedTitles
from m6rec_jax.engine.title_trie import TitleTrie
from m6rec_jax.errors import DataError
from m6rec_jax.evaluation import programs
from m6rec_jax.evaluation.predictions import LanguagePredictions, RecommendationPredictions
from m6rec_jax.evaluation.tasks import language_metrics, pad_targets
from m6rec_jax.metrics import ranking

Rows = Sequence[Mapping[str, Any]]


def recommend_titles(
    generator: Generator,
    task: str,
    trie: TitleTrie,
    rows: Rows,
    language: LanguagePredictions,
    k: int,
    shared: SharedTitles | None = None,
) -> RecommendationPredictions:
    """Titles of the catalogue, by beam search.

    Args:
      generator: of the model.
      task: whose prompts are used.
      trie: of the catalogue.
      rows: of the view 'recommendations'.
      language: how likely the model finds the titles that were recommended.
      k: length of the lists, and beams; at most as many as there are titles.
      shared: orders the items of one title; None: they stand in the catalogue's order.

    Raises:
      DataError: there are no rows.
    """
    _check(rows)
    sources = [row["source"] for row in rows]
    seen = [_named(row).tolist() for row in rows]
    k = min(k, len(trie))
    tasks = [task] * len(rows)
    known = None if shared is None else shared.item_scores(sources)
    # An empty list for everybody: with it and without it are one program.
    of_all, of_new = (
        generator.recommend(sources, trie, k, item_scores=known, tasks=tasks, seen=named)
        for named in ([()] * len(rows), seen)
    )
    lists = [[_flat(found, k) for found in kind] for kind in (of_all, of_new)]
    items, scores = (np.array([[one[i] for one in kind] for kind in lists]) for i in (0, 1))
    targets = _targets(rows)
    return RecommendationPredictions(
        rows=rows,
        top_items=items[1].astype(np.int64),
        scores=scores[1].astype(np.float32),
        ranks=ranking.target_ranks(items[0], targets),
        new_ranks=ranking.target_ranks(items[1], targets),
        language=language,
    )


def recommend_items(
    program: programs.Program,
    variables: Mapping[str, Any],
    batches: Any,
    runtime: Runtime,
    index: CatalogueIndex,
    rows: Rows,
    k: int,
) -> RecommendationPredictions:
    """Items of the catalogue, by the similarity of dialogue and item.

    Args:
      program: of `programs.retrieval_program`.
      variables, batches, runtime: see `tasks.predict_retrieval`.
      index: the catalogue.
      rows: of the view 'recommendations', at least those that the batches are made of.
      k: length of the lists.

    Raises:
      DataError: there are no rows.
    """
    _check(rows)
    found = programs.run_program(program, variables, batches, runtime)
    # A turn has a row for each of its items.
    by_turn = {(row["turn_index"], int(row["item_indices"][0])): row for row in rows}
    turns, items = found["user_ids"][:, 0], pad_targets(found["decoder_item_ids"])[:, 0]
    ordered = [by_turn[one] for one in zip(turns.tolist(), items.tolist(), strict=True)]
    targets = _targets(ordered)[:, None]
    named = [_named(row) for row in ordered]
    nobody = [np.zeros(0, np.int64)] * len(ordered)
    # A target that was named before is left in here; `new/...` leaves its row out.
    others = [np.setdiff1d(seen, wanted) for seen, wanted in zip(named, targets, strict=True)]
    top = index.top_k(found["user"], min(k, index.num_items), named)
    return RecommendationPredictions(
        rows=ordered,
        top_items=top.ids.astype(np.int64),
        scores=top.scores,
        ranks=index.ranks(found["user"], targets, nobody)[:, 0],
        new_ranks=index.ranks(found["user"], targets, others)[:, 0],
    )


def recommendation_metrics(
    predictions: RecommendationPredictions, train_counts: np.ndarray, ks: Sequence[int]
) -> dict[str, float]:
    """`recall@k` and `new/recall@k`, the same of `popularity/...`, and how many examples.

    Args:
      predictions: of `recommend_titles` or `recommend_items`.
      train_counts: how often each item is recommended in training `[items]`.
      ks: cut-offs; larger ones than the catalogue are left out.
    """
    rows = predictions.rows
    targets = _targets(rows)
    is_new = np.array([t not in row["seen_indices"] for t, row in zip(targets, rows, strict=True)])
    # Of equally popular items the earlier one comes first, as a stable sort has it.
    order = np.argsort(-train_counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    popular = place[targets] + 1
    ahead = [(place[_named(row)] < place[t]).sum() for t, row in zip(targets, rows, strict=True)]
    ranks = {"": predictions.ranks, "popularity/": popular}
    new = {"new/": predictions.new_ranks, "popularity/new/": popular - np.array(ahead)}
    figures = {"num_examples": float(len(rows)), "new/num_examples": float(is_new.sum())}
    for k in (k for k in ks if k <= len(train_counts)):
        for prefix, found in ranks.items():
            figures[f"{prefix}recall@{k}"] = ranking.hit_rate(found, k)
        if is_new.any():
            for prefix, found in new.items():
                figures[f"{prefix}recall@{k}"] = ranking.hit_rate(found[is_new], k)
    if predictions.language is not None:
        figures |= language_metrics(predictions.language)
    return figures


def _check(rows: Rows) -> None:
    if not rows:
        raise DataError("no item is recommended in these dialogues; is the split empty?")


def _targets(rows: Rows) -> np.ndarray:
    return np.array([int(row["item_indices"][0]) for row in rows], np.int64)


def _named(row: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(row["seen_indices"], np.int64)


def _flat(titles: Sequence[Any], k: int) -> tuple[list[int], list[float]]:
    """k items of titles in their order, all that share one; -1 where there are fewer."""
    places = [(place, title.score) for title in titles for place in title.places][:k]
    places += [(-1, -np.inf)] * (k - len(places))
    return [place for place, _ in places], [score for _, score in places]
