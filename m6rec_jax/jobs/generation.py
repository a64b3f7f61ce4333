"""Generation: texts for users, such as explanations, titles, queries and replies (section 2).

Metrics: those that each field reports of its texts (`metrics.text_metrics`), the likelihood of the
references, and `ended_share`. How texts are decoded is set in gin
(`Decoding`); the likeliest tokens unless said otherwise.

Text to text are tasks that a user registers with seqio, whose targets are written given inputs.
Their metrics are the task's own (its `metric_fns` and `metric_objs`, of texts after its
`postprocess_fn`), beside the same likelihood and `ended_share`. One of the task's own replaces
another of its name. Requests for such tasks are those of generation: `{"input": "..."}`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.engine.decoding.generation import GeneratedText, TextRequest
from m6rec_jax.engine.decoding.graphs import TextChoices
from m6rec_jax.engine.decoding.stream import GenerationStream
from m6rec_jax.engine.decoding.text_decoding import Decoding
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.answering import Accepted, Answer, Handler
from m6rec_jax.jobs.job import Columns, Evaluation, Row, TaskData, register
from m6rec_jax.jobs.language import LanguagePredictions, TargetsJob, language_metrics
from m6rec_jax.jobs.resources import Resources
from m6rec_jax.metrics import text_metrics
from m6rec_jax.metrics.text_metrics import GeneratedTexts, ItemFacts
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.requests.request import RejectedRow, Request, RequestFields
from m6rec_jax.text.format_strings import NOTHING
from m6rec_jax.text.records import Item
from m6rec_jax.text.rows import without_end
from m6rec_jax.text.vocabulary import PAD_ID, Vocabulary
from m6rec_jax.text.writing_templates import (
    WRITING,
    WritingTemplate,
    attribute_values,
    common_values,
)

# By the view that the texts come from.
_METRICS = {
    "explanations": text_metrics.explanation_metrics,
    "contents": text_metrics.content_metrics,
    "titles": text_metrics.content_metrics,
    "queries": text_metrics.content_metrics,
    "replies": text_metrics.conversation_metrics,
}
_ROWS_AT_A_TIME = 4_096
# All that is read is the input.
_TEXTS = WritingTemplate(text=NOTHING)


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationPredictions:
    """One entry per text.

    Attributes:
      rows: of the view, in its order.
      texts: what was generated.
      language: how likely the references are.
    """

    rows: Sequence[Row]
    texts: Sequence[GeneratedText]
    language: LanguagePredictions

    def columns(self, name: str) -> Columns:
        """The texts under a name, and how they came."""
        return {
            name: np.array([text.text for text in self.texts], object),
            "log_probability": np.array([text.log_probability for text in self.texts]),
            "ended": np.array([text.ended for text in self.texts]),
        }


def true_texts(
    template: WritingTemplate, items: Iterable[Item], vocabulary: Vocabulary
) -> Callable[[Iterable[Item]], Callable[[Item], TextChoices]]:
    """What texts may truly say that tell what items share with what the user liked.

    Args:
      template: of the texts.
      items: the catalogue.
      vocabulary: of the model.

    Returns:
      Of what a user liked before, oldest first, a function of the item that a text is about.
    """
    common, encode = common_values(items, template.shared), vocabulary.encode

    def for_user(liked: Iterable[Item]) -> Callable[[Item], TextChoices]:
        given = tuple(liked)
        # Made once for all texts, but not before the first is asked for.
        known = functools.cache(lambda: template.liked_items(given))

        def about(item: Item) -> TextChoices:
            parts = template.choices(item, known(), common)
            return TextChoices([[encode(text) for text in part] for part in parts])

        return about

    return for_user


def answer_of(texts: Iterable[GeneratedText]) -> Answer:
    """Texts about each candidate, or a single one where the task writes about no item."""
    texts = list(texts)
    columns = {
        "texts": [text.text for text in texts],
        "log_probabilities": [text.log_probability for text in texts],
    }
    return Answer(columns, texts=texts)


class GenerationAnswers(Handler):
    """Texts as `Decoding` (gin) says."""

    job = "generation"
    column_types: ClassVar[Mapping[str, str]] = {"texts": "string", "log_probabilities": "float"}

    def __init__(self, resources: Resources, task: str) -> None:
        self._decoding, self._template = Decoding(), _TEXTS
        self._true: Callable[[Iterable[Item]], Callable[[Item], TextChoices]] | None = None
        if resources.settings(task).reads_text:
            super().__init__(resources, task, RequestFields(None, text="input"))
            return
        data, kind = resources.data(task), resources.settings(task).writing
        writing, label = data.template.writing, data.spec.label
        if kind not in writing:
            raise ConfigError(
                f"the template of {data.spec.name!r} says nothing of {kind or 'texts'!r} in "
                f"'writing' (it has: {', '.join(writing) or 'none'}); is the task one of "
                "register_generation_tasks?"
            )
        template = self._template = writing[kind]
        fields = RequestFields("candidates" if template.needs_item else None)
        super().__init__(resources, task, fields)
        if self._decoding.true_only and template.shared and label is not None:
            self._true = true_texts(template, data.items.values(), resources.model.vocabulary)

    @property
    def group(self) -> Hashable:
        """One task at a time."""
        return self.job, self.task

    def render(self, request: Request) -> RequestText:
        text = super().render(request)
        for index, item in enumerate(self._items(request)):
            self.check_item(item, f"candidates[{index}]")
        return text

    def check_item(self, item: Item | None, path: str) -> None:
        """Raises RejectedRow where the task can write no text about an item; names its path."""
        template, generator = self._template, self.resources.generator(self.task)
        try:
            template.source((), item)
            generator.prefix_tokens(template.render_prefix(item))
        except DataError as error:
            where = "" if item is None else f"'{path}' cannot be written about: "
            raise RejectedRow("no_text", f"{where}{error}") from None

    def choices(self, request: Request) -> Sequence[TextChoices | None]:
        items, label = self._items(request), self.data.spec.label
        if self._true is None:
            return [None] * len(items)
        about = self._true(
            past for event, past in request.history if label.is_positive(event.value)
        )
        return [None if item is None else about(item) for item in items]

    def answer(self, accepted: Sequence[Accepted]) -> list[Answer]:
        requests = list(map(self._requests, accepted))
        generator = self.resources.generator(self.task)
        texts = iter(generator.write([*itertools.chain(*requests)]))
        return [answer_of(itertools.islice(texts, len(of_request))) for of_request in requests]

    def texts(self, accepted: Accepted) -> list[GenerationStream] | None:
        if not self.resources.continuous:
            return None
        return [*map(self.resources.continuous_generator().stream, self._requests(accepted))]

    def describe(self) -> Mapping[str, Any]:
        return {
            "template": self._template.to_spec(),
            "decoding": dataclasses.asdict(self._decoding),
        }

    def warm_up(self) -> None:
        if self.resources.continuous:
            self.resources.warm_once("continuous", self.resources.continuous_generator().warm_up)
            return
        generator, choices = self.resources.generator(self.task), self._true and TextChoices(())

        def warm_up() -> None:
            for histories in generator.warm_up_batches():
                request = self._decoding.request(histories[0], "", self.task, (), choices)
                generator.write([request] * len(histories))

        # Tasks of one length share a generator.
        key = "generator", generator.max_tokens, self._true is not None
        self.resources.warm_once(key, warm_up)

    def _items(self, request: Request) -> Sequence[Item | None]:
        """What texts are written about."""
        return request.candidates if self._template.needs_item else (None,)

    def _requests(self, accepted: Accepted) -> list[TextRequest]:
        writing = self._template
        return [
            self._decoding.request(
                writing.source(accepted.text.history, item),
                writing.render_prefix(item),
                self.task,
                # A request is drawn the same text whatever shares its batch.
                (accepted.number, index),
                may_say,
                accepted.wanted,
            )
            for index, (item, may_say) in enumerate(
                zip(self._items(accepted.request), accepted.choices, strict=True)
            )
        ]


@register
class GenerationJob(TargetsJob):
    """A text for every row, and how likely its reference is."""

    kind = "generation"
    handler = GenerationAnswers
    needs_text_metrics = True

    def predict(self, evaluation: Evaluation) -> GenerationPredictions:
        language = LanguagePredictions.of(evaluation.outputs())
        rows = evaluation.rows()
        decoding, generator = Decoding(), evaluation.generator()
        choices, task = None, evaluation.data.name
        if decoding.true_only:
            choices = choices_of_rows(evaluation.data, generator.vocabulary)
        texts: list[GeneratedText] = []
        # What all texts may say need not fit in memory.
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            requests = [
                decoding.request(
                    row["source"], row["prefix"], task, (start + n,), choices and choices(row)
                )
                for n, row in enumerate(rows[start : start + _ROWS_AT_A_TIME])
            ]
            texts += generator.write(requests)
        return GenerationPredictions(rows, texts, language)

    def metrics(
        self, evaluation: Evaluation, predictions: GenerationPredictions
    ) -> dict[str, float]:
        """`metrics_of_texts`, those of the references as language, `ended_share`, `num_examples`.

        `ended_share` is how many texts ended by themselves.
        """
        texts = [text.text for text in predictions.texts]
        return metrics_of_texts(evaluation.data, predictions.rows, texts) | _shared(predictions)

    def columns(self, data: TaskData, predictions: GenerationPredictions) -> Columns:
        """Prefix, reference, text and source, to be read."""
        rows = predictions.rows
        return {
            **row_columns(rows, ("text_id", "user_id", "prefix")),
            "reference": row_columns(rows, ("target",))["target"],
            **predictions.columns("written"),
            "source": source_column(rows),
        }


@register
class TextToTextJob(TargetsJob):
    """A text for every example of a user's own task, and how likely its target is."""

    kind = "text_to_text"
    identity = ("user_ids",)
    has_scores = True

    def predict(self, evaluation: Evaluation) -> GenerationPredictions:
        """Rows are the texts of seqio's examples, in their order."""
        found, examples, generator = evaluation.outputs(), evaluation.rows(), evaluation.generator()
        order = np.argsort(found["user_ids"][:, 0])  # rows of several processes take turns
        inputs = [without_end(example["inputs"]) for example in examples]
        decoding, task, decode = Decoding(), evaluation.data.name, generator.vocabulary.decode
        requests = [decoding.request([ids], "", task, (n,)) for n, ids in enumerate(inputs)]
        return GenerationPredictions(
            [
                {"input": decode(ids), "target": decode(without_end(example["targets"]))}
                for ids, example in zip(inputs, examples, strict=True)
            ],
            generator.write(requests),
            LanguagePredictions.of({name: values[order] for name, values in found.items()}),
        )

    def metrics(
        self, evaluation: Evaluation, predictions: GenerationPredictions
    ) -> dict[str, float]:
        """Those of the references as language, `ended_share`, `num_examples`, the task's own."""
        texts = predictions.texts
        tokens = np.full((len(texts), max(len(text.tokens) for text in texts)), PAD_ID, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text.tokens)] = text.tokens
        log_probabilities = np.array([text.log_probability for text in texts])
        return _shared(predictions) | evaluation.seqio_metrics(
            tokens, log_probabilities, -predictions.language.negative_log_likelihood
        )

    def columns(self, data: TaskData, predictions: GenerationPredictions) -> Columns:
        """Texts, to be read, and their log probabilities."""
        return {
            **row_columns(predictions.rows, ("input", "target")),
            **predictions.columns("prediction"),
            "target_log_probability": -predictions.language.negative_log_likelihood,
        }


