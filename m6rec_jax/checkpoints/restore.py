"""Restoring items of a checkpoint, whole runs or only the backbone or the prompts, on any mesh."""

from __future__ import annotations

import jax
import numpy as np
import orbax.checkpoint as ocp

from m6rec_jax.checkpoints.failures import failure
from m6rec_jax.checkpoints.fingerprint import checksums
from m6rec_jax.checkpoints.location import StepLocation
from m6rec_jax.checkpoints.manifest import Manifest, check_tensors, tensor_specs
from m6rec_jax.checkpoints.trees import PyTree, flatten, nested, unflatten
from m6rec_jax.errors import CheckpointError
from m6rec_jax.model.config import ModelConfig

PARAMS, PROMPTS, OPTIMIZER, DATA = "params", "prompts", "optimizer", "data"


def restore_matching(
    location: StepLocation, manifest: Manifest, item: str, target: PyTree
) -> dict[str, jax.Array]:
    """Those tensors of an item whose name and shape the target shares, by name.

    For taking over what two task banks have in common, e.g. special-token embeddings from
    pretraining into a bank with more soft prompts.
    """
    wanted = flatten(target)
    saved = manifest.tensors.get(item, {})
    shared = {
        name: leaf
        for name, leaf in wanted.items()
        if name in saved and saved[name].shape == tuple(leaf.shape)
    }
    return _read(location, manifest, item, shared) if shared else {}


def restore_item(
    location: StepLocation,
    manifest: Manifest,
    item: str,
    target: PyTree,
    model_config: ModelConfig | None = None,
) -> PyTree:
    """One item, its checksums compared.

    Args:
      location: of the step.
      manifest: of that step.
      item: `PARAMS`, `PROMPTS` or `OPTIMIZER`.
      target: tree of `jax.ShapeDtypeStruct` with shardings (or arrays): what to restore into,
        whatever mesh the checkpoint was saved from. Values are converted to its types.
      model_config: of the present model; makes errors say which settings differ.

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
        raise failure(f"{folder} could not be read", error) from error
    for name, value in checksums(restored).items():
        if saved[name].checksum not in (None, value):
            raise CheckpointError(
                f"{folder} is damaged: the values of '{name}' have changed since they were saved"
            )
    return {
        name: leaf if leaf.dtype == wanted[name].dtype else leaf.astype(wanted[name].dtype)
        for name, leaf in restored.items()
    }


def _sharding(leaf: jax.ShapeDtypeStruct | jax.Array) -> jax.sharding.Sharding:
    # Never the sharding in the file: it names devices that need not exist here.
    sharding = getattr(leaf, "sharding", None)
    return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
