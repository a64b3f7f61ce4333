"""Folders of arrays that a model computed of a catalogue: indexes, and stores of segments.

    FOLDER/
      manifest.json   what it was computed of and by which model, checksums of the other files
      *.npy           mapped from disk

What one model computed means nothing to another, so a folder is opened by its model's fingerprint
only; checksums are compared once, when it is opened.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import msgspec
import numpy as np

from m6rec_jax.errors import CheckpointError, DataError
from m6rec_jax.io.atomic import new_folder
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.progress import progress_bar

log = logging.getLogger(__name__)
T = TypeVar("T")

MANIFEST = "manifest.json"
# Entries computed together.
BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class ComputedManifest:
    """What `manifest.json` holds.

    Attributes:
      command: that makes such a folder, as 'm6rec index build'.
      model: `LoadedModel.fingerprint` of the task.
      content: fingerprint of the catalogue that it was computed of, and of how it is kept.
      task: by whose prompts.
      dtype: of the numbers: 'float32' or 'bfloat16'.
      count: entries of the catalogue.
      shape: rows of numbers of all entries, and how wide they are.
      checksums: file -> SHA-256.
    """

    command: str
    model: str
    content: str
    task: str
    dtype: str
    count: int
    shape: Sequence[int]
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_manifest(folder: str | Path, command: str, model: str | None = None) -> ComputedManifest:
    """The manifest of a folder.

    Args:
      folder: made by `command`.
      command: see `ComputedManifest`.
      model: fingerprint of the model in use: then the files must be its own, as they were written.

    Raises:
      CheckpointError: there is none, it is damaged, or another command's or model's.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=ComputedManifest)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no {MANIFEST}: `{command}` makes such a folder"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; run `{command}` anew") from error
    if manifest.command != command:
        raise CheckpointError(f"{folder} was made by `{manifest.command}`, not by `{command}`")
    if model is None:
        return manifest
    if manifest.model != model:
        raise CheckpointError(
            f"{folder} was computed by another model (fingerprint {manifest.model[:16]}…, the one "
            f"in use has {model[:16]}…), to which it means nothing; make it anew with `{command}`"
        )
    for name, checksum in manifest.checksums.items():
        file = path.with_name(name)
        if not file.is_file() or file_sha256(file) != checksum:
            raise CheckpointError(f"{file} is missing or damaged; run `{command}` anew")
    return manifest


def blocks_of(entries: Sequence[T], progress: bool) -> Iterator[Sequence[T]]:
    """A catalogue in blocks to compute, with a bar if progress is to be shown."""
    with progress_bar(total=len(entries), unit=" items", disable=not progress) as bar:
        for start in range(0, len(entries), BLOCK):
            block = entries[start : start + BLOCK]
            yield block
            bar.update(len(block))


def write_folder(
    folder: Path,
    manifest: ComputedManifest,
    file: str,
    blocks: Iterable[np.ndarray],
    others: Mapping[str, Callable[[Path], Any]],
) -> ComputedManifest:
    """Writes a new folder.

    Args:
      folder: new or empty; where the same lies already, nothing is done.
      manifest: without checksums.
      file: name of the file of all rows, `manifest.shape`.
      blocks: the rows, in their order; they are computed as they are asked for.
      others: names of the other files, and what writes each.

    Raises:
      DataError: another model's or catalogue's is there, or rows hold NaN or infinity.
      CheckpointError: something else is there, or it cannot be written.
    """
    if (folder / MANIFEST).is_file():
        there = read_manifest(folder, manifest.command)
        if dataclasses.replace(there, checksums={}) != manifest:
            raise DataError(
                f"{folder} was computed by another model or of another catalogue; remove it, or "
                "name another folder"
            )
        log.info("%s is there already", folder)
        return there
    with new_folder(folder) as made:
        dtype, done = jnp.dtype(manifest.dtype), 0
        # A file of bfloat16 is one of two bytes each to numpy.
        mapped = np.lib.format.open_memmap(made / file, "w+", dtype, tuple(manifest.shape))
        rows = mapped.view(dtype)
        for values in blocks:
            if not np.isfinite(values).all():
                raise DataError(f"{folder} would hold NaN or infinity: has training diverged?")
            rows[done : done + len(values)] = values.astype(dtype)
            done += len(values)
        mapped.flush()
        for name, write in others.items():
            write(made / name)
        checksums = {name: file_sha256(made / name) for name in (file, *others)}
        manifest = dataclasses.replace(manifest, checksums=checksums)
        described = json.dumps(dataclasses.asdict(manifest), indent=2)
        (made / MANIFEST).write_text(described + "\n", "utf-8")
    return manifest
