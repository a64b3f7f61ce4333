"""The best validation metric so far, and when to stop waiting for a better one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from m6rec_jax.errors import CheckpointError, ConfigError


@dataclasses.dataclass
class BestMetric:
    """Follows one metric over validations; its state is saved with the run.

    Attributes:
      name: the metric, e.g. 'validation/loss' (None: nothing is followed).
      mode: 'min' or 'max'.
      patience: validations without a new best before stopping (None: never stop).
      best, best_step: so far.
      waited: validations since the last new best.
      newest: step of the last validation.
    """

    name: str | None
    mode: str
    patience: int | None
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    newest: int | None = None

    def update(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes note of a validation; whether it is the best so far, or as good as it.

        Of equal ones the newest counts as the best; for the patience it is no better. What a run
        starts from, step 0, is never the best: there is no checkpoint of it.

        Raises:
          ConfigError: the validation did not report the metric.
        """
        if self.name is not None and self.name not in metrics:
            raise ConfigError(
                f"Validation.best_metric = {self.name!r} is not among the validation metrics: "
                + ", ".join(sorted(metrics))
            )
        self.newest = step
        if self.name is None or step == 0:
            return False
        value, sign = float(metrics[self.name]), 1 if self.mode == "max" else -1
        better = not math.isnan(value) and (self.best is None or sign * value > sign * self.best)
        self.waited = 0 if better else self.waited + 1
        if not (better or value == self.best):
            return False
        self.best, self.best_step = value, step
        return True

    @property
    def should_stop(self) -> bool:
        """Whether patience is at an end."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {n: value for n, value in dataclasses.asdict(self).items() if n != "patience"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the manifest of the checkpoint that a run resumes from.

        Raises:
          CheckpointError: another metric was followed there, or the other way round: the best that
            it reached, and which steps were kept for it, says nothing of this one.
        """
        self.newest = state["newest"]
        if (state["name"], state["mode"]) == (self.name, self.mode):
            self.best, self.best_step = state["best"], state["best_step"]
            self.waited = int(state["waited"])
        # A misspelt metric, of which there is no best, is mended.
        elif None not in (state["name"], self.name) and state["best"] is not None:
            raise CheckpointError(
                f"the run has followed {state['name']} ({state['mode']}) so far, and "
                f"Validation.best_metric is {self.name} ({self.mode}) now: keep it, or start "
                "a new MODEL_DIR with INITIAL_CHECKPOINT_PATH = this one"
            )
