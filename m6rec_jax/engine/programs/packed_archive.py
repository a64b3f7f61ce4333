"""The archive of a packed model (`packed_file`), read by numpy and the standard library alone."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m6rec_jax.errors import CheckpointError
from m6rec_jax.io.hashing import sha256

FORMAT = 1
MANIFEST, ZEROS, VALUES, FLOATS = "manifest.json", "zeros", "values", "floats"
_CARRIED = re.compile(r"(inference|data)(/[\w.\-]+)+")


class Archive(NamedTuple):
    """What an archive holds.

    Attributes:
      manifest: see `packed_file`.
      leaves: by name, such as 'params/encoder/final_norm/scale': int8 weights, float16 for the
        rest, scales of the weights among it.
      files: by path.
    """

    manifest: dict[str, Any]
    leaves: dict[str, np.ndarray]
    files: dict[str, bytes]


def read_archive(path: str | Path) -> Archive:
    """Opens a file.

    Raises:
      CheckpointError: it is no such file, is truncated or damaged, or of a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(files.pop(MANIFEST))
        if manifest["format"] > FORMAT:
            raise CheckpointError(f"{path} was packed by a newer m6rec_jax; update this one")
        if {name: sha256(data) for name, data in files.items()} != manifest["sha256"]:
            raise CheckpointError(f"{path} is damaged: its parts are not those that were packed")
        parts = [files.pop(name) for name in (ZEROS, VALUES, FLOATS)]
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
