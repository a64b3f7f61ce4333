"""Evaluation of tasks with a model at hand; of a checkpoint, see `checkpoint_evaluation`.

In gin, for figures at every validation of a training run:

    Validation.evaluate = @Evaluator()
    Evaluator.mixture_or_task_name = "movielens_100k_ctr"
    Evaluator.task_feature_lengths = %TASK_FEATURE_LENGTHS
    Validation.best_metric = "validation/auc"
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.evaluation import programs, tasks
from m6rec_jax.evaluation.baselines import MeanBaselines, mean_baselines
from m6rec_jax.evaluation.generation import generation_metrics
from m6rec_jax.evaluation.predictions import (
    ClassificationPredictions,
    GenerationPredictions,
    LanguagePredictions,
    LikelihoodPredictions,
    Predictions,
    RecommendationPredictions,
    ScoringPredictions,
)
from m6rec_jax.evaluation.recommendation import recommend_items, recommendation_metrics
from m6rec_jax.evaluation.reranking import Reranking
from m6rec_jax.evaluation.task_facts import task_vocabulary
from m6rec_jax.evaluation.writers import Writers
from m6rec_jax.inference.catalogue_index import CatalogueIndex
from m6rec_jax.inference.retrieval import Retriever
from m6rec_jax.inference.runtime import Runtime
from m6rec_jax.metrics.generation import require_text_metrics
from m6rec_jax.model import M6Rec
from m6rec_jax.pipeline import prepared_rows
from m6rec_jax.pipeline.evaluation_batches import EvaluationBatches
from m6rec_jax.pipeline.prompt_rows import prompt_row
from m6rec_jax.pipeline.registration import TaskInfo, evaluated_tasks
from m6rec_jax.pipeline.task_rows import find_provider, rows_per_task, sample_sizes
from m6rec_jax.sharding import LogicalRules, batch_reader, data_parallel, make_mesh
from m6rec_jax.sharding.processes import sum_over_processes

Variables = Mapping[str, Any]

logger = logging.getLogger(__name__)

# Kinds for which the model writes.
_WRITTEN = ("generation", "title_recommendation")
# Kinds whose predictions take a program and batches, and nothing else.
_PREDICT: Mapping[str, Callable[..., Predictions]] = {
    "language": tasks.predict_language,
    "classification": tasks.predict_classification,
    "likelihood": tasks.predict_likelihood,
}


@gin.configurable
class Evaluator:
    """Figures of a task, or of every task of a mixture, over one split.

    Scoring tasks give `auc`, `user_averaged_auc`, `log_loss`, `calibration_error`; retrieval tasks
    `hit_rate@k`, `ndcg@k`, `mrr` over the whole catalogue without the items already seen; language
    tasks `perplexity`, `token_accuracy`; classification tasks `accuracy`, `macro_f1`, `auc`;
    zero-shot tasks `auc` and `user_averaged_auc`, beside those of popularity and chance; generation
    tasks what their field reports of texts (`writing_figures`), written as `Decoding` says. With
    several tasks, names are `<task>/<figure>`.

    Args:
      mixture_or_task_name: registered with `register_recommendation_tasks`.
      task_feature_lengths: `{"inputs": S, "targets": T}`.
      batch_size: rows of a step, over all devices; raised to a multiple of what these and the
        processes need, with a message: figures do not depend on it.
      split: 'train', 'validation' or 'test'.
      limit: at most so many rows of each task (per process); 0: all.
      sample: so many rows of all tasks together, drawn at random once (`EvaluationBatches.sample`);
        0: all. A training run sets the attribute `sample` (`Validation.rows`).
      ks: cut-offs of retrieval; the longest is the length of the lists.
      reranking: orders the best of retrieval tasks anew, by another model; None: by similarity.
      rules: logical-axis rules; None: `data_parallel`.
      mesh: where to run; None: that of `make_mesh` (gin).
    """

    def __init__(
        self,
        mixture_or_task_name: str,
        task_feature_lengths: Mapping[str, int],
        batch_size: int = 32,
        *,
        split: str = "validation",
        limit: int = 0,
        sample: int = 0,
        ks: Sequence[int] = tasks.DEFAULT_KS,
        reranking: Reranking | None = None,
        rules: LogicalRules | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.tasks = evaluated_tasks(mixture_or_task_name)
        if any(task.kind == "generation" for task in self.tasks):
            require_text_metrics()  # not after an hour of training
        self._lengths = dict(task_feature_lengths)
        self._split, self._limit, self.sample = split, limit, sample
        self.ks = tuple(ks)
        self._reranking = reranking
        mesh = make_mesh() if mesh is None else mesh
        self.runtime = Runtime(mesh, data_parallel() if rules is None else tuple(rules))
        self._reader = batch_reader(mesh)
        multiple = math.lcm(self._reader[1], self.runtime.batch_multiple)
        self._batch_size = -(-batch_size // multiple) * multiple
        if self._batch_size != batch_size:
            logger.info(
                "evaluation has %d rows a step instead of %d: a multiple of %d divides over the "
                "devices and processes",
                self._batch_size,
                batch_size,
                multiple,
            )
        # One program per kind of task and model: validating again compiles nothing.
        self._programs: dict[tuple[Any, ...], programs.Program] = {}
        self._baselines: dict[str, MeanBaselines] = {}
        self._retrievers: dict[tuple[str, Any], Retriever] = {}
        self._writers = Writers(self._lengths, self._batch_size, split, limit, self.runtime)
        self._batches: dict[str, EvaluationBatches] = {}
        self._seen: dict[str, Mapping[int, np.ndarray]] = {}

    def __call__(self, model: M6Rec, variables: Variables, step: int = 0) -> dict[str, float]:
        """Figures of the model; `step` is for the caller's log only.

        Raises:
          ConfigError: as `predict`.
          DataError: data not prepared, an empty split, or one class only.
        """
        del step
        figures: dict[str, float] = {}
        for task in self.tasks:
            found = self.metrics(task, self.predict(task, model, variables))
            prefix = f"{task.name}/" if len(self.tasks) > 1 else ""
            figures |= {f"{prefix}{name}": value for name, value in found.items()}
        return figures

    def predict(self, task: TaskInfo, model: M6Rec, variables: Variables) -> Predictions:
        """Predictions of one of the tasks, example by example.

        Raises:
          ConfigError: gin does not say which of several rows of prompts the task has.
        """
        prompt_row(task.name, model.config.prompts.num_tasks)
        batches = self._task_batches(task)
        runtime = self.runtime
        if task.kind == "scoring":
            return tasks.predict_scoring(
                self._program(task, model),
                variables,
                batches,
                runtime,
                positive_classes=task.positive_classes,
            )
        if task.kind in _WRITTEN:
            language = tasks.predict_language(
                self._program(task, model), variables, batches, runtime
            )
            towers = self._towers_beside(task, model, variables)
            k, sample = max(self.ks), batches.sampled_rows
            return self._writers.predict(task, model, variables, language, k, towers, sample)
        if task.kind == "item_recommendation":
            return recommend_items(
                self._program(task, model),
                variables,
                batches,
                runtime,
                self._index(task, model, variables),
                self._writers.rows(task),
                max(self.ks),
            )
        if task.kind in _PREDICT:
            return _PREDICT[task.kind](self._program(task, model), variables, batches, runtime)
        if task.name not in self._seen:
            self._seen[task.name] = prepared_rows.seen_items(task.prepared(), self._split)
        reranking = self._reranking
        predictions = tasks.predict_retrieval(
            self._program(task, model),
            variables,
            batches,
            runtime,
            self._index(task, model, variables),
            self._seen[task.name],
            k=max(*self.ks, reranking.k if reranking else 1),
        )
        if reranking is None:
            return predictions
        seen = self._seen[task.name]
        predictions = reranking(task, self._split, predictions, seen, runtime)
        length = max(self.ks)
        return dataclasses.replace(
            predictions,
            top_items=predictions.top_items[:, :length],
            scores=predictions.scores[:, :length],
        )

    def metrics(self, task: TaskInfo, predictions: Predictions) -> dict[str, float]:
        """Figures of predictions; also the share of rows that lost behaviours to the length budget.

        Every process calls it, and gets the same.
        """
        if isinstance(predictions, ScoringPredictions):
            figures = tasks.scoring_metrics(predictions)
        elif isinstance(predictions, LanguagePredictions):
            figures = tasks.language_metrics(predictions)
        elif isinstance(predictions, ClassificationPredictions):
            figures = tasks.classification_metrics(predictions)
        elif isinstance(predictions, GenerationPredictions):
            figures = generation_metrics(task, predictions)
        elif isinstance(predictions, RecommendationPredictions):
            counts = task.prepared().catalogue().train_counts
            figures = recommendation_metrics(predictions, counts, self.ks)
        elif isinstance(predictions, LikelihoodPredictions):
            figures = tasks.likelihood_metrics(predictions, self._mean_baselines(task))
        else:
            catalogue = task.prepared().catalogue()
            figures = tasks.retrieval_metrics(
                predictions, len(catalogue.texts), self.ks, catalogue.held_out
            )
        batches = self._task_batches(task)
        shortened, num_rows = sum_over_processes(
            batches.num_rows_with_dropped_behaviours, batches.num_rows
        )
        if num_rows:
            figures["share_with_dropped_behaviours"] = shortened / num_rows
        return figures

    def _task_batches(self, task: TaskInfo) -> EvaluationBatches:
        if task.name not in self._batches:
            index, count = self._reader
            rows: dict[str, int] = {}
            for other in self.tasks if self.sample else ():
                rows |= rows_per_task(find_provider(other.name), self._split)
            self._batches[task.name] = EvaluationBatches(
                task.name,
                self._lengths,
                self._batch_size,
                split=self._split,
                process_index=index,
                process_count=count,
                limit=self._limit,
                sample=sample_sizes(rows, self.sample).get(task.name, 0),
            )
        return self._batches[task.name]

    def _mean_baselines(self, task: TaskInfo) -> MeanBaselines:
        if task.name not in self._baselines:
            self._baselines[task.name] = mean_baselines(task)
        return self._baselines[task.name]

    def _towers_beside(
        self, task: TaskInfo, model: M6Rec, variables: Variables
    ) -> Retriever | None:
        """Two towers that read the same rows, where one of the tasks has them."""
        for other in self.tasks:
            same = (other.dataset, other.split, other.view) == (task.dataset, task.split, task.view)
            if other.kind == "item_recommendation" and same:
                return self._retriever(other, model, variables)
        return None

    def _index(self, task: TaskInfo, model: M6Rec, variables: Variables) -> CatalogueIndex:
        retriever = self._retriever(task, model, variables)
        return retriever.index(task.prepared().catalogue().texts)

    def _retriever(self, task: TaskInfo, model: M6Rec, variables: Variables) -> Retriever:
        key = (task.name, model.config)
        if key not in self._retrievers:
            self._retrievers[key] = Retriever(
                model,
                variables,
                task_vocabulary(task.name),
                source_length=self._lengths["inputs"],
                target_length=self._lengths["targets"],
                task_id=prompt_row(task.name),
                item_length=task.candidate_length(),
                mesh=self.runtime.mesh,
                rules=self.runtime.rules,
            )
        retriever = self._retrievers[key]
        retriever.variables = variables
        return retriever

    def _program(self, task: TaskInfo, model: M6Rec) -> programs.Program:
        key = (task.kind, task.positive_classes, model.config)
        if key not in self._programs:
            make = {
                "language": lambda: programs.language_program(model, self.runtime),
                "generation": lambda: programs.language_program(model, self.runtime),
                "title_recommendation": lambda: programs.language_program(model, self.runtime),
                "item_recommendation": lambda: programs.retrieval_program(model, self.runtime),
                "retrieval": lambda: programs.retrieval_program(model, self.runtime),
                "classification": lambda: programs.classification_program(model, self.runtime),
                "likelihood": lambda: programs.likelihood_program(model, self.runtime),
                "scoring": lambda: programs.scoring_program(
                    model, self.runtime, task.positive_classes
                ),
            }
            self._programs[key] = make[task.kind]()
        return self._programs[key]
