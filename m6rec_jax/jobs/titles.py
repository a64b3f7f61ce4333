"""Items recommended in dialogues by generating their titles: a beam search within the catalogue.

Metrics: those of `dialogue_items`, and the likelihood of the titles that were recommended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from m6rec_jax.engine.likelihood import token_sums
from m6rec_jax.engine.shared_titles import SharedTitles
from m6rec_jax.engine.title_trie import TitleTrie
from m6rec_jax.jobs.dialogue_items import (
    RecommendationJob,
    RecommendationPredictions,
    check_rows,
    named_items,
    target_items,
)
from m6rec_jax.jobs.generation import evaluated_rows
from m6rec_jax.jobs.job import Array, Evaluation, Features, Variables, register
from m6rec_jax.jobs.language import LanguagePredictions
from m6rec_jax.metrics import ranking
from m6rec_jax.model import M6Rec


@register
class TitleRecommendationJob(RecommendationJob):
    """The likeliest titles of the catalogue for each dialogue.

    Items of one title are ordered by the two towers where a task of them is evaluated beside this
    one; else they stay in the catalogue's order.
    """

    kind = "title_recommendation"

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`TokenSums` of the titles that were recommended, `[rows]`."""
        return token_sums(model, variables, features)._asdict()

    def predict(self, evaluation: Evaluation) -> RecommendationPredictions:
        """Raises DataError where there are no rows."""
        language = LanguagePredictions.of(evaluation.outputs())
        generator, texts = evaluation.generator(), evaluation.data.prepared().catalogue().texts
        trie = evaluation.once(
            "titles", lambda: TitleTrie(generator.vocabulary, texts, generator.max_tokens)
        )
        rows = evaluated_rows(evaluation)
        check_rows(rows)
        sources = [row["source"] for row in rows]
        towers = evaluation.beside("item_recommendation")
        scores = None
        if towers is not None:
            scores = SharedTitles(towers.retriever(), trie, texts).item_scores(sources)
        k = min(max(evaluation.ks), len(trie))
        tasks = [evaluation.data.name] * len(rows)
        # An empty list for everybody: with it and without it are one program.
        of_all, of_new = (
            [
                _items(titles, k)
                for titles in generator.recommend(
                    sources, trie, k, item_scores=scores, tasks=tasks, seen=seen
                )
            ]
            for seen in ([()] * len(rows), [named_items(row).tolist() for row in rows])
        )
        targets = target_items(rows)
        top_items = np.array([items for items, _ in of_new])
        return RecommendationPredictions(
            rows=rows,
            top_items=top_items.astype(np.int64),
            scores=np.array([own for _, own in of_new]).astype(np.float32),
            ranks=ranking.target_ranks(np.array([items for items, _ in of_all]), targets),
            new_ranks=ranking.target_ranks(top_items, targets),
            language=language,
        )


def _items(titles: Sequence[Any], k: int) -> tuple[list[int], list[float]]:
    """k items of titles in their order, all that share one; -1 where there are fewer."""
    found = [(item, title.score) for title in titles for item in title.places][:k]
    found += [(-1, -np.inf)] * (k - len(found))
    return [item for item, _ in found], [score for _, score in found]