def _shared(predictions: GenerationPredictions) -> dict[str, float]:
    """How likely the references are, how many texts ended by themselves, and how many there are."""
    return language_metrics(predictions.language) | {
        "ended_share": float(np.mean([text.ended for text in predictions.texts])),
        "num_examples": float(len(predictions.texts)),
    }


def row_columns(rows: Sequence[Row], names: Sequence[str]) -> Columns:
    """Columns of texts, as the rows have them."""
    return {name: np.array([row[name] for row in rows], object) for name in names}


def source_column(rows: Sequence[Row]) -> np.ndarray:
    """Sources as one text each, a segment a line."""
    return np.array(["\n".join(filter(None, row["source"])) for row in rows], object)


def metrics_of_texts(data: TaskData, rows: Sequence[Row], texts: Sequence[str]) -> dict[str, float]:
    """Metrics of texts, of a model or a baseline.

    Args:
      data: of a task of kind 'generation'.
      rows: of its view.
      texts: one for each row, without its prefix.
    """
    prepared = data.prepared()
    splits = prepared.num_rows(data.view)

    def column(name: str, split: str) -> Iterable[Any]:
        return (row[name] for row in data.rows((name,), part=split)) if split in splits else ()

    every = ("train", "validation", "test")
    return _METRICS[data.view](
        GeneratedTexts(
            texts=texts,
            references=[row["target"] for row in rows],
            features=[row["features"] for row in rows],
            all_features=lambda: (
                name for split in every for names in column("features", split) for name in names
            ),
            training=lambda: column("target", "train"),
            facts=item_facts(prepared, data.view, rows),
        )
    )


