"""`m6rec calibrate` of retrieval, for users or in dialogues: what features of items are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from m6rec_jax.engine.model_folder import RestoredModel
from m6rec_jax.evaluation.evaluator import Evaluator
from m6rec_jax.evaluation.reranking import LearntRanking, Reranking, ranking_name
from m6rec_jax.metrics import ranking
from m6rec_jax.pipeline.registration import TaskInfo

# Drawn at random of all tasks' rows; a few weights need no more.
ROWS = 5_000
_K = 10


@dataclasses.dataclass(frozen=True, slots=True)
class LearntWeights:
    """What was learnt for a task, and what it does on the rows that it was learnt on.

    Attributes:
      known, new: see `RankingWeights`.
      metric: of `quality` and `towers_quality`.
      quality, towers_quality: of the order by these weights, and of the two towers alone.
      num_rows, num_found: rows that were read, and those whose wanted item was a candidate.
    """

    known: Mapping[str, float]
    new: Mapping[str, float]
    metric: str
    quality: float
    towers_quality: float
    num_rows: int
    num_found: int

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.quality:.4f}, by the two towers alone {self.towers_quality:.4f}, "
            f"on {self.num_rows:,} rows, of which {self.num_found:,} have their item among the "
            f"candidates; {_told(self.known)}; of items that nobody has acted on {_told(self.new)}"
        )


def _told(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())


def learn_weights(
    evaluator: Evaluator, task: TaskInfo, restored: RestoredModel
) -> dict[str, LearntWeights]:
    """Learns the weights of `evaluator.reranking`, or of `Reranking`, for a task that
    ranks the catalogue.

    Returns:
      by `ranking_name`: a task's own, and those without the towers; and of dialogues those for all
      items, the named ones too.

    Raises:
      DataError: no rows, or no co-occurrence; or none of the wanted items was found.
    """
    reranking = evaluator.reranking or Reranking()
    assert isinstance(reranking, Reranking)
    own = evaluator.sample, evaluator.reranking
    evaluator.sample = evaluator.sample or ROWS
    evaluator.reranking = learnt = LearntRanking(reranking)
    evaluator.predict(task, restored.model, restored.variables)
    evaluator.sample, evaluator.reranking = own
    found = {}
    for (name, towers), of_name in learnt.learnt.items():
        # Without rows that want nothing here.
        wants = (of_name.ranks_before > 0).any(axis=1)
        found[ranking_name(task.name, name, towers)] = LearntWeights(
            of_name.weights.known,
            of_name.weights.new,
            f"ndcg@{_K}",
            ranking.ndcg(of_name.ranks[wants], _K),
            ranking.ndcg(of_name.ranks_before[wants], _K),
            int(wants.sum()),
            of_name.num_rows,
        )
    return found
