"""Going on with a run from its newest checkpoint."""

from __future__ import annotations

import logging

import jax
import numpy as np
from jax.sharding import Mesh

from m6rec_jax.checkpoints.bytes_item import read_bytes_item
from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.manifest import (
    Manifest,
    RunDescription,
    check_task_sizes,
    check_vocabulary,
    differences,
)
from m6rec_jax.checkpoints.restore import DATA, OPTIMIZER, PARAMS, PROMPTS, restore_item
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.config_file import changed_settings
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.objectives.distillation import TEACHER
from m6rec_jax.objectives.sentences import SENTENCE_ENCODER
from m6rec_jax.sharding import replicated
from m6rec_jax.training.data_state import ResumableBatches, position_from_item, resume
from m6rec_jax.training.early_stopping import BestMetric
from m6rec_jax.training.train_state import TrainState

logger = logging.getLogger(__name__)
# Entries of a manifest, and the settings they are of.
_TEACHERS = {
    TEACHER: "Distillation.teacher",
    SENTENCE_ENCODER: "SentenceDistillation.encoder",
}


def resumed_state(
    store: CheckpointStore,
    abstract: TrainState,
    source: ResumableBatches,
    run: RunDescription,
    best: BestMetric,
    mesh: Mesh,
) -> tuple[TrainState, bool]:
    """The state of the newest checkpoint, and whether it was validated.

    `source` and `best` are put to where it was saved.

    Args:
      store: the run's checkpoints, at least one.
      abstract: of `abstract_state`.
      source: training batches, at their start.
      run: what is trained now.
      best: the validation metric that is followed.
      mesh: where the state goes.

    Raises:
      CheckpointError: it does not fit this run.
    """
    location = locate(store.folder)
    manifest = read_manifest(location)
    if manifest.trainable != run.trainable:
        raise CheckpointError(
            f"{store.folder} was started with train.trainable = {manifest.trainable!r}, now it is "
            f"{run.trainable!r}. Start a new MODEL_DIR, with INITIAL_CHECKPOINT_PATH = this one"
        )
    for kind, setting in _TEACHERS.items():
        before, now = (_teacher(extra.get(kind)) for extra in (manifest.extra, run.extra))
        if before != now:
            raise CheckpointError(
                f"{store.folder} learns from {before}, now there is {now}. Give {setting} as "
                "before (a step's folder, where that run has gone on since), or start a new "
                "MODEL_DIR"
            )
    check_vocabulary(manifest, run.vocabulary_fingerprint, str(location.folder))
    params = restore_item(location, manifest, PARAMS, abstract.params, run.model_config)
    prompts = restore_item(location, manifest, PROMPTS, abstract.prompts, run.model_config)
    opt_state = restore_item(location, manifest, OPTIMIZER, abstract.opt_state, run.model_config)
    states = read_bytes_item(location.item_folder(manifest, DATA))
    # Last, since tensors that do not fit are a clearer error.
    check_task_sizes(manifest, run.model_config, str(store.folder))
    _warn_of_changes(manifest, run, store)
    resume(source, position_from_item(states, manifest.num_data_shards))
    best.load_state_dict(manifest.extra["best"])
    logger.info("resumed %s from step %d", store.folder, location.step)
    state = TrainState(
        step=jax.device_put(np.int32(location.step), replicated(mesh)),
        params=params,
        prompts=prompts,
        opt_state=opt_state,
    )
    return state, bool(manifest.extra["validated"])


def _teacher(fingerprint: str | None) -> str:
    return (
        "no teacher" if fingerprint is None else f"the teacher of fingerprint {fingerprint[:16]}…"
    )


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
