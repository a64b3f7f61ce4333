"""Checkpoints of runs under t5x become runs of ours, and back: backbone and prompts, bit by bit.

t5x's tree has our names, with the prompts in a branch of it (see `variables`), so nothing is
mapped. t5x's checkpoints do not say what model they are of; files beside them do:

    MODEL_DIR/m6rec.json   a manifest without tensors: model, vocabulary, what trained
    MODEL_DIR/inference/   as in runs of ours, see `engine.model_folder`

t5x is not needed here.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from m6rec_jax.checkpoints.checkpoint import (
    CHECKPOINTS_FOLDER,
    PARAMS,
    PROMPTS,
    list_steps,
    open_checkpoint,
)
from m6rec_jax.checkpoints.manifest import Manifest, RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.t5_weights import Entry, gather
from m6rec_jax.checkpoints.t5x_files import (
    TARGET,
    checkpoint_folder,
    read_t5x_files,
    step_of,
    write_t5x_files,
)
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.model_folder import ASSETS_FOLDER, restore_model, variable_targets
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model import M6Rec, ModelConfig

DESCRIPTION_FILE = "m6rec.json"


def to_t5x(source: epath.Path, target: Path) -> tuple[int, int]:
    """Writes a run's newest checkpoint as `target/checkpoint_STEP`, which t5x restores.

    Args:
      source: MODEL_DIR of ours, or a step's folder; may be a bucket address.
      target: what would be MODEL_DIR of t5x. Its `m6rec.json` and `inference` are written, too, in
        place of those of an earlier conversion.

    Returns:
      The step, and how many parameters were written.

    Raises:
      CheckpointError: no such checkpoint, damage, or the target has that step already, or is a run
        under t5x.
    """
    checkpoint = open_checkpoint(source)
    checkpoint.warn_of_a_better_step(source)
    manifest, config = checkpoint.manifest, checkpoint.config
    if (target / DESCRIPTION_FILE).is_file():
        there = read_description(target)
        if (there.build_model_config(), there.vocabulary_fingerprint) != (
            config,
            manifest.vocabulary_fingerprint,
        ):
            raise CheckpointError(f"{target} holds checkpoints of another model: name a new folder")
        if there.extra.get("trained_by"):
            raise CheckpointError(f"{target} is a run under t5x, which goes on: name a new folder")
    restored = restore_model(checkpoint.folder)
    leaves = flatten({name: dict(tree) for name, tree in restored.variables.items()})
    arrays = {entry.name: np.asarray(leaves[entry.leaf], np.float32) for entry in _entries(config)}
    write_t5x_files(arrays, target, checkpoint.step)
    run = RunDescription(config, manifest.vocabulary_fingerprint, manifest.trainable)
    own = checkpoint.folder.parent.parent
    is_converted = (target / DESCRIPTION_FILE).is_file() and (target / ASSETS_FOLDER).is_dir()
    if is_converted and Path(own).resolve() != target.resolve():
        shutil.rmtree(target / ASSETS_FOLDER)  # an earlier one's, which may be of other tasks
    write_description(target, run)
    _copy_assets(own, epath.Path(target))
    return checkpoint.step, sum(array.size for array in arrays.values())


def from_t5x(source: Path, target: epath.Path) -> tuple[int, int]:
    """Writes a checkpoint of a run under t5x as a run of ours, at its step.

    Args:
      source: MODEL_DIR of t5x (then its newest checkpoint), or a checkpoint's folder.
      target: MODEL_DIR of ours.

    Returns:
      The step, and how many parameters were written.

    Raises:
      CheckpointError: no such checkpoint, one without `m6rec.json`, tensors that do not fit the
        model, damage, or the target has checkpoints already.
    """
    folder = checkpoint_folder(source)
    manifest = read_description(folder)
    config = manifest.build_model_config()
    if steps := list_steps(target / CHECKPOINTS_FOLDER):
        raise CheckpointError(f"{target} has a checkpoint already (step {steps[-1]})")
    arrays, entries = read_t5x_files(folder), _entries(config)
    shapes = {entry.leaf: entry.flat for entry in entries}
    leaves = gather(entries, shapes, arrays, str(folder))
    trees = nested(leaves)
    items = {item: jax.tree.map(jnp.asarray, trees.get(item, {})) for item in (PARAMS, PROMPTS)}
    run = RunDescription(
        config,
        manifest.vocabulary_fingerprint,
        manifest.trainable,
        extra={"converted_from": str(source)},
    )
    with CheckpointStore(target / CHECKPOINTS_FOLDER, asynchronous=False) as store:
        trained = {item: tree for item, tree in items.items() if jax.tree.leaves(tree)}
        store.save(step_of(folder), trained, data={}, run=run)
    _copy_assets(epath.Path(folder.parent), target)
    return step_of(folder), sum(leaf.size for leaf in leaves.values())


def write_description(folder: str | Path | epath.Path, run: RunDescription) -> None:
    """Writes the description of the checkpoints in a folder (MODEL_DIR of t5x)."""
    path = epath.Path(folder) / DESCRIPTION_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.of(0, run, {}, {})
    path.write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")


def read_description(checkpoint: str | Path | epath.Path) -> Manifest:
    """The description of a checkpoint, beside it or in it.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    folder = epath.Path(checkpoint)
    for path in (folder / DESCRIPTION_FILE, folder.parent / DESCRIPTION_FILE):
        if path.exists():
            return Manifest.parse(path.read_bytes(), str(path))
    raise CheckpointError(
        f"neither {folder} nor {folder.parent} has a file {DESCRIPTION_FILE}, which says what "
        "model the checkpoint is of. Runs of gin_configs/t5x/ write it; copy it, too"
    )


def _entries(config: ModelConfig) -> list[Entry]:
    """t5x's tensor of each of ours."""
    leaves = flatten(variable_targets(M6Rec(config)))
    return [
        Entry(
            TARGET + name.removeprefix("params/").replace("/", "."),
            name,
            None,
            tuple(leaf.shape),
            tuple(range(leaf.ndim)),
        )
        for name, leaf in leaves.items()
    ]


def _copy_assets(source: epath.Path, target: epath.Path) -> None:
    """The `inference` folder, so that `load_model` works on the other side, too."""
    if not (source / ASSETS_FOLDER).is_dir() or (target / ASSETS_FOLDER).exists():
        return
    _copy_folder(source / ASSETS_FOLDER, target / ASSETS_FOLDER)


def _copy_folder(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy_folder(path, target / path.name)
        else:
            (target / path.name).write_bytes(path.read_bytes())
