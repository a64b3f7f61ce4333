"""`m6rec calibrate`: what is chosen on validation rows once a model is trained.

Where a task's rows may leave the decoder for a stated loss of quality; what features of items are
worth where retrieval orders them; and what makes probabilities of zero-shot scores (Platt scaling).

For exits one pass over the rows reads every candidate at every exit; all thresholds and depths are
then tried on the host.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from m6rec_jax.engine.candidates.scoring import (
    chosen_classes,
    positive_probability,
    read_log_probabilities,
)
from m6rec_jax.engine.index.ranking_weights import RankingWeights
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
from m6rec_jax.evaluation.reranking import (
    Reranking,
    learnt_weights,
    ranking_name,
    reranked,
    without_towers,
)
from m6rec_jax.io.atomic import write_atomically
from m6rec_jax.io.json_text import json_text
from m6rec_jax.jobs.job import jobs, labelled
from m6rec_jax.jobs.retrieval import Retrieval
from m6rec_jax.jobs.scoring import PlattScaling
from m6rec_jax.metrics import ranking
from m6rec_jax.metrics.classification import auc, log_loss, platt_scaling
from m6rec_jax.model import M6Rec
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.pipeline.registration import TaskInfo
from m6rec_jax.pipeline.row_layout import prompt_row
from m6rec_jax.pipeline.run_vocabulary import with_own_vocabulary

# Changes of a probability that are worth trying.
SCORING_THRESHOLDS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
# Rows that weights are learnt from, of all tasks' rows; a few weights need no more.
_RANKING_ROWS = 5_000
_K = 10


@dataclass(frozen=True, slots=True)
class Learnt:
    """What was learnt for a task, and what it does on the rows that it was learnt on.

    Attributes:
      settings: to be used.
      metric: of `quality` and `before`: 'auc'.
      quality, before: with the settings, and without: of the whole model, of the two towers alone,
        of log odds as they are.
      num_rows: rows that were read; of zero-shot scores candidates.
      facts: more of these rows, by name: exits that there are, and how many a batch runs, whose
        slowest candidate decides; rows whose wanted item was a candidate.
    """

    settings: ExitSettings | RankingWeights | PlattScaling
    metric: str
    quality: float
    before: float
    num_rows: int
    facts: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The settings and all that is known of them."""
        values = {**dataclasses.asdict(self), **dataclasses.asdict(self.settings), **self.facts}
        return {n: value for n, value in values.items() if n not in ("settings", "facts")}

    def __str__(self) -> str:
        settings = dataclasses.asdict(self.settings)
        words = [
            f"{name}: {', '.join(f'{n} {v:.3g}' for n, v in value.items())}"
            if isinstance(value, Mapping)
            else f"{name} {value:.4g}"
            for name, value in {**settings, **self.facts}.items()
        ]
        return (
            f"{self.metric} {self.quality:.4f} instead of {self.before:.4f} on "
            f"{self.num_rows:,} rows; {'; '.join(words)}"
        )


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
) -> dict[str, Learnt]:
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
    if not assets.exists():
        raise CheckpointError(f"{assets} is missing: {model_dir} is no folder of a training run")
    exits, weights, scalings = (dict[str, Learnt]() for _ in range(3))
    for task in evaluator.tasks:
        if task.job.ranks_catalogue:
            weights |= learn_weights(evaluator, task, restored)
        elif task.kind == "likelihood":
            scalings[task.name] = learn_scaling(evaluator, task, restored)
        elif task.kind == "scoring" and _may_exit(restored.model.config):
            exits[task.name] = _choose_exits(evaluator, task, restored, max_loss)
    if not (exits or weights or scalings):
        ranked = [kind for kind, job in jobs().items() if job.ranks_catalogue]
        raise ConfigError(
            f"nothing is learnt for {mixture_or_task_name!r}, whose tasks are of kind "
            f"{', '.join(sorted({task.kind for task in evaluator.tasks}))}: weights are for "
            f"{', '.join(ranked)}, scaling for likelihood, and exits for scoring with a model "
            "trained with ModelConfig.exit_losses = 'rising', unless late interaction reads the "
            f"source at the ends of candidates alone ({model_dir} has exit_losses = "
            f"{restored.model.config.exit_losses!r})"
        )
    if jax.process_index() == 0:
        for name, scaling in scalings.items():
            text = f"# Learnt by `m6rec calibrate`: {scaling}.\n\nimport m6rec_jax.jobs.scoring\n\n"
            for setting, value in dataclasses.asdict(scaling.settings).items():
                text += f"PlattScaling.{setting} = {value!r}\n"
            write_atomically(assets / f"{name}_scaling.gin", text)
        options = {"split": split}
        _update_file(assets / EXITS_FILE, restored.step, exits, options | {"max_loss": max_loss})
        _update_file(assets / RANKING_FILE, restored.step, weights, options)
    return {**exits, **weights, **scalings}


def report(learnt: Mapping[str, Learnt]) -> str:
    """A line for each task."""
    return "\n".join(f"{name}: {one}" for name, one in learnt.items())


