"""Evaluation of a retriever whose best items a reranker reorders.

In gin, with MODEL_DIR the retriever's:

    Evaluator.reranking = @Reranking()
    Reranking.model_dir = "runs/reranking"        # of the scorer; None: no scorer
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin
import numpy as np

from m6rec_jax.engine.catalogue_index import TopK
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.reranking import Reranker
from m6rec_jax.engine.runtime import Runtime
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.job import TaskData
from m6rec_jax.jobs.retrieval import RetrievalPredictions

VIEW = "reranking"


@gin.configurable
class Reranking:
    """Reranks the best of what a retrieval task's model found.

    Co-occurrence is counted after the last training event, as `prepare` leaves it: what a served
    model knows, and what towers and models of ids are trained on. In training it was counted at
    each row's time.

    Args:
      model_dir: of a run on the view 'reranking' of the same prepared data; None: no scorer, only
        similarity and co-occurrence.
      k: how many items are reranked; all others follow in their order.
      candidate_length: most tokens of a candidate, as in training; None: the model's settings.
      step: which checkpoint; None: the newest.
    """

    def __init__(
        self,
        model_dir: str | None = None,
        k: int = 100,
        candidate_length: int | None = None,
        step: int | None = None,
    ) -> None:
        self.k = k
        self._model_dir, self._candidate_length, self._step = model_dir, candidate_length, step
        self._rerankers: dict[str, Reranker] = {}

    def __call__(
        self,
        data: TaskData,
        predictions: RetrievalPredictions,
        seen: Mapping[int, np.ndarray],
        runtime: Runtime,
    ) -> RetrievalPredictions:
        """The predictions with the first k items of every list in the reranker's order.

        Args:
          data: of the retriever's task.
          predictions: lists of at least k items.
          seen: by user, items that are not recommended.
          runtime: where to run.

        Raises:
          DataError: the view 'reranking' is not prepared, or has other rows.
          CheckpointError: no such model, or one that lacks what inference needs.
        """
        rows = _rows(data, predictions)
        nothing = np.zeros(0, np.int64)
        hidden = [nothing] * len(rows)
        if not data.repeats_count:
            hidden = [
                np.union1d(seen.get(user, nothing), row["recent_indices"])
                for user, row in zip(predictions.users.tolist(), rows, strict=True)
            ]
        k = min(self.k, predictions.top_items.shape[1])
        best = self._reranker(data, runtime).rerank(
            [row["history"] for row in rows],
            [row["recent_indices"] for row in rows],
            hidden,
            TopK(predictions.top_items[:, :k], predictions.scores[:, :k]),
        )
        # [n, m, k]: where each wanted item stands among the reranked.
        same = predictions.targets[:, :, None] == best.ids[:, None, :]
        same &= predictions.targets[:, :, None] >= 0
        ranks = np.where(same.any(axis=2), same.argmax(axis=2) + 1, predictions.ranks)
        return dataclasses.replace(
            predictions,
            ranks=ranks,
            top_items=np.concatenate([best.ids, predictions.top_items[:, k:]], axis=1),
            scores=np.concatenate([best.scores, predictions.scores[:, k:]], axis=1),
        )

    def _reranker(self, data: TaskData, runtime: Runtime) -> Reranker:
        if data.name not in self._rerankers:
            scorer = None
            if self._model_dir is not None:
                loaded = load_model(
                    self._model_dir, step=self._step, mesh=runtime.mesh, rules=runtime.rules
                )
                length = self._candidate_length
                lengths: dict[str, Any] = {"candidate_length": length} if length else {}
                scorer = loaded.scorer(**lengths)
            prepared = data.prepared()
            self._rerankers[data.name] = Reranker(
                prepared.co_occurrence(), prepared.catalogue().texts, scorer
            )
        return self._rerankers[data.name]


def _rows(data: TaskData, predictions: RetrievalPredictions) -> list[dict[str, Any]]:
    """The rows of the view 'reranking' that are about the predictions' users and items."""
    columns = ("user_index", "item_indices", "history", "recent_indices")
    known = {
        (row["user_index"], int(row["item_indices"][0])): row
        for row in data.rows(columns, view=VIEW)
    }
    wanted = list(zip(predictions.users.tolist(), predictions.targets[:, 0].tolist(), strict=True))
    missing = [key for key in wanted if key not in known]
    if missing:
        raise DataError(
            f"{data.prepared().folder}: the view '{VIEW}' lacks {len(missing)} of the "
            f"{len(wanted)} rows of 'next_items' ({data.part}): prepare both with one setting of "
            "PrepareOptions.next_items_size and max_events"
        )
    return [known[key] for key in wanted]
