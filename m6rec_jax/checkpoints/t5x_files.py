"""The files of a t5x checkpoint, in t5x's own format or Orbax's.

Its own: an index in msgpack, a zarr folder per array.

    checkpoint_1000000/
      checkpoint                                     {'version': 3, 'optimizer': {'target': …}}
      target.encoder.layers_0.mlp.wi_0.kernel/       zarr: .zarray and compressed chunks

The index holds a TensorStore spec in place of every array that has a folder, with a path relative
to the checkpoint's, and small arrays themselves. Today's t5x reads this format and writes Orbax's:

    checkpoint_1000000/
      state/             an Orbax item: {'target': parameters, 'state': the optimizer's}
      dataset/           the position in the data, if t5x was asked to keep it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import serialization, traverse_util

from m6rec_jax.checkpoints.failures import failure
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.errors import CheckpointError, first_line
from m6rec_jax.io.atomic import new_folder

INDEX_FILE, STATE_FOLDER = "checkpoint", "state"
TARGET = "target."  # what every parameter's name begins with

_VERSION = 3
_STEP_FOLDER = re.compile("checkpoint_([0-9]+)")
_CHUNK_BYTES = 64 * 2**20
# Before version 3 bfloat16 was stored as if it were this.
_BFLOAT16_BITS = "uint16"


def read_t5x_files(folder: Path) -> dict[str, np.ndarray]:
    """Parameters of a checkpoint in either format by name, 'target.…'; not its optimizer's state.

    Args:
      folder: see `checkpoint_folder`.

    Raises:
      CheckpointError: it is no such folder, or damaged.
    """
    try:
        if (folder / STATE_FOLDER).is_dir():
            return _from_orbax((folder / STATE_FOLDER).absolute())
        return _from_zarr(folder)
    except Exception as error:  # Orbax and TensorStore raise many kinds, plain Exception included
        raise CheckpointError(
            f"{folder} is no checkpoint of t5x, or damaged: {first_line(error)}"
        ) from error


def checkpoint_folder(path: Path) -> Path:
    """The folder of a checkpoint: the path, or that of the newest step in it.

    Raises CheckpointError for no checkpoint there.
    """
    if (path / INDEX_FILE).is_file() or (path / STATE_FOLDER).is_dir():
        return path
    steps = [
        folder
        for folder in (path.iterdir() if path.is_dir() else ())
        if _STEP_FOLDER.fullmatch(folder.name)
    ]
    if not steps:
        raise CheckpointError(
            f"no t5x checkpoint at {path}: neither a file '{INDEX_FILE}', nor a folder "
            f"'{STATE_FOLDER}', nor folders checkpoint_N"
        )
    return checkpoint_folder(max(steps, key=step_of))


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name; 0 where it has another name."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else 0


def _from_orbax(state: Path) -> dict[str, np.ndarray]:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        target = flatten(checkpointer.metadata(state).item_metadata.tree["target"])
        shapes = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for n, leaf in target.items()}
        item = {"target": nested(shapes)}
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=on_host, partial_restore=True)
        found = flatten(checkpointer.restore(state, args=args))
    return {name.replace("/", "."): values for name, values in found.items()}


def _from_zarr(folder: Path) -> dict[str, np.ndarray]:
    contents = serialization.msgpack_restore((folder / INDEX_FILE).read_bytes())
    # Nothing but parameters in plain Flax checkpoints, which have no version.
    state = contents["optimizer"] if "version" in contents else contents
    arrays = {}
    leaves = traverse_util.flatten_dict(
        {"target": state["target"]}, sep=".", is_leaf=lambda _, node: "metadata" in node
    )
    for name, value in leaves.items():
        if not isinstance(value, np.ndarray):
            # Wherever it was written, it is read from this machine's disk.
            path = value["path"] if "path" in value else value["kvstore"]["path"]
            # Chunks that are missing would silently be zeros.
            spec = {**_open_spec(folder / str(path).rstrip("/")), "fill_missing_data_reads": False}
            value = tensorstore.open(spec, open=True).result().read().result()
        arrays[name] = value.view(jnp.bfloat16) if value.dtype == _BFLOAT16_BITS else value
    return arrays


def write_t5x_files(arrays: Mapping[str, np.ndarray], path: Path, step: int) -> Path:
    """Writes parameters (name, 'target.…' → values) as t5x does; returns the checkpoint's folder.

    The optimizer's state is left out: what reads the result starts with a fresh one.

    Raises CheckpointError if `checkpoint_STEP` exists in `path`, or cannot be written to.
    """
    folder = path / f"checkpoint_{step}"
    with new_folder(folder) as unfinished:
        specs = {name: _write_zarr(unfinished, name, values) for name, values in arrays.items()}
        target = traverse_util.unflatten_dict(
            {tuple(name.removeprefix(TARGET).split(".")): spec for name, spec in specs.items()}
        )
        state = {"step": np.int32(step)}
        index = {"version": _VERSION, "optimizer": {"state": state, "target": target}}
        (unfinished / INDEX_FILE).write_bytes(serialization.msgpack_serialize(index))
    return folder


def _write_zarr(folder: Path, name: str, values: np.ndarray) -> dict[str, Any]:
    chunks = list(values.shape)
    if values.ndim:
        row_bytes = max(1, values.nbytes // max(1, values.shape[0]))
        chunks[0] = min(values.shape[0], max(1, _CHUNK_BYTES // row_bytes))
    metadata = {"compressor": {"id": "gzip"}, "shape": list(values.shape), "chunks": chunks}
    spec = {**_open_spec(folder / name), "dtype": values.dtype.name, "metadata": metadata}
    # Zeros are written like anything else, so that a missing file is always a loss.
    spec["store_data_equal_to_fill_value"] = True
    try:
        tensorstore.open(spec, create=True).result().write(values).result()
    except ValueError as error:  # a full disk, too
        raise failure(f"{folder / name} could not be written", error) from error
    return {
        "driver": "zarr",
        "dtype": values.dtype.name,
        "kvstore": {"driver": "file", "path": name},
        "metadata": metadata,
    }


def _open_spec(folder: Path) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder.absolute())}}