def _update_file(
    path: epath.Path, step: int, learnt: Mapping[str, Learnt], options: Mapping[str, Any]
) -> None:
    """Writes what was learnt beside what the file says of other tasks at this step."""
    if not learnt:
        return
    try:
        values = json.loads(path.read_text())
        tasks = dict(values["tasks"]) if values["step"] == step else {}
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # none, or a damaged one
        tasks = {}
    tasks |= {name: {**one.to_json(), **options} for name, one in learnt.items()}
    write_atomically(path, json_text({"step": step, "tasks": tasks}, indent=2) + "\n")


def learn_weights(
    evaluator: Evaluator, task: TaskInfo, restored: RestoredModel
) -> dict[str, Learnt]:
    """Learns the weights of `evaluator.reranking`, or of `Reranking`, for a task that
    ranks the catalogue.

    Returns:
      by `ranking_name`: a task's own, and those without the towers; and of dialogues those for all
      items, the named ones too.

    Raises:
      DataError: no rows, or no co-occurrence; or none of the wanted items was found.
    """
    before = evaluator.sample, evaluator.reranking
    evaluator.sample = evaluator.sample or _RANKING_ROWS
    evaluator.reranking = reranking = evaluator.reranking or Reranking()
    evaluator.retrievals = retrievals = list[Retrieval]()
    evaluator.predict(task, restored.model, restored.variables)
    reranker = evaluator.evaluation(task).reranker(reranking)
    evaluator.sample, evaluator.reranking = before
    evaluator.retrievals = None
    weights = {}
    for retrieval in retrievals:
        # Without rows that want nothing here.
        ranks_before = retrieval.predictions.ranks
        wants = (ranks_before > 0).any(axis=1)
        # What the model adds is the difference to weights without the towers.
        for towers in (False, True) if reranking.towers else (False,):
            found = retrieval if towers else without_towers(retrieval)
            learnt, num_found = learnt_weights(reranker, found)
            ranks = reranked(reranker, found, learnt).ranks
            weights[ranking_name(task.name, retrieval.name, towers)] = Learnt(
                learnt,
                f"ndcg@{_K}",
                ranking.ndcg(ranks[wants], _K),
                ranking.ndcg(ranks_before[wants], _K),
                int(wants.sum()),
                {"num_found": num_found},
            )
    return weights


def learn_scaling(evaluator: Evaluator, task: TaskInfo, restored: RestoredModel) -> Learnt:
    """Learns the scaling of a task of kind 'likelihood'.

    Raises:
      DataError: no labelled candidate, or all labels are the same.
    """
    predictions = evaluator.predict(task, restored.model, restored.variables)
    labels, scores = predictions.labels, predictions.scores
    scaling = PlattScaling(*platt_scaling(labels, scores))
    after, before = (
        log_loss(labels, one.probabilities(scores)) for one in (scaling, PlattScaling(1.0, 0.0))
    )
    return Learnt(scaling, "log loss", after, before, len(labels))


def _may_exit(config: ModelConfig) -> bool:
    """Whether earlier layers were trained to be read, and scoring reads them."""
    # Scoring by segments with queries at the ends alone runs all layers (`CandidateScoring`).
    whole = config.cross_attention_at == "ends" and config.late_layers_start > 0
    return config.exit_losses != "none" and not whole


def _choose_exits(
    evaluator: Evaluator, task: TaskInfo, restored: RestoredModel, max_loss: float
) -> Learnt:
    scores = exit_scores(evaluator, task, restored.model, restored.variables)
    chosen, num_exits = cheapest(scores, max_loss), restored.model.config.num_exits
    return Learnt(
        chosen,
        "auc",
        scores.auc(chosen),
        scores.auc(ExitSettings(NEVER, num_exits)),
        evaluator.batches(task).num_rows,
        {"num_exits": num_exits, "mean_exits": scores.mean_exits(chosen)},
    )


@dataclass(frozen=True, slots=True)
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
        """Exits that each candidate takes part in, `[n]`, as in `exiting_scores`."""
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
        classes = [
            read_log_probabilities(model, variables, hidden, features["task_ids"])
            for hidden in outputs.exits
        ]
        probabilities = [positive_probability(of_exit, chosen) for of_exit in classes]
        names = ("example_weights", "decoder_labels")
        return {"probabilities": jnp.stack(probabilities, axis=-1)} | {
            n: features[n] for n in names
        }

    prompt_row(task.name, model.config.prompts.num_tasks)
    every = chosen_classes(task.positive_classes, model.config.prompts.num_options)
    chosen = jnp.asarray(every)[None]
    runtime, batches = evaluator.runtime, evaluator.batches(task)
    results = run_program(runtime.program(program), variables, batches, runtime)
    rows, positions = labelled(results, "scoring")
    classes = results["decoder_labels"][rows, positions]
    return ExitScores(
        labels=np.isin(classes, task.positive_classes).astype(np.int64),
        probabilities=results["probabilities"][rows, positions].astype(np.float64),
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
    choices = [
        ExitSettings(threshold, depth)
        for depth, threshold in itertools.product(
            range(1, num_exits + 1), (*SCORING_THRESHOLDS, NEVER)
        )
    ]
    good = [choice for choice in choices if scores.auc(choice) >= least]
    return min(good, key=lambda choice: (scores.mean_exits(choice), -scores.auc(choice)))
