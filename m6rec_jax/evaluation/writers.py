"""Models that write, task by task: what `Evaluator` keeps from one validation to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m6rec_jax.evaluation.generation import predict_generation
from m6rec_jax.evaluation.predictions import (
    GenerationPredictions,
    LanguagePredictions,
    RecommendationPredictions,
)
from m6rec_jax.evaluation.recommendation import recommend_titles
from m6rec_jax.evaluation.task_facts import task_vocabulary
from m6rec_jax.inference.generation import Generator
from m6rec_jax.inference.retrieval import Retriever
from m6rec_jax.inference.runtime import Runtime
from m6rec_jax.inference.shared_titles import SharedTitles
from m6rec_jax.inference.task_settings import TaskSettings
from m6rec_jax.inference.title_trie import TitleTrie
from m6rec_jax.model import M6Rec
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.prompt_rows import prompt_row
from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.pipeline.task_rows import sampled_places


class Writers:
    """Generators, tries and rows of the tasks whose texts are written.

    With several processes each one writes all texts: what is written must be the same everywhere.

    Args:
      lengths: `{"inputs": S, "targets": T}`.
      batch_size: texts written at a time, over all devices.
      split, limit: see `Evaluator`.
      runtime: where to run.
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        batch_size: int,
        split: str,
        limit: int,
        runtime: Runtime,
    ) -> None:
        self._lengths, self._batch_size, self._runtime = lengths, batch_size, runtime
        self._split, self._limit = split, limit
        # One generator per model, whatever its task: validating again compiles nothing.
        self._generators: dict[tuple[str, Any], Generator] = {}
        self._settings: dict[str, TaskSettings] = {}
        self._tries: dict[str, TitleTrie] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def predict(
        self,
        task: TaskInfo,
        model: M6Rec,
        variables: Mapping[str, Any],
        language: LanguagePredictions,
        k: int,
        retriever: Retriever | None = None,
        sample: int | None = None,
    ) -> GenerationPredictions | RecommendationPredictions:
        """What the model writes for every row of a task.

        Args:
          task: of kind 'generation' or 'title_recommendation'.
          model, variables: see `Evaluator`.
          language: how likely the model finds the references.
          k: length of the lists of titles.
          retriever: two towers of the same data, which order the items of one title.
          sample: rows of the sample that `language` is of; None: all.
        """
        generator = self._generator(task, model, variables)
        rows = self.rows(task, sample)[: self._limit or None]
        if task.kind == "generation":
            return predict_generation(generator, task.name, rows, language)
        trie = self._trie(task, generator)
        shared = None
        if retriever is not None:
            shared = SharedTitles(retriever, trie, task.prepared().catalogue().texts)
        return recommend_titles(generator, task.name, trie, rows, language, k, shared)

    def rows(self, task: TaskInfo, sample: int | None = None) -> list[dict[str, Any]]:
        """Rows of a task's view: all, or a sample of so many (`EvaluationBatches.sample`)."""
        if task.name not in self._rows:
            found = prepared_rows.read_rows(task.prepared(), task.view, self._split)
            self._rows[task.name] = list(found)
        rows = self._rows[task.name]
        if sample is None or sample >= len(rows):
            return rows
        return [rows[place] for place in sampled_places(len(rows), sample)]

    def _trie(self, task: TaskInfo, generator: Generator) -> TitleTrie:
        if task.name not in self._tries:
            titles = task.prepared().catalogue().texts
            self._tries[task.name] = TitleTrie(generator.vocabulary, titles, generator.max_tokens)
        return self._tries[task.name]

    def _generator(self, task: TaskInfo, model: M6Rec, variables: Mapping[str, Any]) -> Generator:
        vocabulary = task_vocabulary(task.name)
        self._settings[task.name] = TaskSettings(prompt_row(task.name))
        key = (vocabulary.fingerprint, model.config)
        if key not in self._generators:
            self._generators[key] = Generator(
                model,
                variables,
                vocabulary,
                source_length=self._lengths["inputs"],
                target_length=self._lengths["targets"],
                tasks=self._settings,
                batch_sizes=(self._batch_size,),
                source_buckets=(self._lengths["inputs"],),
                mesh=self._runtime.mesh,
                rules=self._runtime.rules,
            )
        generator = self._generators[key]
        generator.variables = variables
        return generator
