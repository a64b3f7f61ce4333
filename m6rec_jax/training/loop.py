"""The train loop: mesh, data, state, steps, validation, checkpoints, resuming (`train`)."""

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

from m6rec_jax.checkpoints.location import CHECKPOINTS_FOLDER
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.config_file import CONFIG_FILE, write_config
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import check_bucket
from m6rec_jax.io.progress import progress_bar
from m6rec_jax.model.config import ModelConfig
from m6rec_jax.model.m6rec import M6Rec
from m6rec_jax.objectives import total_loss
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
from m6rec_jax.training.initial_prompts import (
    Words,
    check_initial_prompts,
    with_initial_prompts,
)
from m6rec_jax.training.initialization import initial_state, state_from_checkpoint
from m6rec_jax.training.input_feed import InputFeed
from m6rec_jax.training.metric_log import MetricLog
from m6rec_jax.training.resumption import resumed_state
from m6rec_jax.training.step_loop import EARLY_STOPPING, StepLoop
from m6rec_jax.training.task_data import (
    MakeBatches,
    MakeEvaluationBatches,
    check_labels,
    check_prompt_rows,
    check_vocabulary_rows,
    jobs_of,
    save_inference_assets,
    training_batches,
    validation_batches,
    vocabulary_of,
)
from m6rec_jax.training.train_state import TrainState, abstract_state
from m6rec_jax.training.train_step import LossFunction, make_train_step
from m6rec_jax.training.validation import Evaluate, Validation

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
      best_step: step with the best validation figure, when one is followed.
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
def train(
    model: M6Rec | ModelConfig,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    model_dir: str,
    train_steps: int,
    batch_size: int,
    optimizer: optax.GradientTransformation,
    *,
    trainable: str = "all",
    seed: int = 0,
    accumulation_steps: int = 1,
    frozen_dtype: str | None = None,
    initial_checkpoint_path: str | None = None,
    initial_prompts: str = "none",
    initial_soft_prompts: str = "random",
    class_labels: Words = (),
    initial_options: Words = (),
    initial_embeddings: str = "random",
    rules: LogicalRules | None = None,
    checkpoint_period: int = 1000,
    keep_checkpoints: int | None = 3,
    log_period: int = 50,
    eval_period: int | None = None,
    validate_first: bool = False,
    batches: MakeBatches | None = None,
    validation: MakeEvaluationBatches | None = None,
    evaluate: Evaluate | None = None,
    best_metric: str | None = None,
    best_mode: str = "min",
    early_stopping_patience: int | None = None,
    prefetch: int = 2,
    tensorboard: bool = True,
    progress: bool = True,
    vocabulary_fingerprint: str | None = None,
    loss: LossFunction = total_loss,
) -> TrainResult:
    """Trains until `train_steps`, resuming from the newest checkpoint in `model_dir` if any.

    Running the same command again after an interruption, on any number of devices or loading
    processes, continues the run: on the same machine bit for bit.

        train.model = %MODEL
        train.mixture_or_task_name = %MIXTURE_OR_TASK_NAME
        train.task_feature_lengths = %TASK_FEATURE_LENGTHS
        train.model_dir = %MODEL_DIR
        train.train_steps = %TRAIN_STEPS
        train.batch_size = %BATCH_SIZE
        train.optimizer = @adamw()
        train.initial_checkpoint_path = %INITIAL_CHECKPOINT_PATH

    Args:
      model: the model, or its config.
      mixture_or_task_name: as registered in `tasks/`.
      task_feature_lengths: `{"inputs": S, "targets": T}`, tokens.
      model_dir: folder of everything the run writes; may be a bucket address.
      train_steps: optimizer steps in all.
      batch_size: rows of one optimizer step, over all devices and accumulation steps.
      optimizer: of `training.optimizers` (or any optax transformation over `trainable_groups`).
      trainable: 'prompts' (the backbone is frozen) or 'all'.
      seed: of initialisation and dropout (data have their own).
      accumulation_steps: parts that a batch is computed in.
      frozen_dtype: type in which a frozen backbone is held ('bfloat16' or None for float32).
      initial_checkpoint_path: MODEL_DIR, `checkpoints` folder or step folder whose backbone a new
        run starts from.
      initial_prompts: whether its prompts are taken over as well: 'none', 'all', or 'matching'
        (tensors of equal name and shape, e.g. special tokens of pretraining; those of a single task
        go to every task of a bank that has them in the same size).
      initial_soft_prompts: of a new run: 'random'; 'vocabulary', embeddings of frequent pieces
        drawn by `seed`; or 'class_labels', the last ones as the text of the classes and the others
        as 'vocabulary' (`initial_prompts.with_prompts_of_labels`). The latter two replace soft
        prompts that 'matching' took over.
      class_labels: that text, one for each class, or by the name of the seqio task. Read where
        `initial_soft_prompts` is 'class_labels'.
      initial_options: a word for each class, whose output vectors the options (or the columns of a
        linear head) of a new run start from, or such words by the name of the seqio task; see
        `initial_prompts.with_options_of_words`. Empty: they start as soft prompts do. They replace
        a head that 'matching' took over.
      initial_embeddings: of a new backbone: 'random', 'pieces' (what the vocabulary's pieces are
        written of), or 'neighbours' (that, and what stands near what in the training data); see
        `with_initial_embeddings`.
      rules: sharding rules; None: `data_parallel`. The mesh comes from `make_mesh` (gin).
      checkpoint_period: steps between checkpoints.
      keep_checkpoints: newest checkpoints kept (None: all); the best one is kept besides.
      log_period: steps between lines of the log.
      eval_period: steps between validations (None: never).
      validate_first: validate a new run before its first step, too: what it starts from, untuned.
        That is never the best.
      batches: makes training batches; None: `pipeline.BatchIterator`.
      validation: makes one pass of validation batches; None: `pipeline.EvaluationBatches`.
      evaluate: further figures at every validation, (model, variables, step) → `{name: value}`.
      best_metric: figure by which a checkpoint is best, e.g. 'validation/loss'; that checkpoint
        is kept (None: none is best).
      best_mode: 'min' or 'max'.
      early_stopping_patience: validations without a new best before training ends (None: never).
      prefetch: batches read ahead and held on the devices.
      tensorboard: write TensorBoard files.
      progress: show a progress bar.
      vocabulary_fingerprint: recorded and compared; None: that of the task's vocabulary.
      loss: the objectives.

    Raises:
      ConfigError: settings that do not fit each other.
      CheckpointError: the checkpoint to resume or start from does not fit, or is damaged; or a
        folder is in a bucket, and the package for it is missing.
      DataError: the data end, or a batch has another shape.
      M6RecError: the loss is not a number any more.
    """
    clock = Goodput()
    _check_periods(checkpoint_period, log_period, eval_period, batch_size, accumulation_steps)
    best = BestMetric(best_metric, best_mode, early_stopping_patience)
    if best_metric is not None and eval_period is None:
        raise ConfigError("train.best_metric needs train.eval_period")
    check_initial_embeddings(initial_embeddings)
    if isinstance(model, ModelConfig):
        model = M6Rec(model)
    check_initial_prompts(
        initial_soft_prompts, model.config, initial_prompts, class_labels, initial_options
    )
    rules = data_parallel() if rules is None else tuple(rules)
    for path in filter(None, (model_dir, initial_checkpoint_path)):
        check_bucket(path)  # nothing else may take time, or write, before
    folder = epath.Path(model_dir)
    is_main = jax.process_index() == 0
    config_file = folder / CONFIG_FILE
    # That of a run that is there stays until this one has proved to be its continuation.
    if is_main and not config_file.exists():
        write_config(model_dir, operative=False)
    check_shared(config_file)

    with clock.measure("startup"):
        mesh = make_mesh()
        check_rows(batch_size, mesh, accumulation_steps)
        abstract = abstract_state(
            model, optimizer, mesh, rules, trainable=trainable, frozen_dtype=frozen_dtype
        )
        source = training_batches(
            mixture_or_task_name, task_feature_lengths, batch_size, batches, mesh
        )
        check_vocabulary_rows(mixture_or_task_name, source, model.config)
        check_prompt_rows(mixture_or_task_name, source, model.config)
        jobs = jobs_of(mixture_or_task_name, source)
        run = RunDescription(
            model_config=model.config,
            vocabulary_fingerprint=vocabulary_fingerprint
            or vocabulary_of(mixture_or_task_name, source),
            trainable=trainable,
            extra={"seed": seed, "batch_size": batch_size},
        )
        store = CheckpointStore(
            folder / CHECKPOINTS_FOLDER,
            keep=keep_checkpoints,
            best_metric=best_metric,
            best_mode=best_mode,
        )
        if store.latest_step() is not None:
            state = resumed_state(store, abstract, source, run, best, mesh)
        elif initial_checkpoint_path:
            state = state_from_checkpoint(
                model,
                optimizer,
                abstract,
                mesh,
                rules,
                trainable=trainable,
                seed=seed,
                path=initial_checkpoint_path,
                run=run,
                initial_prompts=initial_prompts,
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
                    initial_embeddings,
                    mixture_or_task_name,
                    task_feature_lengths,
                    batch_size,
                    batches,
                    seed,
                )
        if store.latest_step() is None:
            with jax.set_mesh(mesh):
                state = with_initial_prompts(
                    state,
                    model.config,
                    mixture_or_task_name,
                    soft_prompts=initial_soft_prompts,
                    labels=class_labels,
                    options=initial_options,
                    seed=seed,
                )
        first_step = int(state.step)
        if is_main:
            write_config(model_dir, operative=False)
            save_inference_assets(
                mixture_or_task_name,
                task_feature_lengths,
                model_dir,
                source,
                resumed=store.latest_step() is not None,
            )

    loop = StepLoop(
        mesh=mesh,
        rules=rules,
        abstract=abstract,
        description=run,
        store=store,
        best=best,
        clock=clock,
        train_steps=train_steps,
        batch_size=batch_size,
        jobs=tuple(jobs),
        trainable=trainable,
        checkpoint_period=checkpoint_period,
        log_period=log_period,
        eval_period=eval_period,
        validate_first=validate_first,
        validate=Validation(
            model,
            abstract,
            mesh,
            rules,
            loss,
            lambda: validation_batches(
                mixture_or_task_name,
                task_feature_lengths,
                batch_size // accumulation_steps,
                validation,
                mesh,
            ),
            evaluate,
            jobs,
        ),
    )
    step_function = make_train_step(
        model,
        optimizer,
        trainable=trainable,
        seed=seed,
        accumulation_steps=accumulation_steps,
        loss=loss,
        jobs=tuple(jobs.values()),
    )

    def place(batch: Batch) -> dict[str, jax.Array]:
        check_labels(batch, model.config.prompts)
        if accumulation_steps == 1:
            return place_batch(batch, mesh)
        # Part a holds the rows a, a + A, ...: the same rows however many processes read them.
        parts = {
            name: rows.reshape(-1, accumulation_steps, *rows.shape[1:]).swapaxes(0, 1)
            for name, rows in batch.items()
        }
        return place_batch(parts, mesh, leading=1)

    with (
        store,
        MetricLog(folder, first_step=first_step, tensorboard=tensorboard, active=is_main) as log,
        progress_bar(
            total=train_steps,
            initial=first_step,
            unit="step",
            disable=not (progress and is_main),
        ) as bar,
    ):
        if first_step >= train_steps or best.should_stop:
            logger.info("%s has %d of %d steps: nothing to do", folder, first_step, train_steps)
            metrics: Mapping[str, float] = {}
            stopped_by = EARLY_STOPPING if best.should_stop else None
        else:
            with InputFeed(
                source,
                place,
                first_batch=first_step,
                snapshot_period=checkpoint_period,
                depth=prefetch,
            ) as feed:
                state, metrics, stopped_by = loop.run(state, feed, step_function, log, bar)
        with clock.measure("checkpoint"):
            store.wait()
        report = clock.report()
        log.write(int(state.step), report)
    if is_main:
        logger.info("%s", clock.summary())
    # gin's operative configuration is that of functions which were called: where no step was
    # compiled it lacks the objectives.
    if is_main and int(state.step) > first_step:
        write_config(model_dir, operative=True)
    if stopped_by in ("SIGTERM", "SIGINT") and is_main:
        _say_how_to_resume(stopped_by, int(state.step), train_steps, folder)
    return TrainResult(int(state.step), state, model, metrics, report, best.best_step, stopped_by)


def _check_periods(
    checkpoint_period: int,
    log_period: int,
    eval_period: int | None,
    batch_size: int,
    accumulation_steps: int,
) -> None:
    for name, value in (
        ("checkpoint_period", checkpoint_period),
        ("log_period", log_period),
        ("eval_period", eval_period),
        ("batch_size", batch_size),
        ("accumulation_steps", accumulation_steps),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"train.{name} = {value} must be at least 1")


def _say_how_to_resume(signal_name: str, step: int, train_steps: int, folder: epath.Path) -> None:
    saved = f"everything is saved in {folder}" if step else "nothing was trained yet"
    print(
        f"\n{signal_name}: stopped after step {step} of {train_steps}; {saved}. To go on, run the "
        f"same command again:\n  {shlex.join(sys.argv)}",
        file=sys.stderr,
    )
