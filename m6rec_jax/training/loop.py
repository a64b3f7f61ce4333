"""The train loop: mesh, data, state, steps, validation, checkpoints, resuming (`train`)."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gin
import jax
import optax
from etils import epath
from jax.sharding import Mesh

from m6rec_jax.checkpoints.location import CHECKPOINTS_FOLDER
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.config_file import CONFIG_FILE, write_config
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import check_bucket
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives.sentences import SentenceLoss
from m6rec_jax.pipeline.run_vocabulary import with_own_vocabulary
from m6rec_jax.sharding import (
    LogicalRules,
    check_rows,
    data_parallel,
    make_mesh,
    place_batch,
)
from m6rec_jax.sharding.processes import check_shared
from m6rec_jax.training.data_state import Batch
from m6rec_jax.training.early_stopping import BestMetric
from m6rec_jax.training.goodput import Goodput
from m6rec_jax.training.initial_embeddings import (
    check_initial_embeddings,
    with_initial_embeddings,
)
from m6rec_jax.training.initial_prompts import check_initial_prompts, with_initial_prompts
from m6rec_jax.training.initialization import (
    check_prompts_of_checkpoint,
    initial_state,
    state_from_checkpoint,
    with_optimizer_state,
)
from m6rec_jax.training.input_feed import InputFeed
from m6rec_jax.training.metric_log import MetricLog
from m6rec_jax.training.options import (
    Checkpoints,
    Logging,
    Start,
    Step,
    TrainingData,
    Validation,
)
from m6rec_jax.training.resumption import resumed_state
from m6rec_jax.training.rounded_weights import RoundedWeightsLoss
from m6rec_jax.training.sentences import (
    SentenceEncoder,
    add_sentences,
    described_with,
    encoder_folder,
)
from m6rec_jax.training.step_loop import EARLY_STOPPING, StepLoop
from m6rec_jax.training.task_data import (
    check_labels,
    check_task,
    jobs_of,
    save_inference_assets,
    tell_what_is_cut,
    text_vocabulary,
    training_batches,
    validation_batches,
    vocabulary_of,
)
from m6rec_jax.training.teacher import with_teacher
from m6rec_jax.training.train_state import TrainState, abstract_state
from m6rec_jax.training.train_step import LossFunction, make_train_step
from m6rec_jax.training.validation import (
    ValidationPlan,
    Validator,
    catalogue_cost,
    plan_validation,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What `train` leaves in memory (all of it is on disk, too).

    Attributes:
      step: steps taken in all, over all launches.
      state: the last state.
      model: the model.
      metrics: the last scalars written.
      goodput: seconds by part and the share of time in steps, of this launch.
      best_step: step with the best validation metric, when one is followed.
      stopped_by: 'SIGTERM', 'SIGINT', 'early stopping', or None after all steps.
    """

    step: int
    state: TrainState
    model: M6Rec
    metrics: Mapping[str, float]
    goodput: Mapping[str, float]
    best_step: int | None
    stopped_by: str | None


