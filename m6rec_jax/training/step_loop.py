"""The steps of a run: data in, one compiled step, log, validation, checkpoints, stopping."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.errors import M6RecError
from m6rec_jax.objectives import is_by_job, job_losses
from m6rec_jax.objectives.sums import Sum
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.sharding.placement import leads_stream
from m6rec_jax.training.early_stopping import BestMetric
from m6rec_jax.training.goodput import Goodput
from m6rec_jax.training.input_feed import InputFeed
from m6rec_jax.training.metric_log import MetricLog
from m6rec_jax.training.parameter_sizes import parameter_sizes
from m6rec_jax.training.preemption import PreemptionGuard
from m6rec_jax.training.train_state import TrainState, trainable_groups
from m6rec_jax.training.train_step import CompiledStep
from m6rec_jax.training.validation import Validator

EARLY_STOPPING = "early stopping"
logger = logging.getLogger(__name__)


@dataclass
class StepLoop:
    """Everything the steps of a run need.

    Attributes:
      mesh, rules: of the run.
      abstract: state with shardings.
      description: for the manifests.
      store: where checkpoints go.
      best: follows a validation metric.
      clock: sums seconds by part.
      train_steps: steps in all.
      batch_size: rows of a step.
      jobs: names of the jobs whose losses are logged apart.
      trainable: 'prompts' or 'all'.
      checkpoint_period, log_period, validation_period: in steps; the last may be None: never.
      validate_first: whether a new run is validated before its first step, too.
      validated: False where a run resumes from a step that was saved without a validation.
      validate: called every `validation_period` steps and after the last.
    """

    mesh: Mesh
    rules: LogicalRules
    abstract: TrainState
    description: RunDescription
    store: CheckpointStore
    best: BestMetric
    clock: Goodput
    train_steps: int
    batch_size: int
    jobs: Sequence[str]
    trainable: str
    checkpoint_period: int
    log_period: int
    validation_period: int | None
    validate_first: bool
    validated: bool
    validate: Validator

    def run(
        self,
        state: TrainState,
        feed: InputFeed,
        step_function: Callable[..., Any],
        log: MetricLog,
        bar: Any,
    ) -> tuple[TrainState, dict[str, float], str | None]:
        """Steps until the end, early stopping or a signal; a checkpoint is written at the end.

        Returns:
          The last state, the last scalars, and what stopped the run before its end.
        """
        step = int(state.step)
        compiled: CompiledStep | None = None
        window = _Window(self.clock, self.jobs, self.batch_size)
        scalars: dict[str, float] = {}
        validated: dict[str, float] | None = None
        with PreemptionGuard() as guard:
            # The notice may have come while the run was starting, and compiling takes minutes.
            stopped_by = guard.signal_name if guard.should_stop() else None
            if self.validate_first and step == 0 and stopped_by is None:
                validated, _, stopped_by = self._validated(state, step, guard, log)
            if self.owes_validation(step) and stopped_by is None:
                validated, _, stopped_by = self._validated(state, step, guard, log)
                if validated is not None:
                    self.store.add_validation(step, validated, self._followed(True))
            while step < self.train_steps and stopped_by is None:
                with self.clock.measure("input_wait"):
                    features = feed.next()
                if compiled is None:
                    compiled = self._compiled(step_function, features)
                    window.begin()
                with self.clock.measure("step"):
                    state, metrics = compiled(state, features)
                    window.add(metrics)
                step += 1
                bar.update(1)
                is_last = step == self.train_steps
                if guard.should_stop():
                    stopped_by = guard.signal_name
                if step % self.log_period == 0 or is_last or stopped_by:
                    scalars = window.close()
                    self._check_finite("loss", scalars["loss"], step)
                    log.write(step, scalars | self.clock.report())
                    bar.set_postfix(_shown(scalars), refresh=False)
                validated, is_best = None, False
                # A signal leaves little time: it is for the checkpoint.
                if self._is_validated(step) and stopped_by is None:
                    try:
                        validated, is_best, stopped_by = self._validated(state, step, guard, log)
                    except M6RecError:
                        # What was trained is not lost. Of several processes others may not have
                        # failed, and a checkpoint takes all of them.
                        if jax.process_count() == 1:
                            self._save(state, step, feed, None, metrics)
                        raise
                if step % self.checkpoint_period == 0 or is_last or stopped_by or is_best:
                    with self.clock.measure("checkpoint"):
                        self._save(state, step, feed, validated, metrics)
                        # A signal leaves little time here, too.
                        if stopped_by in (None, EARLY_STOPPING):
                            trained = trainable_groups(state.variables, self.trainable)
                            log.write(step, parameter_sizes(trained, self.mesh))
                    log.flush()
        return state, scalars | (validated or {}), stopped_by

    def owes_validation(self, step: int) -> bool:
        """Whether the step that a run resumes from should have been validated, and was not.

        A signal may have come, or the validation may have failed.
        """
        return not self.validated and self._is_validated(step)

    def _compiled(self, step_function: Callable[..., Any], features: Any) -> CompiledStep:
        with self.clock.measure("compile"):
            return CompiledStep(
                step_function,
                self.abstract,
                features,
                mesh=self.mesh,
                rules=self.rules,
                updates_state=True,
            )

    def _is_validated(self, step: int) -> bool:
        period = self.validation_period
        return period is not None and (step % period == 0 or step == self.train_steps)

    def _validated(
        self, state: TrainState, step: int, guard: PreemptionGuard, log: MetricLog
    ) -> tuple[dict[str, float] | None, bool, str | None]:
        """Metrics of a validation, logged; whether they are the best; what ends the run.

        There are no metrics where a signal came before them.
        """
        with self.clock.measure("evaluation"):
            metrics = self.validate(state, step, guard.should_stop)
        if metrics is None:
            return None, False, guard.signal_name
        self.best.check(metrics)
        log.write(step, metrics)
        # There is no checkpoint of the start.
        is_best = step > 0 and self.best.update(step, metrics)
        _tell(step, metrics, is_best)
        return metrics, is_best, EARLY_STOPPING if self.best.should_stop else None

    def _followed(self, validated: bool) -> dict[str, Any]:
        """What a step's manifest says of validations: of this step, and the best one so far."""
        return {"validated": validated, "best": self.best.state_dict()}

    def _save(
        self,
        state: TrainState,
        step: int,
        feed: InputFeed,
        validated: Mapping[str, float] | None,
        metrics: Mapping[str, Any],
    ) -> None:
        """Saves a step with its validation, if it had one.

        Raises:
          M6RecError: `metrics` say that training has diverged.
        """
        for name in ("loss", "gradient_norm"):
            self._check_finite(name, float(metrics[name]), step)
        position = feed.position()
        run = dataclasses.replace(
            self.description,
            num_data_shards=position.num_shards,
            extra={**self.description.extra, **self._followed(validated is not None)},
        )
        self.store.save(
            step,
            {"params": state.params, "prompts": state.prompts, "optimizer": state.opt_state},
            data=position.to_item(jax.process_index()) if leads_stream(self.mesh) else {},
            run=run,
            metrics=validated,
            frozen=("params",) if self.trainable == "prompts" else (),  # never changes
        )

    def _check_finite(self, name: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        saved = self.store.latest_step()
        raise M6RecError(
            f"{name} at step {step} is {value}: training has diverged. "
            + (f"The last checkpoint is of step {saved}. " if saved is not None else "")
            + "Lower the learning rate, lengthen the warm-up, or clip gradients (clip_norm)"
        )


class _Window:
    """The steps between two lines of the log."""

    def __init__(self, clock: Goodput, jobs: Sequence[str], batch_size: int) -> None:
        self._clock, self._jobs, self._batch_size = clock, jobs, batch_size
        self.begin()

    def begin(self) -> None:
        """Starts anew."""
        self._steps: list[Mapping[str, Any]] = []
        self._begin = self._busy_seconds()

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes what a step gave. One step stays in flight; more would only queue up batches."""
        if self._steps:
            jax.block_until_ready(self._steps[-1]["loss"])
        self._steps.append(metrics)

    def close(self) -> dict[str, float]:
        """Means and throughput of the steps; the next ones form the next window."""
        with self._clock.measure("step"):
            scalars = window_means(jax.device_get(self._steps), self._jobs)
        per_second = len(self._steps) / max(self._busy_seconds() - self._begin, 1e-9)
        scalars |= {
            "examples_per_second": self._batch_size * per_second,
            "tokens_per_second": scalars.pop("tokens") * per_second,
        }
        self.begin()
        return scalars

    def _busy_seconds(self) -> float:
        """Time in training proper, for rates that validation and checkpoints do not blur."""
        return self._clock.seconds("input_wait", "step")


def window_means(window: list[Mapping[str, Any]], jobs: Sequence[str]) -> dict[str, float]:
    """Scalars of several steps as one.

    Args:
      window: what the steps gave (`train_step.make_train_step`), on the host.
      jobs: as for `job_losses`, whose metrics are among them.

    Returns:
      Means; those of the objectives' metrics are over all that was counted, and a metric of which
      nothing was counted is left out.
    """
    means: dict[str, float] = {}
    for name, last in window[-1].items():
        values = [metrics[name] for metrics in window]
        if is_by_job(name):
            continue
        if not isinstance(last, Sum):
            means[name] = float(np.mean(values))
        elif count := sum(float(value.count) for value in values):
            means[name] = sum(float(value.total) for value in values) / count
    return means | job_losses(jobs, window)


def _tell(step: int, validated: Mapping[str, float], is_best: bool) -> None:
    """Logs the figures of a validation as they come."""
    if jax.process_index() == 0:
        figures = ", ".join(
            f"{name.removeprefix('validation/')} {value:.4g}"
            for name, value in validated.items()
            if name != "validation/rows"
        )
        logger.info("step %d, validation: %s%s", step, figures, ", the best so far" * is_best)


def _shown(scalars: Mapping[str, float]) -> dict[str, str]:
    return {
        "loss": f"{scalars['loss']:.4f}",
        "examples/s": f"{scalars['examples_per_second']:.0f}",
        "tokens/s": f"{scalars['tokens_per_second']:.0f}",
    }
