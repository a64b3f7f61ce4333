"""Validation during training: the loss over a split, and figures of a callable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.sharding import LogicalRules, place_batch
from m6rec_jax.training.data_state import Batch
from m6rec_jax.training.train_state import TrainState
from m6rec_jax.training.train_step import (
    CompiledStep,
    EvaluationSums,
    LossFunction,
    make_eval_step,
)

# (model, variables, step) -> figures
Evaluate = Callable[[M6Rec, Mapping[str, Any], int], Mapping[str, float]]
_NOT_FOR_THE_MODEL = ("example_weights",)


class Validation:
    """Runs a validation when called; compiles its step at the first call only.

    Args:
      model, mesh, rules, loss: of the run.
      jobs: name to number of each job whose losses are told apart.
      abstract: state with shardings.
      make_batches: one pass of validation batches (None: no validation loss).
      evaluate: further figures, or None.
    """

    def __init__(
        self,
        model: M6Rec,
        abstract: TrainState,
        mesh: Mesh,
        rules: LogicalRules,
        loss: LossFunction,
        make_batches: Callable[[], Iterable[Batch]],
        evaluate: Evaluate | None,
        jobs: Mapping[str, int],
    ) -> None:
        self._model, self._abstract, self._mesh, self._rules = model, abstract, mesh, rules
        self._loss, self._make_batches, self._evaluate = loss, make_batches, evaluate
        self._jobs = jobs
        self._compiled: CompiledStep | None = None

    def __call__(
        self, state: TrainState, step: int, should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Figures named `validation/…`; `validation/loss` is over the whole split at once.

        What `evaluate` finds by the name of a figure of the loss, perhaps of fewer rows, is left
        out: a single task of texts has a `loss`, too.

        Args:
          state: what is validated.
          step: its step.
          should_stop: asked before every batch and before `evaluate`, by all processes alike.

        Returns:
          None where that said so: what is left of the time is for a checkpoint.
        """
        sums: EvaluationSums | None = None
        for batch in self._make_batches():
            if should_stop():
                return None
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
        figures = {} if sums is None else sums.scalars(tuple(self._jobs))
        if self._evaluate is not None:
            if should_stop():
                return None
            figures = dict(self._evaluate(self._model, state.variables, step)) | figures
        return {f"validation/{name}": float(value) for name, value in figures.items()}

    @property
    def num_traces(self) -> int:
        """How often Python ran through the step: 0 before the first call, then 1."""
        return self._compiled.num_traces if self._compiled else 0