@gin.configurable
@with_own_vocabulary
def train(
    model: M6Rec | ModelConfig,
    data: TrainingData,
    model_dir: str,
    train_steps: int,
    optimizer: optax.GradientTransformation,
    *,
    trainable: str = "all",
    seed: int = 0,
    start: Start | None = None,
    step: Step | None = None,
    checkpoints: Checkpoints | None = None,
    validation: Validation | None = None,
    log: Logging | None = None,
) -> TrainResult:
    """Trains until `train_steps`, resuming from the newest checkpoint in `model_dir` if any.

    Running the same command again after an interruption, on any number of devices or loading
    processes, continues the run: on the same machine bit for bit.

        train.model = %MODEL
        train.data = @TrainingData()
        train.model_dir = %MODEL_DIR
        train.train_steps = %TRAIN_STEPS
        train.optimizer = @adamw()
        Start.checkpoint = %INITIAL_CHECKPOINT_PATH

    Args:
      model: the model, or its config.
      data: what is read.
      model_dir: folder of everything the run writes; may be a bucket address.
      train_steps: optimizer steps in all.
      optimizer: of `training.optimizers` (or any optax transformation over `trainable_groups`).
      trainable: 'prompts' (the backbone is frozen) or 'all'.
      seed: of initialisation and dropout (data have their own).
      start, step, checkpoints, validation, log: see `training.options`; None: as gin sets them,
        or their defaults.

    Raises:
      ConfigError: settings that do not fit each other.
      CheckpointError: the checkpoint to resume or start from does not fit, or is damaged; or a
        folder is in a bucket, and the package for it is missing.
      DataError: the data end, or a batch has another shape.
      M6RecError: the loss is not a number any more.
    """
    clock = Goodput()
    start, step = start or Start(), step or Step()
    checkpoints, validation = checkpoints or Checkpoints(), validation or Validation()
    log = log or Logging()
    if train_steps < 1:
        raise ConfigError(f"TRAIN_STEPS = {train_steps} must be at least 1")
    if isinstance(model, ModelConfig):
        model = M6Rec(model)
    check_initial_embeddings(start.embeddings)
    check_prompts_of_checkpoint(start.prompts)
    check_initial_prompts(
        start.soft_prompts, model.config, start.prompts, start.class_labels, start.options
    )
    if start.prompts == "all" and not start.checkpoint:
        raise ConfigError(
            "Start.prompts = 'all' takes them over from INITIAL_CHECKPOINT_PATH: set it"
        )
    for path in filter(None, (model_dir, start.checkpoint)):
        check_bucket(path)  # nothing else may take time, or write, before
    folder = epath.Path(model_dir)
    is_main = jax.process_index() == 0
    # What an earlier launch wrote stays until this one has proved to be its continuation.
    if is_main and not (folder / CONFIG_FILE).exists():
        write_config(model_dir)
    check_shared(folder / CONFIG_FILE)

    with clock.measure("startup"):
        mesh = make_mesh()
        rules = data_parallel() if step.rules is None else tuple(step.rules)
        check_rows(data.batch_size, mesh, step.accumulation_steps)
        abstract = abstract_state(
            model, optimizer, mesh, rules, trainable=trainable, frozen_dtype=step.frozen_dtype
        )
        name, lengths = data.mixture_or_task_name, data.task_feature_lengths
        source = training_batches(name, lengths, data.batch_size, data.batches, mesh)
        text = vocabulary_of(name, source)
        jobs: dict[str, int] = {}
        fingerprint = data.vocabulary_fingerprint
        if text is not None:  # else nothing is known of what the batches come from
            check_task(name, text, model.config)
            jobs = jobs_of(name)
            fingerprint = fingerprint or text.fingerprint
        run = RunDescription(
            model_config=model.config,
            vocabulary_fingerprint=fingerprint,
            trainable=trainable,
            extra={"seed": seed, "batch_size": data.batch_size},
        )
        loss: LossFunction = step.loss
        fixed: dict[str, Any] = {}
        if step.distillation is not None:
            loss, fixed, run = with_teacher(step.loss, step.distillation, run, mesh, rules)
        extended: Callable[[Batch], Batch] = lambda batch: batch  # noqa: E731
        if step.sentences is not None:
            folder_of_encoder = encoder_folder(step.sentences.encoder)
            encoder = SentenceEncoder(folder_of_encoder, step.sentences.max_tokens)
            loss, run = SentenceLoss(loss), described_with(run, encoder)
            extended = add_sentences(step.sentences, encoder, text_vocabulary(name))
        if step.weight_bits is not None:
            loss = RoundedWeightsLoss(loss, step.weight_bits)
        best = BestMetric(validation.best_metric, validation.mode, validation.patience)
        store = CheckpointStore(
            folder / CHECKPOINTS_FOLDER,
            keep=checkpoints.keep,
            best_metric=validation.best_metric,
            best_mode=validation.mode,
        )
        resumed, validated = store.latest_step() is not None, True
        if resumed:
            state, validated = resumed_state(store, abstract, source, run, best, mesh)
        else:
            state = _new_state(
                start, data, model, optimizer, abstract, mesh, rules, run=run, seed=seed
            )
        state = state.replace(fixed=fixed)
        abstract = abstract.replace(fixed=jax.tree.map(_abstract, fixed))
        first_step = int(state.step)
        plan = _validation_plan(validation, data, step, train_steps, log.progress)
        if is_main:
            write_config(model_dir)
            if text is not None:
                save_inference_assets(name, lengths, model_dir, resumed=resumed)
                if log.cuts and not resumed:
                    tell_what_is_cut(name, lengths)

    loop = StepLoop(
        mesh=mesh,
        rules=rules,
        abstract=abstract,
        description=run,
        store=store,
        best=best,
        clock=clock,
        train_steps=train_steps,
        batch_size=data.batch_size,
        jobs=tuple(jobs),
        trainable=trainable,
        checkpoint_period=checkpoints.period,
        log_period=log.period,
        validation_period=plan.period if plan and validation.period else None,
        validate_first=validation.first,
        validated=validated,
        validate=Validator(
            model,
            abstract,
            mesh,
            rules,
            loss,
            lambda: validation_batches(
                name,
                lengths,
                data.batch_size // step.accumulation_steps,
                validation.batches,
                mesh,
                sample=0 if plan is None else plan.rows,
            ),
            extended,
            validation.evaluate,
            jobs,
            progress=log.progress and is_main,
        ),
    )
    step_function = make_train_step(
        model,
        optimizer,
        trainable=trainable,
        seed=seed,
        accumulation_steps=step.accumulation_steps,
        loss=loss,
        jobs=tuple(jobs.values()),
    )

    def place(batch: Batch) -> dict[str, jax.Array]:
        check_labels(batch, model.config.prompts)
        return _placed(extended(batch), mesh, step.accumulation_steps)

    with (
        store,
        MetricLog(
            folder, first_step=first_step, tensorboard=log.tensorboard, active=is_main
        ) as metric_log,
        progress_bar(
            total=train_steps,
            initial=first_step,
            unit="step",
            disable=not (log.progress and is_main),
        ) as bar,
    ):
        is_over = first_step >= train_steps or best.should_stop
        if is_over and not loop.owes_validation(first_step):
            why = "early stopping ended the run" if best.should_stop else "nothing to do"
            logger.info("%s has %d of %d steps: %s", folder, first_step, train_steps, why)
            metrics: Mapping[str, float] = {}
            stopped_by = EARLY_STOPPING if best.should_stop else None
        else:
            with InputFeed(
                source,
                place,
                first_batch=first_step,
                snapshot_period=checkpoints.period,
                depth=data.prefetch,
            ) as feed:
                state, metrics, stopped_by = loop.run(state, feed, step_function, metric_log, bar)
        with clock.measure("checkpoint"):
            store.wait()
        report = clock.report()
        metric_log.write(int(state.step), report)
    if is_main:
        logger.info("%s", clock.summary())
    if stopped_by in ("SIGTERM", "SIGINT") and is_main:
        _say_how_to_resume(stopped_by, int(state.step), train_steps, folder)
    return TrainResult(int(state.step), state, model, metrics, report, best.best_step, stopped_by)


