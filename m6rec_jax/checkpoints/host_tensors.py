"""A few named arrays in a folder of their own, written from host memory and read back into it.

What a task's prompts are stored as. Nothing is put on a device, so nothing is compiled either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from m6rec_jax.checkpoints.manifest import TensorSpec
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.errors import CheckpointError, first_line


def write_tensors(folder: Path, flat: Mapping[str, np.ndarray]) -> None:
    """Writes `{name: array}`, at least one, to a folder that does not exist yet.

    Raises CheckpointError if it exists, or cannot be written to.
    """
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(nested(flat)))
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error


def read_tensors(
    folder: Path, specs: Mapping[str, TensorSpec], *, partial: bool = False
) -> dict[str, np.ndarray]:
    """Reads `{name: array}` of the shapes and types that were written.

    Args:
      folder: of the arrays.
      specs: of all arrays in it.
      partial: there may be others, which are left alone.

    Raises:
      CheckpointError: the folder is missing, truncated or damaged. (Changed values are found by
        comparing fingerprints only.)
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing")
    tree = nested(
        {
            name: jax.ShapeDtypeStruct(spec.shape, np.dtype(spec.dtype))
            for name, spec in specs.items()
        }
    )
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(item=tree, restore_args=on_host, partial_restore=partial)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            found: dict[str, np.ndarray] = flatten(
                checkpointer.restore(folder.absolute(), args=args)
            )
    except Exception as error:  # Orbax and TensorStore raise many kinds, plain Exception included
        raise CheckpointError(f"{folder} is truncated or damaged: {first_line(error)}") from error
    for name, spec in specs.items():
        if found[name].shape != spec.shape or found[name].dtype != np.dtype(spec.dtype):
            there = TensorSpec(found[name].shape, found[name].dtype.name)
            raise CheckpointError(f"{folder} is damaged: '{name}' is {there}, not {spec}")
    return found
