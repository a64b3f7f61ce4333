"""Evaluation of tasks with a model at hand; of a checkpoint, see `checkpoint_evaluation`.

In gin, for metrics at every validation of a training run:

    Validation.evaluate = @Evaluator()
    Evaluator.mixture_or_task_name = "movielens_100k_ctr"
    Evaluator.task_feature_lengths = %TASK_FEATURE_LENGTHS
    Validation.best_metric = "validation/auc"
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import gin
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.engine.decoding.generation import Generator
from m6rec_jax.engine.engine import EngineOptions
from m6rec_jax.engine.index.catalogue_index import CatalogueIndex
from m6rec_jax.engine.index.ranking_weights import RankingWeights
from m6rec_jax.engine.index.reranking import Reranker
from m6rec_jax.engine.index.retrieval import Retriever
from m6rec_jax.engine.programs.runtime import Runtime, read_back
from m6rec_jax.engine.task_settings import TaskSettings, check_part
from m6rec_jax.errors import ConfigError
from m6rec_jax.evaluation.reranking import (
    Reranking,
    ranking_name,
    reranked,
    reranker_of,
    without_towers,
)
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.jobs.job import Array, Features, Job, TaskData, Variables
from m6rec_jax.jobs.retrieval import DEFAULT_KS, Retrieval, RetrievalPredictions
from m6rec_jax.metrics.generation import require_text_metrics
from m6rec_jax.model import M6Rec, PromptConfig
from m6rec_jax.pipeline.batches import EvaluationBatches
from m6rec_jax.pipeline.prepared_rows import TaskPart
from m6rec_jax.pipeline.registration import TaskInfo, evaluated_tasks
from m6rec_jax.pipeline.row_layout import prompt_row
from m6rec_jax.pipeline.seqio_tasks import TextToTextTask
from m6rec_jax.pipeline.task_rows import (
    count_rows,
    find_provider,
    sample_sizes,
    task_vocabulary,
)
from m6rec_jax.sharding import LogicalRules, batch_reader, data_parallel, make_mesh
from m6rec_jax.sharding.processes import sum_over_processes

Program = Callable[[Variables, Features], dict[str, Array]]


@gin.configurable
class Evaluator:
    """Metrics of a task, or of every task of a mixture, over one split.

    The task's job defines the metrics, see `m6rec_jax.jobs`. With several tasks, names are
    `<task>/<metric>`.

    Args:
      mixture_or_task_name: registered with seqio.
      task_feature_lengths: `{"inputs": S, "targets": T}`.
      batch_size: rows of a step, over all devices; raised to a multiple of what devices and
        processes need. Metrics do not depend on it.
      split: 'train', 'validation' or 'test'.
      limit: at most so many rows of each task, of all tasks together at most `sample`
        (`EvaluationBatches.sample`); 0: all. A training run sets the attribute `sample`
        (`Validation.rows`).
      ks: cut-offs of retrieval; the longest is the length of the lists.
      reranking: adds to what the model of a retrieval task finds, and orders it; None: as it
        stands in `Reranking()` for tasks of which weights were learnt, and nothing does for others.
        Whoever restores a checkpoint sets the attribute `ranking`, its weights by task.
      rules: logical-axis rules; None: `data_parallel`.
      mesh: where to run; None: that of `make_mesh` (gin).
      progress: show bars. A training run sets the attribute (`Logging.progress`).

    Raises:
      ConfigError: no such task, a number of rows below 0 or a cut-off below 1, or an extra is
        missing that its metrics need.
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
        ks: Sequence[int] | int = DEFAULT_KS,
        reranking: Reranking | None = None,
        rules: LogicalRules | None = None,
        mesh: Mesh | None = None,
        progress: bool = True,
    ) -> None:
        self.tasks = evaluated_tasks(mixture_or_task_name)
        if any(task.job.needs_text_metrics for task in self.tasks):
            require_text_metrics()  # not after an hour of training
        self.lengths = dict(task_feature_lengths)
        self.split, self.limit, self.sample = split, limit, sample
        self.ks = (ks,) if isinstance(ks, int) else tuple(ks)
        if min(limit, sample) < 0:
            raise ConfigError(
                f"Evaluator.limit = {limit} and sample = {sample} must be 0 (all rows) or more"
            )
        if min(self.ks, default=0) < 1:
            raise ConfigError(
                f"Evaluator.ks = {self.ks} (or infer.k) must be cut-offs of 1 or more"
            )
        self.reranking, self.progress = reranking, progress
        self.ranking: Mapping[str, RankingWeights] = {}
        # Where weights are learnt, what retrievers find is collected, and not reranked.
        self.retrievals: list[Retrieval] | None = None
        self._learnt_reranking = Reranking()
        mesh = make_mesh() if mesh is None else mesh
        self.runtime = Runtime(mesh, data_parallel() if rules is None else tuple(rules))
        self.reader = batch_reader(mesh)
        multiple = math.lcm(self.reader[1], self.runtime.batch_multiple)
        self.batch_size = -(-batch_size // multiple) * multiple
        # Validating again compiles nothing and reads nothing twice. Keys: kind and configuration;
        # vocabulary and configuration.
        self.kept: dict[str, dict[Hashable, Any]] = {task.name: {} for task in self.tasks}

    def __call__(self, model: M6Rec, variables: Variables, step: int = 0) -> dict[str, float]:
        """Metrics of the model; `step` is what `Validation.evaluate` gives, and not used.

        Raises:
          ConfigError: as `predict`.
          DataError: data not prepared, or an empty split.
        """
        del step
        metrics: dict[str, float] = {}
        for task in self.tasks:
            found = self.metrics(task, self.predict(task, model, variables))
            prefix = f"{task.name}/" if len(self.tasks) > 1 else ""
            metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        return metrics

    def reranking_of(self, task: TaskInfo) -> Reranking | None:
        """What orders the items that are found for a task.

        Raises:
          ConfigError: `Reranking.towers` is off, and nothing was learnt without them: what is left
            would be the two towers alone.
        """
        learnt = self._learnt_reranking
        is_learnt = ranking_name(task.name, "", learnt.towers) in self.ranking
        if self.reranking is None and not (learnt.towers or is_learnt) and task.job.ranks_catalogue:
            raise ConfigError(
                f"{task.name}: nothing was learnt without the towers (Reranking.towers = False): "
                "`m6rec calibrate --gin.Reranking.towers=False` learns it"
            )
        return self.reranking or (learnt if is_learnt else None)

    @property
    def has_towers(self) -> bool:
        """Whether the two towers take part in what orders items."""
        return (self.reranking or self._learnt_reranking).towers

    def predict(self, task: TaskInfo, model: M6Rec, variables: Variables) -> Any:
        """Predictions of one of the tasks, example by example, see `Job.predict`.

        Raises:
          ConfigError: gin does not give the task one of several rows of prompts, or the model lacks
            what the task needs; or as `reranking_of`.
        """
        check_task(task, model.config.prompts, "the model")
        return task.job.predict(_TaskEvaluation(self, task, model, variables))

    def metrics(self, task: TaskInfo, predictions: Any) -> dict[str, float]:
        """Metrics of predictions; also what did not fit: the share of rows that lost behaviours,
        and of texts in the decoder, such as candidates, that were cut.

        Every process calls it, and gets the same.
        """
        metrics = task.job.metrics(_TaskEvaluation(self, task), predictions)
        batches = self.batches(task)
        shortened, num_rows, cut, num_texts = sum_over_processes(
            batches.num_rows_with_dropped_behaviours,
            batches.num_rows,
            batches.num_truncated_texts,
            batches.num_texts,
        )
        if num_rows:
            metrics["share_with_dropped_behaviours"] = shortened / num_rows
            metrics["share_of_cut_texts"] = cut / max(num_texts, 1)
        return metrics

    def baselines(self, task: TaskInfo, predictions: Any) -> dict[str, dict[str, float]]:
        """See `Job.baselines`."""
        return task.job.baselines(self.evaluation(task), predictions)

    def evaluation(self, task: TaskInfo) -> _TaskEvaluation:
        """What metrics of a task are computed with; it has no model."""
        return _TaskEvaluation(self, task)

    def batches(self, task: TaskInfo) -> EvaluationBatches:
        """This process's rows of one of the tasks; they count what they have dropped."""
        index, count = self.reader

        def make() -> EvaluationBatches:
            rows = {task.name: 0}
            for other in self.tasks if self.sample else ():
                provider = find_provider(other.name)
                rows |= count_rows(provider, self.lengths, self.split, self.sample)
            share = sample_sizes(rows, self.sample)[task.name]
            return EvaluationBatches(
                task.name,
                self.lengths,
                self.batch_size,
                split=self.split,
                process_index=index,
                process_count=count,
                sample=min(filter(None, (share, self.limit)), default=0),
            )

        return _TaskEvaluation(self, task).once("batches", make)


def check_task(task: TaskInfo, prompts: PromptConfig, where: str) -> None:
    """Raises ConfigError where a model, which lies at `where`, cannot be asked for a task."""
    job, row = task.job, prompts.of_task(prompt_row(task.name, prompts.num_tasks))
    check_part(row, job.needs, f"'{task.name}' is a task of {job.kind}, and {where}")


class _TaskEvaluation:
    """`jobs.job.Evaluation` of a task, by a model where one is needed."""

    def __init__(
        self, evaluator: Evaluator, task: TaskInfo, model: Any = None, variables: Any = None
    ) -> None:
        self._evaluator, self._task = evaluator, task
        self.model, self.variables = model, variables
        self.data: TaskData = TaskPart(task, evaluator.split)
        self.ks = evaluator.ks
        self._reranking = evaluator.reranking_of(task)
        self.depth = max(*self.ks, self._reranking.depth if self._reranking else 1)

    def rows(self, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        def read() -> list[dict[str, Any]]:
            if isinstance(task := find_provider(self._task.name), TextToTextTask):
                evaluator = self._evaluator
                number = evaluator.batches(self._task).read_rows
                return task.examples(evaluator.split, evaluator.lengths, number)
            wanted = set(self._read().tolist())
            # One after the other: of a large part a few may be asked for.
            return [row for n, row in enumerate(self.data.rows(columns)) if n in wanted]

        return read() if columns else self.once("rows", read)

    def past_items(self) -> list[np.ndarray]:
        past = self.data.past_items()
        return [past[number] for number in self._read()]

    def seqio_metrics(
        self, tokens: np.ndarray, log_probabilities: np.ndarray, scores: np.ndarray
    ) -> dict[str, float]:
        task = find_provider(self._task.name)
        assert isinstance(task, TextToTextTask)
        return task.metrics(self.rows(), tokens, log_probabilities, scores)

    def _read(self) -> np.ndarray:
        """Which rows are read, ascending."""
        number = self._evaluator.batches(self._task).read_rows
        source = find_provider(self._task.name).source.sample(number)
        return np.concatenate([np.arange(*one) for one in source.ranges(self._evaluator.split)])

    def outputs(self) -> dict[str, np.ndarray]:
        evaluator, task, model = self._evaluator, self._task, self.model
        program = evaluator.runtime.program(_outputs, task.job, model)
        read = progress_bar(
            evaluator.batches(task),
            desc=f"{task.name}, {evaluator.split}",
            unit=" batches",
            delay=1.0,
            leave=False,
            disable=not evaluator.progress,
        )
        return run_program(program, self.variables, read, evaluator.runtime)

    def retriever(self) -> Retriever:
        options = self._options(
            tasks={"": TaskSettings(prompt_row(self._task.name))},
            candidate_length=self._task.candidate_length(),
        )
        return Retriever(self.model, self.variables, task_vocabulary(self._task.name), options)

    def index(self) -> CatalogueIndex:
        return self.retriever().index(self.data.prepared().catalogue().texts)

    def generator(self) -> Generator:
        evaluator = self._evaluator
        options = self._options(
            tasks={task.name: TaskSettings(prompt_row(task.name)) for task in evaluator.tasks},
            batch_sizes=(evaluator.batch_size,),
            source_buckets=(evaluator.lengths["inputs"],),
        )
        return Generator(self.model, self.variables, task_vocabulary(self._task.name), options)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        kept = self._evaluator.kept[self._task.name]
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def reranked(self, found: Retrieval) -> RetrievalPredictions:
        evaluator, reranking = self._evaluator, self._reranking
        if reranking is None:
            return found.predictions
        if evaluator.retrievals is not None:
            evaluator.retrievals.append(found)
            return found.predictions
        reranker, length = self.reranker(reranking), max(self.ks)

        def ordered(towers: bool) -> RetrievalPredictions:
            weights = evaluator.ranking.get(ranking_name(self._task.name, found.name, towers))
            return reranked(reranker, found if towers else without_towers(found), weights)

        rest = ranking_name(self._task.name, found.name, towers=False)
        has_rest = reranking.towers and rest in evaluator.ranking
        best = ordered(reranking.towers)
        return dataclasses.replace(
            best,
            top_items=best.top_items[:, :length],
            scores=best.scores[:, :length],
            towers_ranks=found.predictions.ranks,
            rest_ranks=ordered(towers=False).ranks if has_rest else None,
        )

    def reranker(self, reranking: Reranking) -> Reranker:
        """Of the task's data; made once."""
        depth = reranking.depth
        return self.once(("reranker", depth), lambda: reranker_of(self.data.prepared(), depth))

    def _options(self, **options: Any) -> EngineOptions:
        lengths = self._evaluator.lengths
        return EngineOptions(
            lengths["inputs"],
            lengths["targets"],
            runtime=self._evaluator.runtime,
            progress=self._evaluator.progress,
            **options,
        )


def _outputs(job: Job, model: M6Rec, variables: Variables, features: Features) -> dict[str, Array]:
    """A job's outputs, and the features that say what they are of; for use inside jit."""
    names = ("example_weights", *job.identity)
    identity = {name: jnp.asarray(features[name]) for name in names}
    return job.outputs(model, variables, features) | identity


def run_program(
    program: Program,
    variables: Variables,
    batches: Iterable[Mapping[str, np.ndarray]],
    runtime: Runtime,
) -> dict[str, np.ndarray]:
    """Results of a program for all rows of the batches but padding, `{name: [rows, ...]}`.

    With several processes each gives its own rows, and every process gets the results of all.
    """
    results = (program(variables, runtime.place(batch)) for batch in batches)
    parts: dict[str, list[np.ndarray]] = {}
    for values in read_back(results):
        real = values.pop("example_weights") > 0
        for name, value in values.items():
            parts.setdefault(name, []).append(value[real])
    return {name: np.concatenate(values) for name, values in parts.items()}
