"""`m6rec calibrate`: what is chosen on validation rows once a model is trained.

Where a task's rows may leave the decoder for a stated loss of quality; how what retrieval finds is
ordered (`ranking_calibration`); and what makes probabilities of zero-shot scores
(`scaling_calibration`).

One pass over the validation rows reads every candidate at every exit; all thresholds and depths are
then tried on the host.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from m6rec_jax.engine.candidates.scoring import positive_probability, read_log_probabilities
from m6rec_jax.engine.model_folder import (
    ASSETS_FOLDER,
    EXITS_FILE,
    RANKING_FILE,
    RestoredModel,
)
from m6rec_jax.engine.task_settings import NEVER, ExitSettings
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.evaluation.checkpoint_evaluation import restored_evaluator
from m6rec_jax.evaluation.evaluator import Evaluator, run_program
from m6rec_jax.evaluation.ranking_calibration import LearntWeights, learn_weights
from m6rec_jax.evaluation.scaling_calibration import KINDS as SCALED
from m6rec_jax.evaluation.scaling_calibration import LearntScaling, learn_scaling, scaling_file
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.json_text import json_text
from m6rec_jax.jobs.job import jobs, labelled
from m6rec_jax.metrics.classification import auc
from m6rec_jax.model import M6Rec
from m6rec_jax.pipeline.prepared_rows import TaskPart
from m6rec_jax.pipeline.prompt_rows import prompt_row
from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.pipeline.run_vocabulary import with_own_vocabulary

# Changes of a probability that are worth trying.
SCORING_THRESHOLDS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)


@dataclasses.dataclass(frozen=True, slots=True)
class Calibrated:
    """What was chosen for a task, and what it does on the rows that it was chosen on.

    Attributes:
      threshold, depth: see `ExitSettings`.
      num_exits: that there are.
      mean_exits: exits that a batch runs, whose slowest candidate decides.
      metric: of `quality` and `full_quality`: 'auc'.
      quality, full_quality: with the settings, and of the whole model.
      num_rows: rows that were read.
    """

    threshold: float
    depth: int
    num_exits: int
    metric: str
    quality: float
    full_quality: float
    num_rows: int
    mean_exits: float


@gin.configurable
@with_own_vocabulary
def calibrate(
    model_dir: str = gin.REQUIRED,
    mixture_or_task_name: str = gin.REQUIRED,
    task_feature_lengths: Mapping[str, int] = gin.REQUIRED,
    *,
    max_loss: float = 0.01,
    split: str = "validation",
    batch_size: int = 32,
    step: int | None = None,
    limit: int | None = None,
) -> dict[str, Calibrated | LearntWeights | LearntScaling]:
    """Chooses early exits of all tasks that may have some, and learns the weights of `Reranker` for
    those of retrieval; `engine.model_folder` reads both. For zero-shot tasks learns Platt scaling,
    which is set by a gin file: it is of one question, and one run may be asked many.

    Args:
      model_dir, mixture_or_task_name, task_feature_lengths, step, limit: as in `evaluate`.
      max_loss: of quality, relative to the whole model's: 0.01 keeps 99%.
      split: of the rows; not 'test', the one that is reported.
      batch_size: rows that leave together, as many as requests in use share a batch.

    Returns:
      By task. Written to `MODEL_DIR/inference`, to `early_exit.json`, `ranking.json` and
      `<task>_scaling.gin`; what the files say of other tasks at this step stays.

    Raises:
      ConfigError: no task of retrieval or zero-shot, and a model without losses at its exits, or no
        task of a kind that exits; a zero-shot task that judges a sentence; or the test part.
      CheckpointError, DataError: as `evaluate`.
    """
    if not 0.0 <= max_loss < 1.0:
        raise ConfigError(f"max_loss = {max_loss} must be at least 0 and below 1")
    if split == "test":
        raise ConfigError(
            "calibrate.split = 'test': it would learn on the rows that are reported; give "
            "--gin.SPLIT=validation (a file for evaluation names the test part)"
        )
    assets = epath.Path(model_dir) / ASSETS_FOLDER
    evaluator, restored = restored_evaluator(
        model_dir, mixture_or_task_name, task_feature_lengths, split, batch_size, step, limit
    )
    retrieval = [task for task in evaluator.tasks if task.job.ranks_catalogue]
    zero_shot = [task for task in evaluator.tasks if task.kind in SCALED]
    learns = bool(retrieval or zero_shot)
    exits_early = restored.model.config.exit_losses != "none"
    if not exits_early and not learns:
        raise ConfigError(
            f"{model_dir} was trained with a loss after its last layer alone, so what is read "
            "earlier means nothing. Train it with ModelConfig.exit_losses = 'rising'"
        )
    config = restored.model.config
    # Scoring by segments with queries at the ends alone runs all layers (`CandidateScoring`).
    whole = config.cross_attention_at == "ends" and config.late_layers_start > 0
    may_exit = exits_early and not whole
    tasks = [task for task in evaluator.tasks if may_exit and task.kind == "scoring"]
    if not tasks and not learns:
        kinds = ", ".join(sorted({task.kind for task in evaluator.tasks}))
        ranked = [kind for kind, job in jobs().items() if job.ranks_catalogue]
        raise ConfigError(
            f"{mixture_or_task_name!r} has tasks of kind {kinds}; scoring exits early, unless late "
            "interaction reads the source at the ends of candidates alone, and weights are learnt "
            f"for {', '.join((*ranked, *SCALED))}"
        )
    if not assets.exists():
        raise CheckpointError(f"{assets} is missing: {model_dir} is no folder of a training run")
    exits, weights = dict[str, Calibrated](), dict[str, LearntWeights]()
    for task in tasks:
        exits[task.name] = _exits_of(evaluator, task, restored, max_loss)
    for task in retrieval:
        weights |= learn_weights(evaluator, task, restored)
    scalings = {task.name: learn_scaling(evaluator, task, restored) for task in zero_shot}
    for name, scaling in scalings.items() if jax.process_index() == 0 else ():
        write_atomically(assets / scaling_file(name), scaling.gin_text())
    files: list[tuple[str, Mapping[str, Any], dict[str, Any]]] = [
        (EXITS_FILE, exits, {"split": split, "max_loss": max_loss}),
        (RANKING_FILE, weights, {"split": split}),
    ]
    for file, found, told in files:
        if found and jax.process_index() == 0:
            by_task = {name: dataclasses.asdict(one) | told for name, one in found.items()}
            known = _tasks_of_file(assets / file, restored.step)
            values = {"step": restored.step, "tasks": known | by_task}
            write_atomically(assets / file, json_text(values, indent=2) + "\n")
    return {**exits, **weights, **scalings}


def _tasks_of_file(path: epath.Path, step: int) -> dict[str, Any]:
    """What was found before for tasks, maybe others, of a step; a damaged file has nothing."""
    try:
        values = json.loads(path.read_text())
        return dict(values["tasks"]) if values["step"] == step else {}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return {}


@dataclasses.dataclass(frozen=True, slots=True)
class ExitScores:
    """Every labelled candidate of some rows at every exit.

    Attributes:
      labels: int64 `[n]`, 1 where the class is a positive one.
      probabilities: float64 `[n, exits]`, of the positive classes.
      batches: int64 `[n]`, candidates of one number are decoded together.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    batches: np.ndarray

    def exits_taken(self, settings: ExitSettings) -> np.ndarray:
        """Exits that each candidate takes part in, `[n]`, as in `engine.candidates.early_exit`."""
        unchanged = 1.0 - np.abs(np.diff(self.probabilities, axis=1))
        leaves = np.pad(unchanged >= settings.threshold, ((0, 0), (1, 0)))
        leaves[:, settings.depth - 1] = True
        return np.argmax(leaves, axis=1) + 1

    def auc(self, settings: ExitSettings) -> float:
        """AUC of the probabilities with which candidates leave."""
        taken = self.exits_taken(settings)
        return auc(self.labels, self.probabilities[np.arange(len(taken)), taken - 1])

    def mean_exits(self, settings: ExitSettings) -> float:
        """Exits that a batch runs: those of its slowest candidate, mean over batches."""
        slowest = np.zeros(self.batches.max() + 1)
        np.maximum.at(slowest, self.batches, self.exits_taken(settings))
        return float(slowest.mean())


