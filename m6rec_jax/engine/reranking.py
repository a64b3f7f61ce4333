"""Reranks what a retriever found, by what the two towers cannot know or say in one number.

    reranker = Reranker(prepared.co_occurrence(), catalogue.texts, model.scorer())
    found = index.top_k(retriever.embed_users(histories), 100, seen)
    best = reranker.rerank(histories, recent, seen, found)          # ids *and* scores, best first

Three things are weighed: the retriever's similarity, how near a candidate stands to the history's
last items in what others did (`data.co_occurrence`), and, where there is a model for it, the
scorer's probability that the candidate comes next; it reads the candidate together with the
history, and that co-occurrence in words.
"""

from __future__ import annotations

from collections.abc import Sequence

import gin
import numpy as np

from m6rec_jax.data.co_occurrence import CoOccurrence, RelatedItems, ranked_texts
from m6rec_jax.engine.catalogue_index import NO_ITEM, TopK
from m6rec_jax.engine.scoring import Scorer
from m6rec_jax.errors import DataError

# What an item that stands near nothing has for its share.
_LEAST_SHARE = 1e-4


@gin.configurable(allowlist=["similarity_weight", "co_occurrence_weight"])
class Reranker:
    """Orders candidates by the scorer's log probability, their similarity and their co-occurrence.

    Args:
      co_occurrence: of the training events.
      texts: of the catalogue, in the order of the items table; items that are newer than the
        counts may follow.
      scorer: of a model trained on the view 'reranking'; None: the other two alone.
      similarity_weight: what the retriever's cosine similarity is multiplied with before it is
        added to the log probability: the scorer was trained on what stands near, the towers
        on everything.
      co_occurrence_weight: what the log of the share of co-occurrence is multiplied with. A scorer
        has read its rank.
    """

    def __init__(
        self,
        co_occurrence: CoOccurrence,
        texts: Sequence[str],
        scorer: Scorer | None = None,
        *,
        similarity_weight: float = 5.0,
        co_occurrence_weight: float = 1.0,
    ) -> None:
        if co_occurrence.num_items > len(texts):
            raise DataError(
                f"co-occurrence was counted over {co_occurrence.num_items} items, the catalogue "
                f"has {len(texts)}: they belong to different data"
            )
        self._scorer, self._co_occurrence, self._texts = scorer, co_occurrence, texts
        self._similarity_weight = similarity_weight
        self._co_occurrence_weight = co_occurrence_weight

    def rerank(
        self,
        histories: Sequence[Sequence[str]],
        recent: Sequence[Sequence[int]],
        seen: Sequence[Sequence[int] | np.ndarray],
        found: TopK,
        tasks: Sequence[str] | None = None,
    ) -> TopK:
        """The same items in another order.

        Args:
          histories: per user, segments as the retriever read them.
          recent: per user, the last items of the history, oldest first, as catalogue indices.
          seen: per user, items that are not ranked by co-occurrence, for they cannot come next; the
            recent ones among them, where they cannot.
          found: the retriever's; equally good items stay in its order.
          tasks: of the scorer, per user; None: its default task.

        Returns:
          Items and their scores: the weighted sums of the three; -inf at `NO_ITEM`.

        Raises:
          DataError: lists of unlike length.
        """
        if not len(histories) == len(recent) == len(seen) == len(found.ids):
            raise DataError(
                f"{len(histories)} histories, {len(recent)} lists of recent items, {len(seen)} of "
                f"seen ones and {len(found.ids)} of candidates do not belong together"
            )
        present = found.ids != NO_ITEM
        candidates = [ids[kept] for ids, kept in zip(found.ids, present, strict=True)]
        near = [
            self._co_occurrence.related(list(last), np.asarray(out).tolist())
            for last, out in zip(recent, seen, strict=True)
        ]
        scores = np.full(found.ids.shape, -np.inf, np.float32)
        scores[present] = self._similarity_weight * found.scores[present]
        shares = np.concatenate(
            [self._shares(*pair) for pair in zip(near, candidates, strict=True)]
        )
        scores[present] += self._co_occurrence_weight * np.log(shares)
        if self._scorer is not None:
            texts = [
                ranked_texts(self._texts, around, items.tolist())
                for around, items in zip(near, candidates, strict=True)
            ]
            probabilities = self._scorer.score_requests(histories, texts, tasks)
            # Float32 probabilities can be 0.
            least = np.finfo(np.float32).tiny
            scores[present] += np.log(np.maximum(np.concatenate(probabilities), least))
        order = np.argsort(-scores, axis=1, kind="stable")
        return TopK(
            np.take_along_axis(found.ids, order, axis=1),
            np.take_along_axis(scores, order, axis=1),
        )

    def describe(self) -> dict[str, float]:
        """What the order depends on beside models and data, for JSON."""
        return {
            "similarity_weight": self._similarity_weight,
            "co_occurrence_weight": self._co_occurrence_weight,
        }

    def _shares(self, near: RelatedItems, items: np.ndarray) -> np.ndarray:
        """Share of co-occurrence of each item, float64 `[items]`."""
        of_all = np.full(len(self._texts), _LEAST_SHARE)
        of_all[near.items] += near.shares
        return of_all[items]