def item_facts(prepared: Prepared, view: str, rows: Sequence[Row]) -> ItemFacts | None:
    """What holds of each row's item; None where items are not known by attributes."""
    if not tells_shared(prepared, view):
        return None
    template = prepared.template().writing[view]
    items = prepared.catalogue().items
    columns = text_metrics.rendered_columns(template, items)
    return ItemFacts(
        text_metrics.attribute_dictionary(template, items),
        [attribute_values(items[row["item_indices"][0]], columns) for row in rows],
        text_metrics.citations_of(template, items, [row["liked_indices"] for row in rows]),
    )


def choices_of_rows(data: TaskData, vocabulary: Vocabulary) -> Callable[[Row], TextChoices] | None:
    """What the text of a row of a task may truly say; None where nothing shared is told."""
    prepared = data.prepared()
    if not tells_shared(prepared, data.view):
        return None
    items = prepared.catalogue().items
    for_user = true_texts(prepared.template().writing[data.view], items, vocabulary)
    return lambda row: for_user(items[i] for i in row["liked_indices"])(
        items[row["item_indices"][0]]
    )


def tells_shared(prepared: Prepared, view: str) -> bool:
    """Whether texts of a view tell what an item of the catalogue shares with others."""
    if view not in WRITING or not prepared.has_template:
        return False
    return bool(prepared.template().writing[view].shared)
