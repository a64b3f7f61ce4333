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

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import serialization

from m6rec_jax.checkpoints.failures import write_failure
from m6rec_jax.checkpoints.host_tensors import read_tensors
from m6rec_jax.checkpoints.manifest import TensorSpec
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import CheckpointError, first_line
from m6rec_jax.io.atomic import new_folder

STATE_FOLDER = "state"
_TARGET = "target/"


class T5xOrbaxFiles:
    """The parameters of a checkpoint in Orbax's format; see `T5xFiles`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / STATE_FOLDER
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                metadata = checkpointer.metadata(self._state.absolute()).item_metadata
            leaves = flatten(metadata.tree) if metadata is not None else {}
        except Exception as error:  # Orbax raises many kinds, plain Exception included
            raise CheckpointError(f"{self._state} is damaged: {error}") from error
        self._specs = {
            name: TensorSpec(tuple(leaf.shape), np.dtype(leaf.dtype).name)
            for name, leaf in leaves.items()
            if name.startswith(_TARGET)
        }
        if not self._specs:
            raise CheckpointError(
                f"{self._state} is damaged, or no item of t5x: it has no 'target'"
            )
        self.found = {name.replace("/", "."): spec for name, spec in self._specs.items()}

    def read(self, name: str) -> np.ndarray:
        path = name.replace(".", "/")
        return read_tensors(self._state, {path: self._specs[path]}, partial=True)[path]


INDEX_FILE = "checkpoint"
TARGET = "target."  # what every parameter's name begins with

_VERSION = 3
_STEP_FOLDER = re.compile("checkpoint_([0-9]+)")
_DRIVERS = ("file", "gfile", "gcs")  # where it was written; it is read from this machine's disk
_CHUNK_BYTES = 64 * 2**20
# Before version 3 bfloat16 was stored as if it were this.
_BFLOAT16_BITS = "uint16"


def open_t5x(path: Path) -> T5xFiles | T5xOrbaxFiles:
    """A t5x checkpoint in either format: its folder, or one of such folders (then the newest
    step's).

    Raises CheckpointError for none there, or a damaged one.
    """
    folder = checkpoint_folder(path)
    return T5xOrbaxFiles(folder) if (folder / STATE_FOLDER).is_dir() else T5xFiles(folder)


class T5xFiles:
    """The parameters of a checkpoint in t5x's own format, not its optimizer's state.

    `found` is name ('target.…') → shape and type. What is missing or damaged is a CheckpointError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = _read_index(self.folder / INDEX_FILE)
        self._values = dict(_leaves(index, "target"))
        self.found = {name: self._spec(name, value) for name, value in self._values.items()}

    def read(self, name: str) -> np.ndarray:
        value = self._values[name]
        array = value if isinstance(value, np.ndarray) else self._read_zarr(name, value)
        return array.view(jnp.bfloat16) if array.dtype == _BFLOAT16_BITS else array

    def _spec(self, name: str, value: Any) -> TensorSpec:
        if isinstance(value, np.ndarray):
            shape, kind = value.shape, value.dtype.name
        else:
            try:
                shape = tuple(value["metadata"]["shape"])
                kind = value["dtype"] if "dtype" in value else value["metadata"]["dtype"]
            except (KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{self.folder / INDEX_FILE} is damaged: '{name}' is no array"
                ) from error
        kind = _plain_name(kind)
        return TensorSpec(tuple(shape), "bfloat16" if kind == _BFLOAT16_BITS else kind)

    def _read_zarr(self, name: str, spec: Mapping[str, Any]) -> np.ndarray:
        store = dict(spec.get("kvstore", {}))
        if store.get("driver") not in _DRIVERS or spec.get("driver") != "zarr":
            raise CheckpointError(
                f"{self.folder}: '{name}' is stored by {spec.get('driver')!r} in "
                f"{store.get('driver')!r}; only zarr folders are read"
            )
        folder = self.folder / str(store.get("path", spec.get("path"))).rstrip("/")
        try:
            array = tensorstore.open(_open_spec(folder), open=True).result()
            self._check_chunks(name, folder, array)
            values: np.ndarray = array.read().result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{folder} is missing or damaged: {first_line(error)}") from error
        return values

    def _check_chunks(self, name: str, folder: Path, array: tensorstore.TensorStore) -> None:
        """Chunks that are missing would silently read as zeros."""
        expected = self.found[name].shape
        if array.shape != expected:
            raise CheckpointError(
                f"{folder} is {list(array.shape)}, but the index says {list(expected)} for '{name}'"
            )
        metadata = array.spec().to_json()["metadata"]
        counts = [
            math.ceil(size / chunk)
            for size, chunk in zip(expected, metadata["chunks"], strict=True)
        ]
        separator = metadata.get("dimension_separator", ".")
        for place in itertools.product(*map(range, counts)):
            chunk = separator.join(map(str, place)) or "0"
            if not (folder / chunk).exists():
                raise CheckpointError(
                    f"{folder / chunk} is missing: a part of '{name}' would read as zeros"
                )


def write_t5x_files(arrays: Mapping[str, np.ndarray], path: Path, step: int) -> Path:
    """Writes parameters (name, 'target.…' → values) as t5x does; returns the checkpoint's folder.

    The optimizer's state is left out: what reads the result starts with a fresh one.

    Raises CheckpointError if `checkpoint_STEP` exists in `path`, or cannot be written to.
    """
    folder = checkpoint_of_step(path, step)
    with new_folder(folder) as unfinished:
        target: dict[str, Any] = {}
        for name, values in arrays.items():
            node = target
            *outer, last = name.removeprefix(TARGET).split(".")
            for key in outer:
                node = node.setdefault(key, {})
            node[last] = _write_zarr(unfinished, name, values)
        state = {"step": np.int32(step)}
        index = {"version": _VERSION, "optimizer": {"state": state, "target": target}}
        (unfinished / INDEX_FILE).write_bytes(serialization.msgpack_serialize(index))
    return folder


def checkpoint_of_step(path: Path, step: int) -> Path:
    """Where t5x looks for the checkpoint of a step in its MODEL_DIR."""
    return path / f"checkpoint_{step}"


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
        raise write_failure(f"{folder / name} could not be written", error) from error
    return {
        "driver": "zarr",
        "dtype": values.dtype.name,
        "kvstore": {"driver": "file", "path": name},
        "metadata": metadata,
    }


def _open_spec(folder: Path) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder.absolute())}}


