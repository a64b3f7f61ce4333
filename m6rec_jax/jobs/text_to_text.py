"""Text to text: tasks that a user registers with seqio, whose targets are written given inputs.

Metrics: the task's own (its `metric_fns` and `metric_objs`, of texts after its `postprocess_fn`),
the likelihood of the targets, and `ended_share`. One of the task's own replaces another of its
name. Requests for such tasks are those of generation: `{"input": "..."}`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from m6rec_jax.engine.candidates.likelihood import token_sums
from m6rec_jax.engine.decoding.text_decoding import Decoding
from m6rec_jax.jobs.generation import GenerationPredictions, row_columns
from m6rec_jax.jobs.job import (
    Array,
    Columns,
    Evaluation,
    Features,
    Found,
    Job,
    TaskData,
    Variables,
    register,
)
from m6rec_jax.jobs.language import LanguagePredictions, language_metrics
from m6rec_jax.model import M6Rec
from m6rec_jax.text.rows import without_end
from m6rec_jax.text.vocabulary import PAD_ID


@register
class TextToTextJob(Job):
    """A text for every example, and how likely its target is."""

    kind = "text_to_text"
    identity = ("user_ids",)
    has_scores = True

    def outputs(self, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
        """`token_sums` of the targets, `[rows]`."""
        return token_sums(model, variables, features)

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
        """Those of the module's docstring, and `num_examples`."""
        texts, language = predictions.texts, predictions.language
        tokens = np.full((len(texts), max(len(text.tokens) for text in texts)), PAD_ID, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text.tokens)] = text.tokens
        log_probabilities = np.array([text.log_probability for text in texts])
        metrics = language_metrics(language)
        metrics["ended_share"] = float(np.mean([text.ended for text in texts]))
        metrics["num_examples"] = float(len(texts))
        return metrics | evaluation.seqio_metrics(
            tokens, log_probabilities, -language.negative_log_likelihood
        )

    def columns(self, data: TaskData, predictions: GenerationPredictions) -> Columns:
        """Texts, to be read, and their log probabilities."""
        texts = predictions.texts
        return row_columns(predictions.rows, ("input", "target")) | {
            "prediction": np.array([text.text for text in texts], object),
            "log_probability": np.array([text.log_probability for text in texts]),
            "ended": np.array([text.ended for text in texts]),
            "target_log_probability": -predictions.language.negative_log_likelihood,
        }

    def score_columns(self, data: TaskData, found: Found) -> Columns:
        """The sums of each row."""
        return dataclasses.asdict(LanguagePredictions.of(found))
