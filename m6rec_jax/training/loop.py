"""A run: config, data, state, steps with validation and checkpoints, resuming (`train`)."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import gin
import jax
import optax
from etils import epath
from jax.sharding import Mesh

from m6rec_jax.checkpoints.checkpoint import CHECKPOINTS_FOLDER
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.config_file import CONFIG_FILE, write_config
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import check_bucket
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.pipeline.run_vocabulary import with_own_vocabulary
from m6rec_jax.sharding import batch_reader, check_rows, data_parallel, make_mesh, place_batch
from m6rec_jax.sharding.processes import check_shared
from m6rec_jax.training.data_state import Batch
from m6rec_jax.training.early_stopping import BestMetric
from m6rec_jax.training.initial_embeddings import with_initial_embeddings
from m6rec_jax.training.initial_prompts import with_initial_options
from m6rec_jax.training.initialization import (
    initial_state,
    initial_variables,
    variables_from_checkpoint,
)
from m6rec_jax.training.input_feed import InputFeed
from m6rec_jax.training.metric_log import Goodput, MetricLog
from m6rec_jax.training.objective import make_objective
from m6rec_jax.training.options import (
    Checkpoints,
    Logging,
    Start,
    Step,
    TrainingData,
    Validation,
)
from m6rec_jax.training.resumption import resumed_state
from m6rec_jax.training.step_loop import StepLoop
from m6rec_jax.training.task_data import (
    check_labels,
    is_of_pipeline,
    jobs_that_fit,
    save_inference_assets,
    text_vocabulary,
    training_batches,
)
from m6rec_jax.training.train_state import TrainSetup, TrainState
from m6rec_jax.training.train_step import make_train_step
from m6rec_jax.training.validation import Validator

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What `train` leaves in memory (all of it is on disk, too).

    Attributes:
      step: steps taken in all, over all launches.
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
      optimizer: of `training.optimizers` (or any optax transformation over `TrainSetup.trained`).
      trainable: 'prompts' (the backbone is frozen) or 'all'.
      seed: of initialisation and dropout (data have their own).
      start, step, checkpoints, validation, log: see `training.options`; None: as gin sets them,
        or their defaults.

    Raises:
      ConfigError: settings that do not fit each other.
      CheckpointError: the checkpoint to resume or start from does not fit, or is damaged; or a
        folder is in a bucket, and the package for it is missing.
      DataError: the data end.
      M6RecError: the loss is not a number any more.
    """
    clock = Goodput()
    start, step, log = start or Start(), step or Step(), log or Logging()
    checkpoints, validation = checkpoints or Checkpoints(), validation or Validation()
    model = M6Rec(model) if isinstance(model, ModelConfig) else model
    folder, is_main = epath.Path(model_dir), jax.process_index() == 0
    if train_steps < 1:
        raise ConfigError(f"TRAIN_STEPS = {train_steps} must be at least 1")
    for path in filter(None, (model_dir, start.checkpoint)):
        check_bucket(path)
    # What an earlier launch wrote stays until this one has proved to be its continuation.
    if is_main and not (folder / CONFIG_FILE).exists():
        write_config(model_dir)
    check_shared(folder / CONFIG_FILE)
    with clock.measure("startup"):
        mesh = make_mesh()
        check_rows(data.batch_size, mesh, step.accumulation_steps)
        rules = data_parallel() if step.rules is None else tuple(step.rules)
        setup = TrainSetup(model, optimizer, mesh, rules, trainable, seed, step.frozen_dtype)
        source = training_batches(data, batch_reader(mesh))
        fingerprint, jobs = data.vocabulary_fingerprint, dict[str, int]()
        is_task = is_of_pipeline(source)  # else nothing is known of what the batches come from
        if is_task:
            jobs = jobs_that_fit(data.mixture_or_task_name, model.config)
            vocabulary = text_vocabulary(data.mixture_or_task_name)
            fingerprint = fingerprint or vocabulary.fingerprint
        objective = make_objective(step, setup, fingerprint)
        run = RunDescription(
            model_config=model.config,
            vocabulary_fingerprint=fingerprint,
            trainable=trainable,
            extra={"seed": seed, "batch_size": data.batch_size, **objective.fingerprints},
        )
        best = BestMetric(validation.best_metric, validation.mode, validation.patience)
        store = CheckpointStore(folder / CHECKPOINTS_FOLDER, keep=checkpoints.keep)
        resumed = store.latest_step() is not None
        state = (
            resumed_state(setup, store, source, run, best)
            if resumed
            else _new_state(setup, start, data, run)
        ).replace(fixed=objective.fixed)
        first_step, progress = int(state.step), log.progress and is_main
        validate = Validator(
            setup,
            objective,
            data,
            validation,
            rows=data.batch_size // step.accumulation_steps,
            train_steps=train_steps,
            jobs=jobs,
            progress=progress,
        )
        if first_step >= train_steps or best.should_stop:
            why = "early stopping ended the run" if best.should_stop else "nothing to do"
            logger.info("%s has %d of %d steps: %s", folder, first_step, train_steps, why)
        if is_main:
            write_config(model_dir)
            if is_task:
                save_inference_assets(data, model_dir, resumed=resumed)

    def place(batch: Batch) -> dict[str, jax.Array]:
        check_labels(batch, model.config.prompts)
        return _placed(batch, mesh, step.accumulation_steps)

    with (
        store,
        MetricLog(
            folder, first_step=first_step, tensorboard=log.tensorboard, active=is_main
        ) as metric_log,
        progress_bar(
            total=train_steps, initial=first_step, unit="step", disable=not progress
        ) as bar,
        InputFeed(
            source,
            place,
            first_batch=first_step,
            snapshot_period=checkpoints.period,
            depth=data.prefetch,
        ) as feed,
    ):
        loop = StepLoop(
            setup=setup,
            description=run,
            store=store,
            best=best,
            clock=clock,
            log=metric_log,
            bar=bar,
            step_function=make_train_step(
                setup,
                accumulation_steps=step.accumulation_steps,
                loss=objective.loss,
                jobs=tuple(jobs.values()),
            ),
            validate=validate,
            train_steps=train_steps,
            batch_size=data.batch_size,
            jobs=tuple(jobs),
            checkpoint_period=checkpoints.period,
            log_period=log.period,
        )
        state, metrics, stopped_by = loop.run(state, feed)
        with clock.measure("checkpoint"):
            store.wait()
        report = clock.report()
        metric_log.write(int(state.step), report)
    if is_main:
        logger.info("%s", clock)
        if stopped_by in ("SIGTERM", "SIGINT"):
            at, saved = int(state.step), f"everything is saved in {folder}"
            print(
                f"\n{stopped_by}: stopped after step {at} of {train_steps}; "
                f"{saved if at else 'nothing was trained yet'}. To go on, run the same command "
                f"again:\n  {shlex.join(sys.argv)}",
                file=sys.stderr,
            )
    return TrainResult(int(state.step), state, model, metrics, report, best.best_step, stopped_by)


def _new_state(
    setup: TrainSetup, start: Start, data: TrainingData, run: RunDescription
) -> TrainState:
    """The state at step 0, started as `start` says."""
    config, task = setup.model.config, data.mixture_or_task_name
    if start.checkpoint:
        variables = variables_from_checkpoint(setup, start.checkpoint, run, start.prompts)
    else:
        if setup.trainable == "prompts":
            logger.warning(
                "training prompts on a random backbone: INITIAL_CHECKPOINT_PATH is not set"
            )
        variables = initial_variables(setup)
    with jax.set_mesh(setup.mesh):
        if not start.checkpoint:
            variables = with_initial_embeddings(
                variables, config, start.embeddings, data, setup.seed
            )
        variables = with_initial_options(variables, config, task, start.options)
    return initial_state(setup, variables)


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
