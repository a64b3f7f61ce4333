"""Requests answered with texts: an explanation of each candidate, a title, a query."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from m6rec_jax.errors import DataError
from m6rec_jax.inference.generation import Generator
from m6rec_jax.inference.request_jobs import Accepted
from m6rec_jax.inference.text_decoding import Decoding
from m6rec_jax.tables.request_files import ResultTypes
from m6rec_jax.tables.request_text import RequestRenderer
from m6rec_jax.tables.requests import RejectedRow, Request
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import WritingTemplate


class WritingJob:
    """Texts for a request, a `request_jobs.RequestJob`.

    About each of the request's candidates, in their order; where the template tells of no item,
    one text for a request without candidates.

    Args:
      generator: of the model and the task.
      renderer: of requests, without their candidates.
      template: what is written.
    """

    about_field: str | None = None

    def __init__(
        self, generator: Generator, renderer: RequestRenderer, template: WritingTemplate
    ) -> None:
        self._generator, self._renderer, self._template = generator, renderer, template
        self._decoding = Decoding()
        self.candidates_field = "candidates" if template.needs_item else None
        self.result_types: ResultTypes = {
            "texts": pa.list_(pa.string()),
            "log_probabilities": pa.list_(pa.float32()),
        }

    def accept(self, request: Request, row: int) -> Accepted:
        """See `RequestJob`."""
        text = self._renderer.render(request)
        try:
            for item in self._items(request):
                self._template.source(text.history, item)
                self._check_room(self._template.render_prefix(item))
        except DataError as error:
            raise RejectedRow("no_text", str(error)) from None
        return Accepted(request, text, row)

    def answer(self, accepted: Sequence[Accepted]) -> dict[str, list[Any]]:
        """See `RequestJob`."""
        asked = [
            (one, place, item)
            for one in accepted
            for place, item in enumerate(self._items(one.request))
        ]
        found = self._decoding.write(
            self._generator,
            [self._template.source(one.text.history, item) for one, _, item in asked],
            [self._template.render_prefix(item) for *_, item in asked],
            # The same row is drawn the same text whatever stands beside it, in whatever chunk.
            places=[(one.row, place) for one, place, _ in asked],
        )
        texts, log_probabilities, start = [], [], 0
        for one in accepted:
            end = start + len(self._items(one.request))
            texts.append([text.written for text in found[start:end]])
            log_probabilities.append([text.log_probability for text in found[start:end]])
            start = end
        return {"texts": texts, "log_probabilities": log_probabilities}

    def describe(self) -> Mapping[str, Any]:
        """See `RequestJob`."""
        return {
            "job": "writing",
            "template": self._template.to_spec(),
            "decoding": dataclasses.asdict(self._decoding),
        }

    def _check_room(self, prefix: str) -> None:
        number = len(self._generator.vocabulary.encode(prefix))
        if number >= self._generator.max_tokens:
            raise DataError(
                f"the text would begin with {number} tokens, which leaves no room in "
                f"{self._generator.max_tokens}: {prefix!r}"
            )

    def _items(self, request: Request) -> Sequence[Item | None]:
        return request.candidates if self._template.needs_item else (None,)
