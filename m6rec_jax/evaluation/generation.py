"""Evaluation of texts that a model writes: decoded on the devices, compared with references.

Decoding.method = 'beam_search'        # in gin; greedy unless said otherwise
Decoding.num_beams = 4
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.views import WRITING
from m6rec_jax.engine.generation import Generator
from m6rec_jax.engine.text_decoding import Decoding
from m6rec_jax.errors import DataError
from m6rec_jax.evaluation import writing_figures
from m6rec_jax.evaluation.predictions import GenerationPredictions, LanguagePredictions
from m6rec_jax.evaluation.tasks import language_metrics
from m6rec_jax.evaluation.writing_figures import ItemFacts, WrittenTexts
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.text.writing_templates import attribute_values


def predict_generation(
    generator: Generator,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    language: LanguagePredictions,
) -> GenerationPredictions:
    """Writes a text for every row.

    Args:
      generator: of the model.
      task: whose prompts are used.
      rows: of a view of texts to write.
      language: how likely the model finds the references.

    Raises:
      DataError: there are no rows.
    """
    if not rows:
        raise DataError("there are no texts to write; is the split empty?")
    texts = Decoding().write(
        generator,
        [row["source"] for row in rows],
        [row["prefix"] for row in rows],
        [task] * len(rows),
    )
    return GenerationPredictions(
        rows=rows,
        texts=[text.written for text in texts],
        log_probabilities=np.array([text.log_probability for text in texts], np.float64),
        ended=np.array([text.ended for text in texts], bool),
        language=language,
    )


def generation_metrics(task: TaskInfo, predictions: GenerationPredictions) -> dict[str, float]:
    """Figures of `text_metrics`, and those of the references as language.

    Also `ended_share`: how many texts ended by themselves, and `num_examples`.
    """
    rows = predictions.rows
    figures = text_metrics(task, rows, predictions.texts)
    figures |= language_metrics(predictions.language)
    figures["ended_share"] = float(predictions.ended.mean())
    return figures | {"num_examples": float(len(rows))}


def text_metrics(
    task: TaskInfo, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> dict[str, float]:
    """Figures of a task's job (`writing_figures`), whoever wrote the texts.

    Args:
      task: of kind 'generation'.
      rows: of its view.
      texts: one for each row, without its prefix.
    """
    prepared = task.prepared()

    def of_parts(column: str, parts: Iterable[str]) -> Iterable[Any]:
        known = prepared.num_rows(task.view)
        for part in parts:
            if part in known:
                for row in prepared_rows.read_rows(prepared, task.view, part, (column,)):
                    yield row[column]

    found = WrittenTexts(
        texts=texts,
        references=[row["target"] for row in rows],
        features=[row["features"] for row in rows],
        all_features=lambda: (
            name for names in of_parts("features", prepared_rows.PARTS) for name in names
        ),
        training=lambda: of_parts("target", ("train",)),
        facts=item_facts(prepared, task.view, rows),
    )
    return writing_figures.FIGURES[task.view](found)


def item_facts(
    prepared: Prepared, view: str, rows: Sequence[Mapping[str, Any]]
) -> ItemFacts | None:
    """What holds of each row's item; None where items are not known by attributes."""
    if view not in WRITING or "dataset_spec" not in prepared.manifest:
        return None
    template = prepared.template().writing[view]
    items = prepared.catalogue().items
    columns = writing_figures.told_columns(template, items)
    if not template.shared or not columns:
        return None
    return ItemFacts(
        writing_figures.attribute_dictionary(template, items),
        [attribute_values(items[row["item_indices"][0]], columns) for row in rows],
    )
