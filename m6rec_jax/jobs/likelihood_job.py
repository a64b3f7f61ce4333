"""Requests answered by how plausible a sentence about each candidate is: zero-shot scoring.

LikelihoodScorer.sentence = '{item}. liked.'       # in gin, as likelihood_rows in evaluation
LikelihoodScorer.counted = ('after',)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gin
import numpy as np
import pyarrow as pa

from m6rec_jax.engine.likelihood_scoring import LikelihoodScorer
from m6rec_jax.errors import DataError
from m6rec_jax.jobs.request_jobs import Accepted
from m6rec_jax.requests.files import ResultTypes
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RejectedRow, Request
from m6rec_jax.text.templates import DatasetTemplate


@gin.configurable(allowlist=["candidates_field"])
class LikelihoodJob:
    """Mean log probability of the tokens that count, and the order it puts candidates in.

    A `request_jobs.RequestJob`.

    Args:
      scorer: of the model; its sentence says which text of a candidate is read: `{candidate}` is
        told with statistics, as scoring has it, `{item}` as the catalogue has it.
      renderer: of requests; need not tell candidates where the sentence has `{item}`.
      template: of the data set.
      candidates_field: where a request has its candidates.
    """

    about_field: str | None = None

    def __init__(
        self,
        scorer: LikelihoodScorer,
        renderer: RequestRenderer,
        template: DatasetTemplate,
        candidates_field: str = "candidates",
    ) -> None:
        self._scorer, self._renderer, self._template = scorer, renderer, template
        self.candidates_field: str | None = candidates_field
        self.result_types: ResultTypes = {
            "mean_log_probabilities": pa.list_(pa.float32()),
            "ranking": pa.list_(pa.int32()),
        }

    def accept(self, request: Request, row: int) -> Accepted:
        """See `RequestJob`."""
        text = self._renderer.render(request)
        if self._scorer.sentence.as_item:
            try:
                texts = [self._template.item(candidate) for candidate in request.candidates]
            except DataError as error:
                raise RejectedRow("no_text", str(error)) from None
            text = text._replace(candidates=texts)
        for place, candidate in enumerate(text.candidates):
            try:
                self._scorer.check(candidate)
            except DataError as error:
                path = f"{self.candidates_field}[{place}]"
                raise RejectedRow("no_text", f"{path!r} cannot be scored: {error}") from None
        return Accepted(request, text, row)

    def answer(self, accepted: Sequence[Accepted]) -> dict[str, list[Any]]:
        """See `RequestJob`."""
        texts = [one.text for one in accepted]
        found = self._scorer.score_requests(
            [text.history for text in texts], [text.candidates for text in texts]
        )
        # Likeliest first; equals in the order of the request.
        ranking = [np.argsort(-scores, kind="stable").tolist() for scores in found]
        return {"mean_log_probabilities": found, "ranking": ranking}

    def describe(self) -> Mapping[str, Any]:
        """See `RequestJob`."""
        sentence = self._scorer.sentence
        return {
            "job": "likelihood",
            "candidates_field": self.candidates_field,
            "sentence": sentence.render("{item}" if sentence.as_item else "{candidate}"),
            "counted": sorted(sentence.counted),
        }
