"""The steps of a run: data in, one compiled step, log, validation, checkpoints, stopping."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.trees import PyTree, flatten
from m6rec_jax.errors import M6RecError
from m6rec_jax.objectives import window_means
from m6rec_jax.sharding import replicated
from m6rec_jax.sharding.placement import leads_stream
from m6rec_jax.training.early_stopping import BestMetric
from m6rec_jax.training.input_feed import InputFeed
from m6rec_jax.training.metric_log import Goodput, MetricLog
from m6rec_jax.training.preemption import PreemptionGuard
from m6rec_jax.training.train_state import TrainSetup, TrainState
from m6rec_jax.training.train_step import compile_step
from m6rec_jax.training.validation import Validator

EARLY_STOPPING = "early stopping"
RMS_PREFIX = "parameter_rms/"
logger = logging.getLogger(__name__)


@dataclass
class StepLoop:
    """Everything the steps of a run need.

    Attributes:
      step_function: of `make_train_step`.
      validate: called after the steps at which it is due.
      train_steps: steps in all.
      batch_size: rows of a step.
      jobs: names of the jobs whose losses are logged apart.
      checkpoint_period, log_period: in steps.
    """

    setup: TrainSetup
    description: RunDescription
    store: CheckpointStore
    best: BestMetric
    clock: Goodput
    log: MetricLog
    bar: Any
    step_function: Callable[..., Any]
    validate: Validator
    train_steps: int
    batch_size: int
    jobs: Sequence[str]
    checkpoint_period: int
    log_period: int

    def run(
        self, state: TrainState, feed: InputFeed
    ) -> tuple[TrainState, dict[str, float], str | None]:
        """Steps until the end, early stopping or a signal; a checkpoint is written at the end.

        Returns:
          The last state, the last scalars, and what stopped the run before its end.
        """
        step, window, before = int(state.step), list[Mapping[str, Any]](), self._busy_seconds()
        compiled: jax.stages.Compiled | None = None
        scalars: dict[str, float] = {}
        validated: dict[str, float] | None = None
        with PreemptionGuard() as guard:
            # The notice may have come while the run was starting, and compiling takes minutes.
            stopped_by = guard.stopped_by()
            # A step may have been saved without its validation, which a signal ended.
            if stopped_by is None and self.validate.is_due(step) and self.best.newest != step:
                validated, _, stopped_by = self._validated(state, step, guard)
                if step and validated is not None:
                    self.store.describe(step, {"best": self.best.state_dict()})
            if self.best.should_stop:
                stopped_by = stopped_by or EARLY_STOPPING
            while step < self.train_steps and stopped_by is None:
                with self.clock.measure("input_wait"):
                    features = feed.next()
                if compiled is None:
                    with self.clock.measure("compile"):
                        compiled = compile_step(self.setup, self.step_function, state, features)
                    before = self._busy_seconds()
                with self.clock.measure("step"):
                    state, metrics = compiled(state, features)
                    if window:  # one step stays in flight; more would only queue up batches
                        jax.block_until_ready(window[-1]["loss"])
                    window.append(metrics)
                step += 1
                self.bar.update(1)
                is_last = step == self.train_steps
                stopped_by = guard.stopped_by()
                if step % self.log_period == 0 or is_last or stopped_by:
                    scalars = self._logged(step, window, before)
                    window, before = [], self._busy_seconds()
                validated, is_best = None, False
                # A signal leaves little time: it is for the checkpoint.
                if self.validate.is_due(step) and stopped_by is None:
                    try:
                        validated, is_best, stopped_by = self._validated(state, step, guard)
                    except M6RecError:
                        # What was trained is not lost. Of several processes others may not have
                        # failed, and a checkpoint takes all of them.
                        if jax.process_count() == 1:
                            self._save(state, step, feed, metrics)
                        raise
                if step % self.checkpoint_period == 0 or is_last or stopped_by or is_best:
                    with self.clock.measure("checkpoint"):
                        self._save(state, step, feed, metrics)
        return state, scalars | (validated or {}), stopped_by

    def _busy_seconds(self) -> float:
        """Time in training proper, for rates that validation and checkpoints do not blur."""
        return self.clock.seconds["input_wait"] + self.clock.seconds["step"]

    def _logged(
        self, step: int, window: Sequence[Mapping[str, Any]], before: float
    ) -> dict[str, float]:
        """Means and throughput of the steps of a window, logged."""
        with self.clock.measure("step"):
            scalars = window_means(jax.device_get(window), self.jobs)
        per_second = len(window) / max(self._busy_seconds() - before, 1e-9)
        scalars |= {
            "examples_per_second": self.batch_size * per_second,
            "tokens_per_second": scalars.pop("tokens") * per_second,
        }
        self._check_finite("loss", scalars["loss"], step)
        self.log.write(step, scalars | self.clock.report())
        shown = {
            "loss": f"{scalars['loss']:.4f}",
            "examples/s": f"{scalars['examples_per_second']:.0f}",
            "tokens/s": f"{scalars['tokens_per_second']:.0f}",
        }
        self.bar.set_postfix(shown, refresh=False)
        return scalars

    def _validated(
        self, state: TrainState, step: int, guard: PreemptionGuard
    ) -> tuple[dict[str, float] | None, bool, str | None]:
        """Metrics of a validation, logged; whether they are the best; what ends the run.

        There are no metrics where a signal came before them.
        """
        with self.clock.measure("evaluation"):
            metrics = self.validate(state, step, guard.stopped_by)
        if metrics is None:
            return None, False, guard.stopped_by()
        is_best = self.best.update(step, metrics)
        self.log.write(step, metrics)
        if jax.process_index() == 0:
            figures = ", ".join(
                f"{name.removeprefix('validation/')} {value:.4g}"
                for name, value in metrics.items()
                if name != "validation/rows"
            )
            best_so_far = ", the best so far" if is_best else ""
            logger.info("step %d, validation: %s%s", step, figures, best_so_far)
        return metrics, is_best, EARLY_STOPPING if self.best.should_stop else None

    def _save(
        self, state: TrainState, step: int, feed: InputFeed, metrics: Mapping[str, Any]
    ) -> None:
        """Saves a step, and logs the sizes of what trains.

        Raises:
          M6RecError: `metrics` say that training has diverged.
        """
        for name in ("loss", "gradient_norm"):
            self._check_finite(name, float(metrics[name]), step)
        position = feed.position()
        self.store.save(
            step,
            {"params": state.params, "prompts": state.prompts, "optimizer": state.opt_state},
            data=position.to_item(jax.process_index()) if leads_stream(self.setup.mesh) else {},
            run=dataclasses.replace(
                self.description,
                num_data_shards=position.num_shards,
                extra={**self.description.extra, "best": self.best.state_dict()},
            ),
            best=self.best.best_step,
            frozen=("params",) if self.setup.trainable == "prompts" else (),  # never changes
        )
        measure = jax.jit(_root_mean_squares, out_shardings=replicated(self.setup.mesh))
        sizes = flatten(jax.device_get(measure(self.setup.trained(state.variables))))
        self.log.write(step, {RMS_PREFIX + name: float(size) for name, size in sizes.items()})
        self.log.flush()

    def _check_finite(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise M6RecError(
                f"{name} at step {step} is {value}: training has diverged. The last checkpoint is "
                f"of step {self.store.latest_step()}. Lower the learning rate, lengthen the "
                "warm-up, or clip gradients (clip_norm)"
            )


# Of the module, not of the call: jax.jit keeps what it compiled by the function.
def _root_mean_squares(groups: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))), groups)
