"""`m6rec calibrate` of zero-shot scores: what makes probabilities of log odds (Platt scaling)."""

from __future__ import annotations

import dataclasses

from m6rec_jax.engine.model_folder import RestoredModel
from m6rec_jax.evaluation.evaluator import Evaluator
from m6rec_jax.jobs.likelihood import LikelihoodPredictions, PlattScaling
from m6rec_jax.metrics.classification import log_loss, platt_scaling
from m6rec_jax.pipeline.registration import TaskInfo

KINDS = ("likelihood",)


@dataclasses.dataclass(frozen=True, slots=True)
class LearntScaling:
    """What was learnt for a task, and what it does on the rows that it was learnt on.

    Attributes:
      scaling: to be used.
      log_loss, unscaled_log_loss: with it, and of the log odds as they are.
      num_candidates: that were read.
    """

    scaling: PlattScaling
    log_loss: float
    unscaled_log_loss: float
    num_candidates: int

    def __str__(self) -> str:
        return (
            f"log loss {self.log_loss:.4f} instead of {self.unscaled_log_loss:.4f} on "
            f"{self.num_candidates:,} candidates; scale {self.scaling.scale:.4g}, offset "
            f"{self.scaling.offset:.4g}"
        )

    def gin_text(self) -> str:
        """A gin file that sets it."""
        values = dataclasses.asdict(self.scaling).items()
        lines = "".join(f"PlattScaling.{name} = {value!r}\n" for name, value in values)
        head = f"# Learnt by `m6rec calibrate`: {self}.\n\nimport m6rec_jax.jobs.likelihood\n\n"
        return head + lines


def scaling_file(task: str) -> str:
    """Where what was learnt for a task lies in `MODEL_DIR/inference`."""
    return f"{task}_scaling.gin"


def learn_scaling(evaluator: Evaluator, task: TaskInfo, restored: RestoredModel) -> LearntScaling:
    """Learns the scaling of a task of `KINDS`.

    Raises:
      DataError: no labelled candidate, or all labels are the same.
    """
    found: LikelihoodPredictions = evaluator.predict(task, restored.model, restored.variables)
    scaling = PlattScaling(*platt_scaling(found.labels, found.scores))
    told = (PlattScaling(1.0, 0.0), scaling)
    before, after = (log_loss(found.labels, one.probabilities(found.scores)) for one in told)
    return LearntScaling(scaling, after, before, len(found.labels))