def checkpoint_folder(path: Path) -> Path:
    """The folder of a checkpoint: the path, or that of the newest step in it.

    Raises CheckpointError for no checkpoint there.
    """
    if (path / INDEX_FILE).is_file() or (path / STATE_FOLDER).is_dir():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no t5x checkpoint at {path}: no such folder")
    steps = {
        int(match[1]): folder
        for folder in path.iterdir()
        if (match := _STEP_FOLDER.fullmatch(folder.name))
    }
    if not steps:
        raise CheckpointError(
            f"no t5x checkpoint at {path}: neither a file '{INDEX_FILE}', nor a folder "
            f"'{STATE_FOLDER}', nor folders checkpoint_N"
        )
    return checkpoint_folder(steps[max(steps)])


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name; 0 where it has another name."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else 0


def _read_index(path: Path) -> Any:
    try:
        contents = serialization.msgpack_restore(path.read_bytes())
        # Nothing but parameters in plain Flax checkpoints, which have no version.
        state = contents["optimizer"] if "version" in contents else contents
        return state["target"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no index of a t5x checkpoint: {error!r}") from error


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and "metadata" not in node:
        for key, child in node.items():
            yield from _leaves(child, f"{name}.{key}")
    else:
        yield name, node


def _plain_name(kind: str) -> str:
    """'float32' of zarr's '<f4'."""
    return kind if kind[:1].isalpha() else np.dtype(kind).name
