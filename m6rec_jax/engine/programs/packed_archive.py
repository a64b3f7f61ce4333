"""The archive of a packed model: numpy and the standard library write and read it.

    model.m6rec                    a zip archive, each entry by LZMA
      manifest.json                model's configuration, names and shapes of leaves, SHA-256
      zeros, values                a bit for each weight, and the bytes of those that are not zero
      floats                       all else as float16: scales, norms, position biases, prompts
      inference/...                as in a run's folder
      data/...                     with `--catalogue`, prepared data to answer requests with

The manifest says which data the model was trained on, on what terms, and what it cannot do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.atomic import atomic_file
from m6rec_jax.io.hashing import sha256

_FORMAT = 1
_MANIFEST, _ZEROS, _VALUES, _FLOATS = "manifest.json", "zeros", "values", "floats"
_CARRIED = re.compile(r"(inference|data)(/[\w.\-]+)+")


@dataclasses.dataclass(frozen=True)
class Archive:
    """What an archive holds.

    Attributes:
      manifest: `versions`, `model` and `step`; `about`, for people: `trained_on`, by data set its
        description, licence and provenance; and `limits`, what the model cannot do.
      leaves: by name, such as 'params/encoder/final_norm/scale': int8 weights, float16 for the
        rest, scales of the weights among it.
      files: by path, what a run's folder has beside its checkpoints, `inference/...`; `data/...`.
    """

    manifest: dict[str, Any]
    leaves: dict[str, np.ndarray]
    files: dict[str, bytes]


def write_archive(path: Path, archive: Archive) -> None:
    """Writes a file."""
    leaves = archive.leaves
    every = np.concatenate([leaf.ravel() for leaf in leaves.values() if leaf.dtype == np.int8])
    floats = [leaf.ravel().astype("<f2") for leaf in leaves.values() if leaf.dtype != np.int8]
    entries = {
        _ZEROS: np.packbits(every == 0).tobytes(),
        _VALUES: every[every != 0].tobytes(),
        _FLOATS: np.concatenate(floats).tobytes(),
        **archive.files,
    }
    manifest = archive.manifest | {
        "format": _FORMAT,
        "leaves": {
            name: {"shape": leaf.shape, "int8": leaf.dtype == np.int8}
            for name, leaf in leaves.items()
        },
        "sha256": {name: sha256(data) for name, data in entries.items()},
    }
    with (
        atomic_file(path) as unfinished,
        zipfile.ZipFile(unfinished, "w", zipfile.ZIP_LZMA) as file,
    ):
        file.writestr(_MANIFEST, json.dumps(manifest))
        for name, data in entries.items():
            file.writestr(name, data)


def read_archive(path: str | Path) -> Archive:
    """Opens a file.

    Raises:
      CheckpointError: it is no such file, is truncated or damaged, or of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(files.pop(_MANIFEST))
        if manifest["format"] > _FORMAT:
            raise CheckpointError(f"{path} was packed by a newer m6rec_jax; update this one")
        if {name: sha256(data) for name, data in files.items()} != manifest["sha256"]:
            raise CheckpointError(f"{path} is damaged: its parts are not those that were packed")
        parts = [files.pop(name) for name in (_ZEROS, _VALUES, _FLOATS)]
        for name in files:
            # They are written to a folder, and must stay in it.
            if not _CARRIED.fullmatch(name) or ".." in name:
                raise CheckpointError(f"{path} holds {name!r}, which no packed model has")
        return Archive(manifest, dict(_leaves(manifest["leaves"], *parts)), files)
    except CheckpointError:
        raise
    except Exception as error:  # whatever bytes raise that nobody packed
        raise CheckpointError(
            f"{path} is no packed model, or is truncated or damaged: {error}"
        ) from error


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes an archive's files to a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _leaves(
    specs: Mapping[str, Any], zeros: bytes, values: bytes, floats: bytes
) -> Iterator[tuple[str, np.ndarray]]:
    count = sum(math.prod(spec["shape"]) for spec in specs.values() if spec["int8"])
    alive = np.unpackbits(np.frombuffer(zeros, np.uint8), count=count) == 0
    weights = np.zeros(count, np.int8)
    weights[alive] = np.frombuffer(values, np.int8)
    others = np.frombuffer(floats, "<f2")
    for name, spec in specs.items():
        size = math.prod(spec["shape"])
        if spec["int8"]:
            leaf, weights = weights[:size], weights[size:]
        else:
            leaf, others = others[:size], others[size:]
        yield name, leaf.reshape(spec["shape"])
