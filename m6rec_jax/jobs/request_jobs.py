"""What is done with requests: scoring of their candidates, or retrieval from an index.

A job takes checked requests one by one (`accept`, on the host: text and its checks) and answers
them together (`answer`, on the devices, in batches of one shape).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gin
import numpy as np
import pyarrow as pa

from m6rec_jax.engine.index_files import StoredIndex
from m6rec_jax.engine.retrieval import Retriever
from m6rec_jax.engine.scoring import Scorer
from m6rec_jax.errors import ConfigError
from m6rec_jax.requests.files import ResultTypes
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow, Request


class Accepted(NamedTuple):
    """A request that can be answered, its text, and the number of its row."""

    request: Request
    text: RequestText
    row: int


class RequestJob(Protocol):
    """What `batch_inference` asks for.

    Attributes:
      result_types: columns that are added to a request, and their types.
      candidates_field: where a request has its candidates; None: none are read.
      about_field: where it has the item that a title's beginning is about; None: likewise.
    """

    result_types: ResultTypes
    candidates_field: str | None
    about_field: str | None

    def accept(self, request: Request, row: int) -> Accepted:
        """Tells a request in words.

        Args:
          request: checked.
          row: its number in the file, from 0: what is drawn for it depends on no other.

        Raises:
          RejectedRow: it cannot be answered.
        """

    def answer(self, accepted: Sequence[Accepted]) -> dict[str, list[Any]]:
        """Result column -> one entry per request."""

    def describe(self) -> Mapping[str, Any]:
        """What results depend on beside the model and the data, for JSON."""


@gin.configurable(allowlist=["candidates_field"])
class ScoringJob:
    """The probability of each candidate, in the order of the request's candidates.

    Args:
      scorer: of the model.
      renderer: of requests.
      candidates_field: where a request has its candidates. 'item_ids' scores what a `RetrievalJob`
        found.
    """

    about_field: str | None = None

    def __init__(
        self, scorer: Scorer, renderer: RequestRenderer, candidates_field: str = "candidates"
    ) -> None:
        self._scorer, self._renderer = scorer, renderer
        self.candidates_field: str | None = candidates_field
        self.result_types: ResultTypes = {"probabilities": pa.list_(pa.float32())}

    def accept(self, request: Request, row: int) -> Accepted:
        """See `RequestJob`."""
        text = self._renderer.render(request)
        for place, candidate in enumerate(text.candidates):
            if not len(self._scorer.vocabulary.encode_array(candidate)):
                raise RejectedRow(
                    "no_text",
                    f"'{self.candidates_field}[{place}]' has no text to score: {candidate!r}",
                )
        return Accepted(request, text, row)

    def answer(self, accepted: Sequence[Accepted]) -> dict[str, list[Any]]:
        """See `RequestJob`."""
        texts = [one.text for one in accepted]
        found = self._scorer.score_requests(
            [text.history for text in texts], [text.candidates for text in texts]
        )
        return {"probabilities": found}

    def describe(self) -> Mapping[str, Any]:
        """See `RequestJob`."""
        return {"job": "scoring", "candidates_field": self.candidates_field}


@gin.configurable(allowlist=["k", "max_k", "exclude_seen"])
class RetrievalJob:
    """Ids *and* scores of the items that fit best, out of an index.

    Args:
      retriever: of the model.
      index: of the same model.
      renderer: of requests.
      k: how many items, for requests that do not say.
      max_k: the most a request may ask for; as many are searched for in any case, so that all
        requests run the same program.
      exclude_seen: leave out the items of a request's behaviours, beside those of its `exclude`.

    Raises:
      ConfigError: k is not between 1 and max_k.
    """

    candidates_field: str | None = None
    about_field: str | None = None

    def __init__(
        self,
        retriever: Retriever,
        index: StoredIndex,
        renderer: RequestRenderer,
        k: int = 10,
        max_k: int = 100,
        exclude_seen: bool = True,
    ) -> None:
        if not 1 <= k <= max_k:
            raise ConfigError(f"RetrievalJob.k = {k} must be between 1 and max_k = {max_k}")
        self._retriever, self._index, self._renderer = retriever, index, renderer
        self._k, self._max_k, self._exclude_seen = k, max_k, exclude_seen
        self._most = 1
        self.result_types: ResultTypes = {
            "item_ids": pa.list_(pa.string()),
            "scores": pa.list_(pa.float32()),
        }

    def accept(self, request: Request, row: int) -> Accepted:
        """See `RequestJob`."""
        if request.k is not None and request.k > self._max_k:
            raise RejectedRow(
                "k_too_large",
                f"'k' is {request.k}, more than RetrievalJob.max_k = {self._max_k}",
            )
        return Accepted(request, self._renderer.render(request), row)

    def answer(self, accepted: Sequence[Accepted]) -> dict[str, list[Any]]:
        """See `RequestJob`."""
        users = self._retriever.embed_users([one.text.history for one in accepted])
        excluded = [self._excluded(one.request) for one in accepted]
        # As many as ever, so that a last, smaller chunk does not compile another search.
        self._most = max(self._most, len(users))
        missing = self._most - len(users)
        users = np.pad(users, ((0, missing), (0, 0)))
        most = min(self._max_k, len(self._index.ids))
        found = self._index.top_k(users, most, [*excluded, *[()] * missing])
        results: dict[str, list[Any]] = {"item_ids": [], "scores": []}
        for one, (ids, scores) in zip(accepted, found, strict=False):
            k = self._k if one.request.k is None else one.request.k
            results["item_ids"].append(ids[:k])
            results["scores"].append(scores[:k])
        return results

    def describe(self) -> Mapping[str, Any]:
        """See `RequestJob`."""
        manifest = self._index.manifest
        return {
            "job": "retrieval",
            "index": [manifest.model, manifest.catalogue],
            "search": type(self._index.search).__name__,
            "k": self._k,
            "max_k": self._max_k,
            "exclude_seen": self._exclude_seen,
        }

    def _excluded(self, request: Request) -> list[str]:
        seen = [item.id for _, item in request.behaviours] if self._exclude_seen else []
        return [*seen, *request.exclude]
