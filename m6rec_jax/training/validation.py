"""Validation during training: how often, on which rows, and what it computes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from m6rec_jax.io.progress import progress_bar
from m6rec_jax.sharding import place_batch
from m6rec_jax.training.objective import Objective
from m6rec_jax.training.options import TrainingData, Validation
from m6rec_jax.training.task_data import check_labels, validation_batches
from m6rec_jax.training.train_state import TrainSetup, TrainState
from m6rec_jax.training.train_step import compile_step, evaluation_means, make_eval_step

logger = logging.getLogger(__name__)
MOST_ROWS = 2048
# Costs are counted in forward passes of a row. Training takes at least two: forwards, and backwards
# through a frozen backbone.
TRAINING_COST = 2
LARGEST_SHARE = 0.2


class ValidationPlan(NamedTuple):
    """A validation every `period` steps on `rows` rows (0: all there are)."""

    period: int
    rows: int


def plan_validation(
    period: int,
    train_steps: int,
    batch_size: int,
    *,
    passes: int = 1,
    fixed_cost: float = 0.0,
    first: bool = False,
    least_rows: int = 1,
) -> ValidationPlan:
    """Few enough validations, on few enough rows, that they are at most a fifth of a run's work.

    All is counted in rows, not in seconds: a resumed run must validate as an unbroken one would.

    Args:
      period: steps between validations, as asked for.
      train_steps, batch_size: of the run.
      passes: how often a validation reads each row: for its loss, and for further metrics.
      fixed_cost: what else it computes, in forward passes of a row, such as a catalogue's vectors.
        Where that alone would take more than half the share, validations are fewer.
      first: whether a validation comes before the first step.
      least_rows: of a validation, whatever it costs.
    """

    def affordable(period: int) -> float:
        # Of `period` steps there may be one more validation than there are periods: the last one.
        steps = min(period, train_steps)
        work = TRAINING_COST * steps * batch_size * LARGEST_SHARE / (1 - LARGEST_SHARE)
        return work / (3 if first else 2)

    if period < train_steps:
        period *= math.ceil(max(1.0, 2 * fixed_cost / affordable(period)))
    rows = int((affordable(period) - fixed_cost) / passes)
    return ValidationPlan(period, max(least_rows, min(rows, MOST_ROWS)))


def catalogue_cost(evaluate: Any, lengths: Mapping[str, int]) -> float:
    """Forward passes of a row that the vectors of all items cost at each validation.

    An `Evaluator` of retrieval tasks embeds their catalogues; `lengths` are tokens of a row.
    """
    cost = 0.0
    for task in getattr(evaluate, "tasks", ()):
        if task.job.ranks_catalogue:
            tokens = task.candidate_length() or lengths["targets"]
            cost += len(task.prepared().catalogue().items) * tokens / sum(lengths.values())
    return cost


class Validator:
    """Validates a run when called; compiles its step at the first call only.

    Args:
      setup, objective: of the run.
      data, validation: what is read, and when. `evaluate` gets the number of rows, and whether it
        shows bars, as its attributes `sample` and `progress`, where it has them.
      rows: of a batch.
      train_steps: of the run.
      jobs: name to number of each job whose losses are logged apart.
      progress: whether to show a bar.
    """

    def __init__(
        self,
        setup: TrainSetup,
        objective: Objective,
        data: TrainingData,
        validation: Validation,
        *,
        rows: int,
        train_steps: int,
        jobs: Mapping[str, int],
        progress: bool,
    ) -> None:
        self._setup, self._objective, self._data = setup, objective, data
        self._validation, self._rows, self._jobs = validation, rows, jobs
        self._train_steps, self._progress = train_steps, progress
        self._compiled: jax.stages.Compiled | None = None
        self._plan = ValidationPlan(validation.period or train_steps, validation.rows or 0)
        evaluate: Any = validation.evaluate
        if validation.rows is None and (validation.period or validation.first):
            self._plan = plan_validation(
                self._plan.period,
                train_steps,
                data.batch_size,
                passes=1 + (evaluate is not None),
                fixed_cost=catalogue_cost(evaluate, data.task_feature_lengths),
                first=validation.first,
                least_rows=rows,
            )
        if validation.period not in (None, self._plan.period):
            logger.info(
                "validation every %d steps instead of %d: it computes the vectors of all items "
                "(Validation.rows = 0: as often as asked for, on all rows)",
                self._plan.period,
                validation.period,
            )
        if self._plan.rows and hasattr(evaluate, "sample"):
            evaluate.sample = self._plan.rows
        if hasattr(evaluate, "progress"):
            evaluate.progress = progress

    def is_due(self, step: int) -> bool:
        """Whether a run is validated after a step; 0: before its first one."""
        if step == 0 or self._validation.period is None:
            return step == 0 and self._validation.first
        return step % self._plan.period == 0 or step == self._train_steps

    def __call__(
        self, state: TrainState, step: int, should_stop: Callable[[], object]
    ) -> dict[str, float] | None:
        """Metrics named `validation/…`; `validation/loss` is over all rows at once.

        What `evaluate` finds by the name of a metric of the loss, perhaps of fewer rows, is left
        out: a single task of texts has a `loss`, too.

        Args:
          state: what is validated.
          step: its step.
          should_stop: asked before every batch and before `evaluate`, by all processes alike.

        Returns:
          None where that said so: what is left of the time is for a checkpoint.
        """
        setup, evaluate, sums = self._setup, self._validation.evaluate, []
        batches: Any = validation_batches(
            self._data,
            self._validation.batches,
            setup.mesh,
            rows=self._rows,
            sample=self._plan.rows,
        )
        for batch in progress_bar(
            batches,
            desc="validation",
            unit=" batches",
            delay=1.0,
            leave=False,
            disable=not self._progress,
        ):
            if should_stop():
                return None
            check_labels(batch, setup.model.config.prompts)
            read = {name: x for name, x in batch.items() if name != "example_weights"}
            features = place_batch(read, setup.mesh)
            if self._compiled is None:
                eval_step = make_eval_step(
                    setup.model, loss=self._objective.loss, jobs=tuple(self._jobs.values())
                )
                self._compiled = compile_step(
                    setup, eval_step, state, features, updates_state=False
                )
                if rows := getattr(batches, "read_rows", None):  # of the pipeline's batches
                    logger.info("validation on %s rows, the same ones each time", f"{rows:,}")
            sums.append(jax.device_get(self._compiled(state, features)))
        metrics = evaluation_means(sums, tuple(self._jobs)) if sums else {}
        if evaluate is not None:
            if should_stop():
                return None
            variables = self._objective.evaluated(state.variables)
            metrics = dict(evaluate(setup.model, variables, step)) | metrics
        if rows := getattr(batches, "read_rows", None):
            metrics["rows"] = rows
        return {f"validation/{name}": float(value) for name, value in metrics.items()}
