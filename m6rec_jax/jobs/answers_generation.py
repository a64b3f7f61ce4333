"""Requests answered with texts: an explanation of each candidate, a title, a query."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from m6rec_jax.engine.text_decoding import Decoding
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import Accepted, Answerer, Parts, RequestFields, by_task
from m6rec_jax.requests.rendering import RequestRenderer, RequestText
from m6rec_jax.requests.request import RejectedRow, Request
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import WritingTemplate


@dataclasses.dataclass(frozen=True, slots=True)
class Texts:
    """One text about each candidate, or a single one where the task writes about no item.

    Attributes:
      texts: what was generated, without the prefix.
      log_probabilities: of the texts, `[EOS]` included.
    """

    column_types: ClassVar[Mapping[str, str]] = {"texts": "string", "log_probabilities": "float"}
    texts: Sequence[str]
    log_probabilities: Sequence[float]

    def columns(self) -> Mapping[str, Any]:
        """See `Result`."""
        return {"texts": self.texts, "log_probabilities": self.log_probabilities}


class _GenerationTask(NamedTuple):
    renderer: RequestRenderer
    template: WritingTemplate

    def items(self, request: Request) -> Sequence[Item | None]:
        """What texts are written about."""
        return request.candidates if self.template.needs_item else (None,)


class GenerationAnswers(Answerer[_GenerationTask]):
    """Texts as `Decoding` (gin) says."""

    result = Texts

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._decoding = Decoding()

    def open_task(self, task: str) -> _GenerationTask:
        """See `Answerer`."""
        data, kind = self.parts.data(task), self.parts.settings(task).writing
        known = data.template.writing
        if kind not in known:
            raise ConfigError(
                f"the template of {data.spec.name!r} says nothing of {kind or 'texts'!r} in "
                f"'writing' (it has: {', '.join(known) or 'none'}); is the task one of "
                "register_writing_tasks?"
            )
        return _GenerationTask(self.parts.renderer(task, candidates=False), known[kind])

    def fields(self, task: str) -> RequestFields:
        """See `Answerer`."""
        needs_item = self.of_task(task).template.needs_item
        return RequestFields(candidates="candidates" if needs_item else None)

    def accept(self, request: Request, task: str) -> RequestText:
        """See `Answerer`."""
        own, generator = self.of_task(task), self.parts.generator(task)
        text = own.renderer.render(request)
        try:
            for item in own.items(request):
                own.template.source(text.history, item)
                prefix = own.template.beginning(item)
                number = len(generator.vocabulary.encode(prefix))
                if number >= generator.max_tokens:
                    raise DataError(
                        f"the text would begin with {number} tokens, which leaves no room in "
                        f"{generator.max_tokens}: {prefix!r}"
                    )
        except DataError as error:
            raise RejectedRow("no_text", str(error)) from None
        return text

    def answer(self, accepted: Sequence[Accepted]) -> list[Texts]:
        """See `Answerer`."""
        results: dict[int, Texts] = {}
        for task, members in by_task(accepted).items():
            own = self.of_task(task)
            asked = [
                (i, index, item)
                for i in members
                for index, item in enumerate(own.items(accepted[i].request))
            ]
            found = self._decoding.write(
                self.parts.generator(task),
                [own.template.source(accepted[i].text.history, item) for i, _, item in asked],
                [own.template.beginning(item) for *_, item in asked],
                [task] * len(asked),
                # A request is drawn the same text whatever shares its batch.
                places=[(accepted[i].number, index) for i, index, _ in asked],
            )
            for i in members:
                texts = [t for (j, *_), t in zip(asked, found, strict=True) if j == i]
                results[i] = Texts(
                    [text.written for text in texts], [text.log_probability for text in texts]
                )
        return [results[i] for i in range(len(accepted))]

    def describe(self, task: str) -> Mapping[str, Any]:
        """See `Answerer`."""
        return {
            "template": self.of_task(task).template.to_spec(),
            "decoding": dataclasses.asdict(self._decoding),
        }

    def warm_up(self, tasks: Iterable[str]) -> None:
        """See `Answerer`."""
        for task in tasks:
            generator = self.parts.generator(task)
            for history in generator.warm_up_histories():
                for size in self.parts.batch_sizes:
                    self._decoding.write(generator, [history] * size, None, [task] * size)
