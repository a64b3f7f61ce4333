"""What a run was trained on, and the run folder of a model that is made of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from m6rec_jax import configuration
from m6rec_jax.checkpoints.checkpoint import CHECKPOINTS_FOLDER, open_checkpoint
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.config_file import CONFIG_FILE
from m6rec_jax.engine.model_folder import (
    ASSETS_FOLDER,
    EXITS_FILE,
    RANKING_FILE,
    read_dataset_specs,
    read_settings,
    save_assets,
)
from m6rec_jax.io.atomic import new_folder
from m6rec_jax.model import ModelConfig
from m6rec_jax.text.vocabulary import Vocabulary
from m6rec_jax.training.data_state import Batch
from m6rec_jax.training.task_data import trained_on

_LOG = logging.getLogger(__name__)
# In `config.gin`, which breaks long lines and indents what follows.
_MODEL_DIR = re.compile(r"^MODEL_DIR = .*\n(?:[ \t]+.*\n)*", re.MULTILINE)


def write_run(
    output: Path,
    run: Path,
    step: int,
    config: ModelConfig,
    variables: Mapping[str, Any],
    vocabulary: Vocabulary,
    settings: str | None,
) -> None:
    """Writes what `load_model` opens, and training starts from.

    Args:
      output: a new folder.
      run: that the model was made of; its tasks are kept.
      step: of the run.
      config, variables, vocabulary: of the new model.
      settings: its `config.gin`, but for MODEL_DIR; None: none.

    Raises:
      CheckpointError: something is in `output`.
    """
    described = RunDescription(
        model_config=config,
        vocabulary_fingerprint=vocabulary.fingerprint,
        trainable=open_checkpoint(run).manifest.trainable,
        extra={"compressed_from": str(run)},
    )
    with new_folder(output) as folder:
        trees = {name: jax.tree.map(jnp.asarray, tree) for name, tree in variables.items()}
        with CheckpointStore(folder / CHECKPOINTS_FOLDER, asynchronous=False) as store:
            store.save(step, trees, data={}, run=described)
        save_assets(folder, vocabulary, read_settings(run), read_dataset_specs(run))
        if settings is not None:
            own = f"MODEL_DIR = {str(output.absolute())!r}\n"
            settings = _MODEL_DIR.sub(lambda _: own, settings)
            (folder / CONFIG_FILE).write_text(settings)
    for name in (EXITS_FILE, RANKING_FILE):
        if (run / ASSETS_FOLDER / name).exists():
            _LOG.warning("%s is of the larger model: `m6rec calibrate` makes it anew", name)


def training_batches_of(
    run: Path, batch_size: int, gin_files: Sequence[str], bindings: Sequence[str]
) -> Iterator[Batch]:
    """The batches that a run was trained on, in whatever order; gin is configured as it was.

    They are read lazily: use them within `own_vocabulary` of the run.

    Raises:
      ConfigError: the run has no `config.gin`, or it names no task.
      DataError: its data are not on this machine.
    """
    from m6rec_jax.pipeline.batches import BatchIterator  # imports tensorflow

    configuration.parse_config([run.absolute() / CONFIG_FILE, *gin_files], bindings)
    name, lengths = trained_on(run / CONFIG_FILE)
    return BatchIterator(name, lengths, batch_size, num_shards=1)
