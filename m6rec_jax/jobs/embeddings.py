"""Embeddings: vectors of users and items by the two towers, for a vector database.

    m6rec infer --gin.MODEL_DIR=runs/retrieval --output vectors.parquet \
        --gin.MIXTURE_OR_TASK_NAME=movielens_100k_leave_one_out_embeddings
    m6rec infer --gin.MODEL_DIR=runs/retrieval --gin.JOB=embeddings \
        --requests users.jsonl --output vectors.jsonl
    rec.answer(rows, job="embeddings"); rec.embed_items()

Metrics: `alignment` and `uniformity` of Wang and Isola (2020), which need no ranking: how close
users are to the items they want, and how evenly items fill the sphere. Lower is better for both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from m6rec_jax.engine.candidates.rows import pack_texts
from m6rec_jax.engine.index.retrieval import user_embeddings
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.answering import Accepted, Answerer, check_finite
from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    Features,
    Job,
    TaskData,
    Variables,
    register,
)
from m6rec_jax.jobs.parts import Parts
from m6rec_jax.jobs.retrieval import pad_targets
from m6rec_jax.model import M6Rec
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import Request

# Pairs of items that uniformity is averaged over, at most.
_MOST_PAIRS = 1_000_000


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
    identity = ("decoder_item_ids", "user_ids")

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`user`, the vector of each row's user, `[rows, retrieval]`."""
        return {"user": user_embeddings(model, variables, features)}

    def predict(self, evaluation: Evaluation) -> EmbeddingPredictions:
        found = evaluation.outputs()
        texts = evaluation.data.prepared().catalogue().texts
        return EmbeddingPredictions(
            found["user_ids"][:, 0].astype(np.int64),
            found["user"],
            pad_targets(found["decoder_item_ids"]),
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

    def answerer(self, parts: Parts) -> Answerer[Any]:
        return EmbeddingAnswers(parts)

    @property
    def asked_of(self) -> tuple[str, ...]:
        return ("retrieval", "embeddings")


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


@dataclasses.dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of a request's user.

    Attributes:
      vector: float32 `[retrieval]`, of unit length.
    """

    column_types: ClassVar[Mapping[str, str]] = {"embedding": "float"}
    vector: np.ndarray

    def columns(self) -> Mapping[str, Any]:
        return {"embedding": self.vector}


class EmbeddingAnswers(Answerer[RequestRenderer]):
    """User vectors; one batch may mix tasks."""

    result = Embedding

    def open_task(self, task: str) -> RequestRenderer:
        self.parts.retriever().check_task(task)
        return self.parts.renderer(task, candidates=False)

    def accept(self, request: Request, task: str) -> RequestText:
        return self.of_task(task).render(request)

    def answer(self, accepted: Sequence[Accepted]) -> list[Embedding]:
        vectors = self.parts.retriever().embed_users(
            [one.text.history for one in accepted], [one.task for one in accepted]
        )
        check_finite(accepted, vectors)
        return [Embedding(vector) for vector in vectors]

    def warm_up(self, tasks: Iterable[str]) -> None:
        retriever = self.parts.retriever()
        for task in tasks:
            self.parts.warm_once("retriever", retriever.warm_up)
            self.parts.warm_once("items", functools.partial(self._warm_up_items, task))

    def _warm_up_items(self, task: str) -> None:
        """Compiles what embeds items given as text, for every number of rows."""
        retriever = self.parts.retriever()
        length = retriever.options.target_length
        texts = ["a"] * length
        packed = pack_texts(retriever.vocabulary, texts, length, retriever.candidate_length)
        per_row = -(-len(texts) // len(packed.rows))
        for size in self.parts.batch_sizes:
            retriever.embed_items(["a"] * (per_row * size), task)