def exit_scores(
    evaluator: Evaluator, task: TaskInfo, model: M6Rec, variables: Mapping[str, Any]
) -> ExitScores:
    """Reads all rows of a scoring task at every exit in one forward pass each.

    Raises:
      DataError: no candidate has a label.
    """

    def program(variables: Any, features: Mapping[str, Any]) -> dict[str, Any]:
        outputs = model.apply(variables, features, exits=True)
        positive, task_ids = features["positive_classes"], features["task_ids"]
        found = [
            positive_probability(
                read_log_probabilities(model, variables, hidden, task_ids), positive
            )
            for hidden in outputs.exits
        ]
        names = ("example_weights", "decoder_labels")
        return {"probabilities": jnp.stack(found, axis=-1)} | {n: features[n] for n in names}

    data = TaskPart(task, evaluator.split)
    prompt_row(task.name, model.config.prompts.num_tasks)
    extra = task.job.row_features(data, evaluator.batch_size // evaluator.reader[1], model)
    batches = (batch | extra for batch in evaluator.batches(task))
    found = run_program(evaluator.runtime.jit(program), variables, batches, evaluator.runtime)
    rows, positions = labelled(found, "scoring")
    classes = found["decoder_labels"][rows, positions]
    return ExitScores(
        labels=np.isin(classes, data.positive_classes).astype(np.int64),
        probabilities=found["probabilities"][rows, positions].astype(np.float64),
        batches=rows // evaluator.batch_size,
    )


def cheapest(scores: ExitScores, max_loss: float) -> ExitSettings:
    """The settings that run the fewest layers and lose no more; of equals the best ones.

    Args:
      scores: of validation rows.
      max_loss: of AUC, relative to that of the last exit.
    """
    num_exits = scores.probabilities.shape[1]
    least = scores.auc(ExitSettings(NEVER, num_exits)) * (1.0 - max_loss)

    def tried() -> Iterator[tuple[float, float, ExitSettings]]:
        for depth in range(1, num_exits + 1):
            for threshold in (*SCORING_THRESHOLDS, NEVER):
                settings = ExitSettings(threshold, depth)
                quality = scores.auc(settings)
                if quality >= least:
                    yield scores.mean_exits(settings), -quality, settings

    return min(tried(), key=lambda one: one[:2])[2]


def _exits_of(
    evaluator: Evaluator, task: TaskInfo, restored: RestoredModel, max_loss: float
) -> Calibrated:
    scores = exit_scores(evaluator, task, restored.model, restored.variables)
    chosen = cheapest(scores, max_loss)
    num_exits = restored.model.config.num_exits
    return Calibrated(
        **dataclasses.asdict(chosen),
        num_exits=num_exits,
        metric="auc",
        quality=scores.auc(chosen),
        full_quality=scores.auc(ExitSettings(NEVER, num_exits)),
        mean_exits=scores.mean_exits(chosen),
        num_rows=evaluator.batches(task).num_rows,
    )


def report(found: Mapping[str, Calibrated | LearntWeights | LearntScaling]) -> str:
    """A line for each task."""
    lines = []
    for name, one in found.items():
        if isinstance(one, LearntWeights | LearntScaling):
            lines.append(f"{name}: {one}")
            continue
        when = "never before" if one.threshold > 1 else f"at a confidence of {one.threshold:g} or"
        lines.append(
            f"{name}: leaves {when} layer {one.depth} of {one.num_exits}; {one.metric} "
            f"{one.quality:.4f} instead of {one.full_quality:.4f}, {one.mean_exits:.2f} of "
            f"{one.num_exits} layers, on {one.num_rows:,} rows"
        )
    return "\n".join(lines)
