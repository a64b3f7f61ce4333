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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import serialization, traverse_util

from m6rec_jax.checkpoints.failures import failure
from m6rec_jax.checkpoints.manifest import TensorSpec
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


class T5xFiles(NamedTuple):
    """The parameters of a checkpoint, not its optimizer's state.

    Attributes:
      folder: of the checkpoint.
      specs: name ('target.…') to shape and type.
      read: name to values; raises CheckpointError where they are missing or damaged.
    """

    folder: Path
    specs: Mapping[str, TensorSpec]
    read: Callable[[str], np.ndarray]


def open_t5x(path: Path) -> T5xFiles:
    """A t5x checkpoint in either format: its folder, or one of such folders (then the newest
    step's).

    Raises CheckpointError for none there, or a damaged one.
    """
    folder = checkpoint_folder(path)
    return _orbax_files(folder) if (folder / STATE_FOLDER).is_dir() else _zarr_files(folder)


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


def _orbax_files(folder: Path) -> T5xFiles:
    state = (folder / STATE_FOLDER).absolute()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            leaves = flatten(checkpointer.metadata(state).item_metadata.tree["target"])
    except Exception as error:  # Orbax raises many kinds, plain Exception included
        raise CheckpointError(f"{state} is damaged, or no item of t5x: {error!r}") from error
    specs = {
        TARGET + name.replace("/", "."): TensorSpec(tuple(leaf.shape), np.dtype(leaf.dtype).name)
        for name, leaf in leaves.items()
    }

    def read(name: str) -> np.ndarray:
        path, spec = name.replace(".", "/"), specs[name]
        item = nested({path: jax.ShapeDtypeStruct(spec.shape, np.dtype(spec.dtype))})
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=on_host, partial_restore=True)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                values: np.ndarray = flatten(checkpointer.restore(state, args=args))[path]
        except Exception as error:  # as above
            raise CheckpointError(f"{state} is damaged: {first_line(error)}") from error
        return values

    return T5xFiles(folder, specs, read)


def _zarr_files(folder: Path) -> T5xFiles:
    index = folder / INDEX_FILE
    try:
        contents = serialization.msgpack_restore(index.read_bytes())
        # Nothing but parameters in plain Flax checkpoints, which have no version.
        state = contents["optimizer"] if "version" in contents else contents
        values = dict(_leaves(state["target"], "target"))
        specs = {name: _spec(value) for name, value in values.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of a t5x checkpoint: {error!r}") from error

    def read(name: str) -> np.ndarray:
        value = values[name]
        if not isinstance(value, np.ndarray):
            # Wherever it was written, it is read from this machine's disk.
            path = value["path"] if "path" in value else value["kvstore"]["path"]
            value = _read_zarr(folder / str(path).rstrip("/"))
        return value.view(jnp.bfloat16) if value.dtype == _BFLOAT16_BITS else value

    return T5xFiles(folder, specs, read)


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and "metadata" not in node:
        for key, child in node.items():
            yield from _leaves(child, f"{name}.{key}")
    else:
        yield name, node


def _spec(value: Any) -> TensorSpec:
    if isinstance(value, np.ndarray):
        shape, kind = value.shape, value.dtype.name
    else:
        metadata = value["metadata"]
        shape, kind = tuple(metadata["shape"]), value.get("dtype") or metadata["dtype"]
        kind = kind if kind[:1].isalpha() else np.dtype(kind).name  # 'float32' of zarr's '<f4'
    return TensorSpec(tuple(shape), "bfloat16" if kind == _BFLOAT16_BITS else kind)


def _read_zarr(folder: Path) -> np.ndarray:
    try:
        # Chunks that are missing would silently be zeros.
        spec = {**_open_spec(folder), "fill_missing_data_reads": False}
        values: np.ndarray = tensorstore.open(spec, open=True).result().read().result()
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder} is missing or damaged: {first_line(error)}") from error
    return values


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
