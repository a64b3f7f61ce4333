"""The groups of settings of `train`, each set in gin under its own name.

    TrainingData.batch_size = 32
    Start.checkpoint = 'runs/foundation'
    Checkpoints.period = 500
    Validation.best_metric = 'validation/auc'

What gin does not name has the default written here.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gin

from m6rec_jax.errors import ConfigError
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives.distillation import Distillation
from m6rec_jax.sharding import LogicalRules
from m6rec_jax.training.data_state import Batch, ResumableBatches
from m6rec_jax.training.initialization import INITIAL_PROMPTS

logger = logging.getLogger(__name__)

# (mixture_or_task_name, feature_lengths, batch_size, process_index=, process_count=) -> batches.
# Processes that hold the same rows, because `tensor` spans them, count as one.
MakeBatches = Callable[..., ResumableBatches]
MakeEvaluationBatches = Callable[..., Iterable[Batch]]
# (model, variables, step) -> metrics
Evaluate = Callable[[M6Rec, Mapping[str, Any], int], Mapping[str, float]]
# Words of each class, or such words by the name of the seqio task whose classes they are.
Words = Sequence[str] | Mapping[str, Sequence[str]]
INITIAL_EMBEDDINGS = ("random", "neighbours")
# Names of metrics, cut-offs left out, of which less is better; of the others more is.
_LESS_IS_BETTER = re.compile(
    r"(^|/)\w*loss(/|$)|(^|/)distillation/|(perplexity|error|alignment|uniformity)$"
    r"|(silent|dropped)_share$|share_(of_cut|with_dropped)_"
)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    Attributes:
      mixture_or_task_name: as registered in `tasks/`.
      task_feature_lengths: `{"inputs": S, "targets": T}`, tokens.
      batch_size: rows of one optimizer step, over all devices and accumulation steps.
      batches: makes training batches; None: `pipeline.BatchIterator`.
      prefetch: batches read ahead and held on the devices.
      vocabulary_fingerprint: recorded and compared; None: that of the task's vocabulary.
    """

    mixture_or_task_name: str
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    batches: MakeBatches | None = None
    prefetch: int = 2
    vocabulary_fingerprint: str | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "batch_size", "prefetch")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Start:
    """What the parameters of a new run start from; a resumed run goes on with its own.

    Attributes:
      checkpoint: MODEL_DIR, `checkpoints` folder or step folder whose backbone is taken over.
      prompts: whether its prompts are taken over as well: 'none', 'all', or 'matching' (tensors of
        equal name and shape, e.g. special tokens of pretraining; those of a single task go to every
        task of a bank that has them in the same size).
      options: a word for each class, whose output vectors the options (or the columns of a linear
        head) start from, or such words by the name of the seqio task; see
        `initial_prompts.with_options_of_words`. Empty: they start as soft prompts do. They replace
        a head that 'matching' took over.
      embeddings: of a new backbone: 'random', or 'neighbours' (what the vocabulary's tokens are
        written of, and what stands near what in the training data); see `with_initial_embeddings`.
    """

    checkpoint: str | None = None
    prompts: str = "none"
    options: Words = ()
    embeddings: str = "random"

    def __post_init__(self) -> None:
        for name, choices in (
            ("prompts", INITIAL_PROMPTS),
            ("embeddings", INITIAL_EMBEDDINGS),
        ):
            if (choice := getattr(self, name)) not in choices:
                raise ConfigError(
                    f"Start.{name} = {choice!r} is not one of {', '.join(choices)}"
                    f"{did_you_mean(choice, choices)}"
                )
        if self.prompts == "all" and not self.checkpoint:
            raise ConfigError(
                "Start.prompts = 'all' takes them over from INITIAL_CHECKPOINT_PATH: set it"
            )
        if self.prompts == "all" and self.options:
            raise ConfigError(
                "Start.prompts = 'all' takes the head over from the checkpoint, and Start.options "
                f"= {self.options!r} would overwrite it: set INITIAL_OPTIONS = ()"
            )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Step:
    """How one optimizer step is computed.

    Attributes:
      accumulation_steps: parts that a batch is computed in.
      frozen_dtype: type in which a frozen backbone is held ('bfloat16' or None for float32).
      rules: sharding rules, as '@fully_sharded()'; None: `data_parallel`. The mesh comes from
        `make_mesh`.
      distillation: what `total_loss` adds so that the model learns from a teacher; None: nothing.
      weight_bits: train with the backbone's weights rounded to so many bits, as `m6rec compress
        pack` rounds them to 8; None: as they are.
    """

    accumulation_steps: int = 1
    frozen_dtype: str | None = None
    rules: LogicalRules | None = None
    distillation: Distillation | None = None
    weight_bits: int | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "accumulation_steps")
        if self.weight_bits is not None and not 2 <= self.weight_bits <= 8:
            raise ConfigError(f"Step.weight_bits = {self.weight_bits} must lie between 2 and 8")
        if isinstance(self.rules, str):
            raise ConfigError(
                f"Step.rules = {self.rules!r} (RULES) is a text: write @{self.rules}(), or give a "
                "file of gin_configs/sharding/ with --gin_file"
            )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are written, and which stay.

    Attributes:
      period: steps between checkpoints.
      keep: newest checkpoints kept (None: all); the best one is kept besides.
    """

    period: int = 1000
    keep: int | None = 3

    def __post_init__(self) -> None:
        _require_positive(self, "period", "keep")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Validation:
    """When a run is validated, on what, and what follows from it.

    Attributes:
      period: steps between validations (None: never).
      rows: at most so many rows each time, the first ones (0: all). None: up
        to 2,048, and so few that validations take about a fifth of the run at most; see
        `validation.plan_validation`.
      first: validate a new run before its first step, too: what it starts from, untuned. That is
        never the best.
      evaluate: further metrics, (model, variables, step) → `{name: value}`.
      best_metric: metric by which a checkpoint is best, e.g. 'validation/loss'; that checkpoint is
        kept (None: none is best).
      best_mode: 'min' or 'max'; None: 'min' of losses, perplexities and errors, by the metric's
        name, else 'max'.
      patience: validations without a new best before training ends (None: never).
      batches: makes one pass of validation batches; None: `pipeline.EvaluationBatches`.
    """

    period: int | None = None
    rows: int | None = None
    first: bool = False
    evaluate: Evaluate | None = None
    best_metric: str | None = None
    best_mode: str | None = None
    patience: int | None = None
    batches: MakeEvaluationBatches | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "period", "patience")
        if self.rows is not None and (not isinstance(self.rows, int) or self.rows < 0):
            raise ConfigError(
                f"Validation.rows = {self.rows!r} must be a whole number, or 0 for all rows"
            )
        if self.best_mode not in (None, "min", "max"):
            raise ConfigError(
                f"Validation.best_mode = {self.best_mode!r} is neither 'min' nor 'max'"
            )
        if self.patience is not None and self.best_metric is None:
            raise ConfigError("Validation.patience needs Validation.best_metric")
        if self.best_metric is not None and self.period is None:
            raise ConfigError("Validation.best_metric needs Validation.period")
        if self.evaluate is not None and self.period is None and not self.first:
            logger.warning("Validation.evaluate is never asked: Validation.period is None")

    @property
    def mode(self) -> str:
        """Whether the best is the least or the most, 'min' or 'max'."""
        less = _LESS_IS_BETTER.search((self.best_metric or "").partition("@")[0])
        return self.best_mode or ("min" if less else "max")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Logging:
    """What a run shows of itself.

    Attributes:
      period: steps between lines of the log.
      tensorboard: write TensorBoard files.
      progress: show a progress bar.
    """

    period: int = 50
    tensorboard: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        _require_positive(self, "period")


def _require_positive(options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"{type(options).__name__}.{name} = {value} must be at least 1")
