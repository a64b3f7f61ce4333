"""Restoring items of a checkpoint, whole runs or only the backbone or the prompts, on any mesh."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from m6rec_jax.checkpoints.failures import read_failure
from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.location import StepLocation, list_steps, locate, read_manifest
from m6rec_jax.checkpoints.manifest import (
    Manifest,
    check_task_sizes,
    check_tensors,
    check_vocabulary,
    tensor_specs,
)
from m6rec_jax.checkpoints.trees import PyTree, flatten, nested, unflatten
from m6rec_jax.errors import CheckpointError, first_line
from m6rec_jax.model.config import ModelConfig

PARAMS, PROMPTS, OPTIMIZER, DATA = "params", "prompts", "optimizer", "data"


def restore_params(
    path: str | Path | epath.Path,
    target: PyTree,
    *,
    step: int | None = None,
    model_config: ModelConfig | None = None,
    vocabulary_fingerprint: str | None = None,
) -> PyTree:
    """The backbone of a checkpoint (INITIAL_CHECKPOINT_PATH).

    Args:
      path: MODEL_DIR, its `checkpoints` folder, or a step's folder.
      target: tree of `jax.ShapeDtypeStruct` with shardings (or arrays): what to restore into,
        whatever mesh the checkpoint was saved from. Values are converted to its types.
      step: None means the newest.
      model_config: of the present model; makes errors say which settings differ.
      vocabulary_fingerprint: of the vocabulary in use, checked against the checkpoint's.

    Raises:
      CheckpointError: no such checkpoint or item, other shapes, another vocabulary, damage.
    """
    location = locate(path, step)
    manifest = read_manifest(location)
    check_vocabulary(manifest, vocabulary_fingerprint, str(location.folder))
    return restore_item(location, manifest, PARAMS, target, model_config)


def restore_prompts(
    path: str | Path | epath.Path,
    target: PyTree,
    *,
    step: int | None = None,
    model_config: ModelConfig | None = None,
    vocabulary_fingerprint: str | None = None,
) -> PyTree:
    """The prompts of a checkpoint; arguments and errors as in `restore_params`.

    Tasks of a bank must have the sizes of `model_config`, too.
    """
    location = locate(path, step)
    manifest = read_manifest(location)
    check_vocabulary(manifest, vocabulary_fingerprint, str(location.folder))
    restored = restore_item(location, manifest, PROMPTS, target, model_config)
    check_task_sizes(manifest, model_config, str(location.folder))
    return restored


def restore_matching(
    location: StepLocation, manifest: Manifest, item: str, target: PyTree
) -> tuple[dict[str, jax.Array], list[str]]:
    """Those tensors of an item whose name and shape the target shares.

    For taking over what two task banks have in common, e.g. special-token embeddings from
    pretraining into a bank with more soft prompts.

    Returns:
      `{name: array}` of the shared tensors, and the names of the target's other tensors.
    """
    wanted = flatten(target)
    saved = manifest.tensors.get(item, {})
    shared = {
        name: leaf
        for name, leaf in wanted.items()
        if name in saved and saved[name].shape == tuple(leaf.shape)
    }
    restored = _read(location, manifest, item, shared) if shared else {}
    return restored, [name for name in wanted if name not in shared]


def restore_item(
    location: StepLocation,
    manifest: Manifest,
    item: str,
    target: PyTree,
    model_config: ModelConfig | None = None,
) -> PyTree:
    """One item, in the target's structure, types and shardings, its checksums compared.

    Raises:
      CheckpointError: the item is missing, has other tensors or shapes, is damaged, or cannot be
        read.
      UnreachableError: its place does not answer.
    """
    wanted = flatten(target)
    where = str(location.folder)
    if item not in manifest.tensors:
        location.item_folder(manifest, item)  # raises, with the items there are
    check_tensors(manifest, item, tensor_specs(wanted), where, model_config)
    if not wanted:
        return target
    return unflatten(_read(location, manifest, item, wanted), target)


def _read(
    location: StepLocation, manifest: Manifest, item: str, wanted: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Reads in the saved types, compares checksums, then converts to the wanted types."""
    saved = manifest.tensors[item]
    folder = location.item_folder(manifest, item)
    abstract = {
        name: jax.ShapeDtypeStruct(
            saved[name].shape, np.dtype(saved[name].dtype), sharding=_sharding(leaf)
        )
        for name, leaf in wanted.items()
    }
    tree = nested(abstract)
    args = ocp.args.PyTreeRestore(
        item=tree,
        restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
        partial_restore=len(wanted) < len(saved),
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = flatten(checkpointer.restore(folder, args=args))
    except Exception as error:  # Orbax and TensorStore raise many kinds, plain Exception included
        failure = read_failure(str(folder), error)
        raise failure or _damaged(location, folder, first_line(error)) from error
    found = checksums(restored)
    for name, value in found.items():
        expected = saved[name].checksum
        if expected is not None and value != expected:
            raise _damaged(
                location, folder, f"the values of '{name}' have changed since they were saved"
            )
    return {
        name: leaf if leaf.dtype == wanted[name].dtype else leaf.astype(wanted[name].dtype)
        for name, leaf in restored.items()
    }


def _sharding(leaf: jax.ShapeDtypeStruct | jax.Array) -> jax.sharding.Sharding:
    # Never the sharding in the file: it names devices that need not exist here.
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _damaged(location: StepLocation, folder: epath.Path, reason: str) -> CheckpointError:
    others = [s for s in list_steps(location.folder.parent) if s != location.step]
    advice = (
        f"Other steps there: {', '.join(map(str, others))}. To go back to one, delete the folder "
        f"{location.folder}"
        if others and folder.parent == location.folder
        else "There is no other copy in this run"
    )
    return CheckpointError(f"{folder} is truncated or damaged: {reason}. {advice}")
