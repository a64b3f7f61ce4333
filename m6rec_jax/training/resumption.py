"""Going on with a run from its newest checkpoint."""

from __future__ import annotations

import logging

import jax
import numpy as np

from m6rec_jax.checkpoints.bytes_item import read_bytes_item
from m6rec_jax.checkpoints.checkpoint import DATA, OPTIMIZER, PARAMS, PROMPTS, open_checkpoint
from m6rec_jax.checkpoints.manifest import Manifest, RunDescription, differences
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.config_file import changed_settings
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.objectives.distillation import TEACHER
from m6rec_jax.sharding import replicated
from m6rec_jax.training.data_state import ResumableBatches, position_from_item, resume
from m6rec_jax.training.early_stopping import BestMetric
from m6rec_jax.training.train_state import TrainSetup, TrainState

logger = logging.getLogger(__name__)


def resumed_state(
    setup: TrainSetup,
    store: CheckpointStore,
    source: ResumableBatches,
    run: RunDescription,
    best: BestMetric,
) -> TrainState:
    """The state of the newest checkpoint; `source` and `best` are put to where it was saved.

    Args:
      setup: of the run.
      store: the run's checkpoints, at least one.
      source: training batches, at their start.
      run: what is trained now.
      best: the validation metric that is followed.

    Raises:
      CheckpointError: it does not fit this run.
    """
    checkpoint = open_checkpoint(store.folder)
    manifest = checkpoint.manifest
    if manifest.trainable != run.trainable:
        raise CheckpointError(
            f"{store.folder} was started with train.trainable = {manifest.trainable!r}, now it is "
            f"{run.trainable!r}. Start a new MODEL_DIR, with INITIAL_CHECKPOINT_PATH = this one"
        )
    before, now = manifest.extra.get(TEACHER), run.extra.get(TEACHER)
    if before != now:
        raise CheckpointError(
            f"{store.folder} learns from a teacher of fingerprint {before}, now it is {now} (None: "
            "no teacher). Give Distillation.teacher as before (a step's folder, where that run has "
            "gone on since), or start a new MODEL_DIR"
        )
    checkpoint.check_vocabulary(run.vocabulary_fingerprint)
    abstract, config = setup.abstract_state, setup.model.config
    state = TrainState(
        step=jax.device_put(np.int32(checkpoint.step), replicated(setup.mesh)),
        params=checkpoint.restore(PARAMS, abstract.params, config),
        prompts=checkpoint.restore(PROMPTS, abstract.prompts, config),
        opt_state=checkpoint.restore(OPTIMIZER, abstract.opt_state, config),
    )
    states = read_bytes_item(checkpoint.item_folder(DATA))
    _warn_of_changes(manifest, run, store)
    resume(source, position_from_item(states, manifest.num_data_shards))
    best.load_state_dict(manifest.extra["best"])
    logger.info("resumed %s from step %d", store.folder, checkpoint.step)
    return state


def _warn_of_changes(manifest: Manifest, run: RunDescription, store: CheckpointStore) -> None:
    """Settings that fit but make the continued run another one than was started."""
    changed = differences(manifest, run.model_config) if run.model_config else []
    changed += [
        f"{name}: {manifest.extra[name]} -> {value}"
        for name, value in run.extra.items()
        if name in manifest.extra and manifest.extra[name] != value
    ]
    if jax.process_index() == 0:  # which will write the file anew
        try:
            changed += changed_settings(store.folder.parent)
        except (ConfigError, OSError) as error:
            logger.warning("settings of the launch before are not compared: %s", error)
    if changed:
        logger.warning(
            "resuming with other settings than the run was started with (saved -> now): %s",
            "; ".join(changed),
        )
