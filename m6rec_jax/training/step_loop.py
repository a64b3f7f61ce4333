"""The steps of a run: data in, one compiled step, log, validation, checkpoints, stopping."""

from __future__ import annotations

import dataclasses
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
from m6rec_jax.sharding.processes import leads_stream
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
      jobs: names of the jobs whose losses are told apart.
      trainable: 'prompts' or 'all'.
      checkpoint_period, log_period, validation_period: in steps; the last may be None: never.
      validate_first: whether a new run is validated before its first step, too.
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
    validate: Validator

    def run(
        self,
        state: TrainState,
        feed: InputFeed,
        step_function: Callable[..., Any],
        log: MetricLog,
        bar: Any,
    ) -> tuple[TrainState, dict[str, float], str | None]:
        """Steps until the end, early stopping or a signal; a checkpoint is written at the end."""
        step = int(state.step)
        compiled: CompiledStep | None = None
        window: list[Mapping[str, Any]] = []
        scalars: dict[str, float] = {}
        figures: dict[str, float] = {}
        stopped_by = None
        window_begin = self._busy_seconds()
        with PreemptionGuard() as guard:
            # The notice may have come while the run was starting, and compiling takes minutes.
            if guard.should_stop():
                stopped_by = guard.signal_name
            if self.validate_first and step == 0 and stopped_by is None:
                figures, stopped_by = self._validated(state, step, guard, log)
                if stopped_by is None:
                    self.best.check(figures)
            while step < self.train_steps and stopped_by is None:
                with self.clock.measure("input_wait"):
                    features = feed.next()
                if compiled is None:
                    with self.clock.measure("compile"):
                        compiled = CompiledStep(
                            step_function,
                            self.abstract,
                            features,
                            mesh=self.mesh,
                            rules=self.rules,
                            updates_state=True,
                        )
                    window_begin = self._busy_seconds()
                with self.clock.measure("step"):
                    state, metrics = compiled(state, features)
                    if window:
                        # One step stays in flight; more would only queue up batches.
                        jax.block_until_ready(window[-1]["loss"])
                window.append(metrics)
                step += 1
                bar.update(1)
                is_last = step == self.train_steps
                if guard.should_stop():
                    stopped_by = guard.signal_name
                if step % self.log_period == 0 or is_last or stopped_by:
                    with self.clock.measure("step"):
                        scalars = window_means(jax.device_get(window), self.jobs)
                    seconds = self._busy_seconds() - window_begin
                    scalars |= _rates(scalars.pop("tokens"), len(window), self.batch_size, seconds)
                    window, window_begin = [], self._busy_seconds()
                    self._check_finite("loss", scalars["loss"], step)
                    log.write(step, scalars | self.clock.report())
                    bar.set_postfix(_shown(scalars), refresh=False)
                figures = {}
                is_best = False
                # A signal leaves little time: it is for the checkpoint.
                if (
                    self.validation_period
                    and (step % self.validation_period == 0 or is_last)
                    and stopped_by is None
                ):
                    try:
                        figures, stopped_by = self._validated(state, step, guard, log)
                        if stopped_by is None:
                            is_best = self.best.update(step, figures)
                    except M6RecError:
                        # What was trained is not lost. Of several processes others may not have
                        # failed, and a checkpoint takes all of them.
                        if jax.process_count() == 1:
                            self._save(state, step, feed, {}, metrics)
                        raise
                    if self.best.should_stop:
                        stopped_by = EARLY_STOPPING
                if step % self.checkpoint_period == 0 or is_last or stopped_by or is_best:
                    with self.clock.measure("checkpoint"):
                        self._save(state, step, feed, figures, metrics)
                        # A signal leaves little time here, too.
                        if stopped_by in (None, EARLY_STOPPING):
                            trained = trainable_groups(state.variables, self.trainable)
                            log.write(step, parameter_sizes(trained, self.mesh))
                    log.flush()
        traces = (0 if compiled is None else compiled.num_traces, self.validate.num_traces)
        if max(traces) > 1:
            raise AssertionError("a step was traced more than once")
        return state, {**scalars, **figures}, stopped_by

    def _validated(
        self, state: TrainState, step: int, guard: PreemptionGuard, log: MetricLog
    ) -> tuple[dict[str, float], str | None]:
        """Figures of a validation, logged, and the signal that ended it before it had any."""
        with self.clock.measure("evaluation"):
            figures = self.validate(state, step, guard.should_stop)
        if figures is None:
            return {}, guard.signal_name
        log.write(step, figures)
        return figures, None

    def _save(
        self,
        state: TrainState,
        step: int,
        feed: InputFeed,
        figures: Mapping[str, float],
        metrics: Mapping[str, Any],
    ) -> None:
        """Saves a step with its figures, unless its metrics say that training has diverged."""
        for name in ("loss", "gradient_norm"):
            self._check_finite(name, float(metrics[name]), step)
        position = feed.position()
        run = dataclasses.replace(
            self.description,
            num_data_shards=position.num_shards,
            extra={**self.description.extra, "best": self.best.state_dict()},
        )
        self.store.save(
            step,
            {"params": state.params, "prompts": state.prompts, "optimizer": state.opt_state},
            data=position.to_item(jax.process_index()) if leads_stream(self.mesh) else {},
            run=run,
            metrics=figures,
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

    def _busy_seconds(self) -> float:
        """Time in training proper, for rates that validation and checkpoints do not blur."""
        return self.clock.seconds("input_wait", "step")


def window_means(window: list[Mapping[str, Any]], jobs: Sequence[str]) -> dict[str, float]:
    """Scalars of several steps as one.

    Args:
      window: what the steps gave (`train_step.make_train_step`), on the host.
      jobs: as for `job_losses`, whose figures are among them.

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


def _rates(tokens: float, steps: int, batch_size: int, seconds: float) -> dict[str, float]:
    """Throughput of a window; `tokens`: mean of a step."""
    per_second = steps / max(seconds, 1e-9)
    return {
        "examples_per_second": batch_size * per_second,
        "tokens_per_second": tokens * per_second,
    }


def _shown(scalars: Mapping[str, float]) -> dict[str, str]:
    return {
        "loss": f"{scalars['loss']:.4f}",
        "examples/s": f"{scalars['examples_per_second']:.0f}",
        "tokens/s": f"{scalars['tokens_per_second']:.0f}",
    }
