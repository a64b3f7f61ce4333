"""Validation during training: how often, on which rows, and what it computes."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.sharding import LogicalRules, place_batch
from m6rec_jax.training.data_state import Batch
from m6rec_jax.training.rounded_weights import RoundedWeightsLoss
from m6rec_jax.training.task_data import check_labels
from m6rec_jax.training.train_state import TrainState
from m6rec_jax.training.train_step import (
    CompiledStep,
    EvaluationSums,
    LossFunction,
    make_eval_step,
)

logger = logging.getLogger(__name__)

# (model, variables, step) -> metrics
Evaluate = Callable[[M6Rec, Mapping[str, Any], int], Mapping[str, float]]
_NOT_FOR_THE_MODEL = ("example_weights",)
MOST_ROWS = 2048
# Costs are counted in forward passes of a row. Training takes at least two: forwards, and backwards
# through a frozen backbone.
TRAINING_COST = 2
LARGEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class ValidationPlan:
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

    stretched = period * math.ceil(max(1.0, 2 * fixed_cost / affordable(period)))
    if period < train_steps:
        period = stretched
    rows = int((affordable(period) - fixed_cost) / passes)
    return ValidationPlan(period, max(least_rows, min(rows, MOST_ROWS)))


def catalogue_cost(evaluate: Any, lengths: Mapping[str, int]) -> float:
    """Forward passes of a row that the vectors of all items cost at each validation.

    Args:
      evaluate: of `Validation`; an `Evaluator` of retrieval tasks embeds their catalogues.
      lengths: tokens of a row, by feature.
    """
    cost = 0.0
    for task in getattr(evaluate, "tasks", ()):
        if task.job.ranks_catalogue:
            tokens = task.candidate_length() or lengths["targets"]
            cost += len(task.prepared().catalogue().items) * tokens / sum(lengths.values())
    return cost


class Validator:
    """Runs a validation when called; compiles its step at the first call only.

    Args:
      model, mesh, rules, loss: of the run.
      jobs: name to number of each job whose losses are logged apart.
      abstract: state with shardings.
      make_batches: one pass of validation batches.
      extended: adds what the loss needs to a batch.
      evaluate: further metrics, or None.
      progress: whether to show a bar.
    """

    def __init__(
        self,
        model: M6Rec,
        abstract: TrainState,
        mesh: Mesh,
        rules: LogicalRules,
        loss: LossFunction,
        make_batches: Callable[[], Iterable[Batch]],
        extended: Callable[[Batch], Batch],
        evaluate: Evaluate | None,
        jobs: Mapping[str, int],
        progress: bool = False,
    ) -> None:
        self._model, self._abstract, self._mesh, self._rules = model, abstract, mesh, rules
        self._loss, self._make_batches, self._evaluate = loss, make_batches, evaluate
        self._extended = extended
        self._jobs, self._progress = jobs, progress
        self._rounded = jax.jit(loss.rounded) if isinstance(loss, RoundedWeightsLoss) else None
        self._compiled: CompiledStep | None = None
        self._logged = False

    def __call__(
        self, state: TrainState, step: int, should_stop: Callable[[], bool] = lambda: False
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
        sums: EvaluationSums | None = None
        batches: Any = self._make_batches()
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
            check_labels(batch, self._model.config.prompts)
            batch = self._extended(batch)
            kept = {name: x for name, x in batch.items() if name not in _NOT_FOR_THE_MODEL}
            features = place_batch(kept, self._mesh)
            if self._compiled is None:
                self._compiled = CompiledStep(
                    make_eval_step(self._model, loss=self._loss, jobs=tuple(self._jobs.values())),
                    self._abstract,
                    features,
                    mesh=self._mesh,
                    rules=self._rules,
                    updates_state=False,
                )
            part = jax.device_get(self._compiled(state, features))
            sums = part if sums is None else jax.tree.map(np.add, sums, part)
        metrics = {} if sums is None else sums.scalars(tuple(self._jobs))
        if self._evaluate is not None:
            if should_stop():
                return None
            variables = state.variables
            if self._rounded is not None:
                variables = self._rounded(variables)
            metrics = dict(self._evaluate(self._model, variables, step)) | metrics
        rows = getattr(batches, "read_rows", None)  # of the pipeline's batches
        if rows is not None and not self._logged:
            self._logged = True
            logger.info("validation on %s rows, the same ones each time", f"{rows:,}")
        return {f"validation/{name}": float(value) for name, value in metrics.items()} | (
            {} if rows is None else {"validation/rows": rows}
        )