def _new_state(
    start: Start,
    data: TrainingData,
    model: M6Rec,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    rules: LogicalRules,
    *,
    run: RunDescription,
    seed: int,
) -> TrainState:
    """The state at step 0, started as `start` says."""
    trainable = run.trainable or "all"
    if start.checkpoint:
        state = state_from_checkpoint(
            model,
            optimizer,
            abstract,
            mesh,
            rules,
            trainable=trainable,
            seed=seed,
            path=start.checkpoint,
            run=run,
            initial_prompts=start.prompts,
        )
    else:
        if trainable == "prompts":
            logger.warning(
                "training prompts on a random backbone: INITIAL_CHECKPOINT_PATH is not set"
            )
        state = initial_state(
            model, optimizer, abstract, mesh, rules, trainable=trainable, seed=seed
        )
        with jax.set_mesh(mesh):
            state = with_initial_embeddings(
                state,
                model.config,
                start.embeddings,
                data.mixture_or_task_name,
                data.task_feature_lengths,
                data.batch_size,
                data.batches,
                seed,
            )
    with jax.set_mesh(mesh):
        state = with_initial_prompts(
            state,
            model.config,
            data.mixture_or_task_name,
            soft_prompts=start.soft_prompts,
            labels=start.class_labels,
            options=start.options,
            seed=seed,
        ).replace(opt_state=None)
    # Made anew: some optimizers keep a copy of the weights.
    return with_optimizer_state(state, optimizer, abstract, mesh, rules, trainable=trainable)


def _validation_plan(
    validation: Validation, data: TrainingData, step: Step, train_steps: int, progress: bool
) -> ValidationPlan | None:
    """How often, unless only first, and on how many rows a run is validated; None: never.

    `evaluate` is told the rows, and whether it shows bars.
    """
    if validation.period is None and not validation.first:
        return None
    period = validation.period or train_steps
    plan = ValidationPlan(period, validation.rows or 0)
    if validation.rows is None:
        plan = plan_validation(
            period,
            train_steps,
            data.batch_size,
            passes=1 + (validation.evaluate is not None),
            fixed_cost=catalogue_cost(validation.evaluate, data.task_feature_lengths),
            first=validation.first,
            least_rows=data.batch_size // step.accumulation_steps,
        )
        if plan.period != period:
            logger.info(
                "validation every %d steps instead of %d: it computes the vectors of all items "
                "(Validation.rows = 0: as often as asked for, on all rows)",
                plan.period,
                period,
            )
    evaluate: Any = validation.evaluate
    if plan.rows and hasattr(evaluate, "sample"):
        evaluate.sample = plan.rows
    if hasattr(evaluate, "progress"):
        evaluate.progress = progress and jax.process_index() == 0
    return plan


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _placed(batch: Batch, mesh: Mesh, accumulation_steps: int) -> dict[str, jax.Array]:
    """A batch on the devices, `[rows, length]`, or `[accumulation_steps, rows, length]`."""
    if accumulation_steps == 1:
        return place_batch(batch, mesh)
    # Part a holds the rows a, a + A, ...: the same rows however many processes read them.
    parts = {
        name: rows.reshape(-1, accumulation_steps, *rows.shape[1:]).swapaxes(0, 1)
        for name, rows in batch.items()
    }
    return place_batch(parts, mesh, leading=1)


def _say_how_to_resume(signal_name: str, step: int, train_steps: int, folder: epath.Path) -> None:
    saved = f"everything is saved in {folder}" if step else "nothing was trained yet"
    print(
        f"\n{signal_name}: stopped after step {step} of {train_steps}; {saved}. To go on, run the "
        f"same command again:\n  {shlex.join(sys.argv)}",
        file=sys.stderr,
    )
