"""The best validation metric so far, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from m6rec_jax.errors import CheckpointError, ConfigError


class BestMetric:
    """Follows one metric over validations; its state is saved with the run.

    Args:
      name: the metric, e.g. 'validation/loss' (None: nothing is followed).
      mode: 'min' or 'max'.
      patience: validations without a new best before stopping (None: never stop).
    """

    def __init__(self, name: str | None, mode: str, patience: int | None) -> None:
        self.name, self._mode, self._patience = name, mode, patience
        self._sign = 1 if mode == "max" else -1
        self.best: float | None = None
        self.best_step: int | None = None
        self.waited = 0

    def check(self, metrics: Mapping[str, float]) -> None:
        """Raises ConfigError where a validation did not report the metric."""
        if self.name is not None and self.name not in metrics:
            raise ConfigError(
                f"Validation.best_metric = {self.name!r} is not among the validation metrics: "
                + ", ".join(sorted(metrics))
            )

    def update(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes note of a validation; whether it is the best so far, or as good as it.

        Of equal ones the newest counts as the best, as for Orbax, which keeps that one; for the
        patience it is no better. The metrics were checked before.
        """
        if self.name is None:
            return False
        value = float(metrics[self.name])
        better = not math.isnan(value) and (
            self.best is None or self._sign * value > self._sign * self.best
        )
        self.waited = 0 if better else self.waited + 1
        is_best = better or value == self.best
        if is_best:
            self.best, self.best_step = value, step
        return is_best

    @property
    def should_stop(self) -> bool:
        """Whether patience is at an end."""
        return self._patience is not None and self.waited >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "name": self.name,
            "mode": self._mode,
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the manifest of the checkpoint that a run resumes from.

        Raises:
          CheckpointError: another metric was followed there, or the other way round: the best that
            it reached, and which steps were kept for it, says nothing of this one.
        """
        followed = state["name"], state["mode"]
        if self.name is None or followed[0] is None:
            return
        if followed != (self.name, self._mode):
            if state["best"] is None:  # a misspelt metric may be mended
                return
            raise CheckpointError(
                f"the run has followed {followed[0]} ({followed[1]}) so far, and "
                f"Validation.best_metric is {self.name} ({self._mode}) now: keep it, or start "
                "a new MODEL_DIR with INITIAL_CHECKPOINT_PATH = this one"
            )
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = int(state["waited"])
