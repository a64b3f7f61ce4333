"""Folders of arrays that a model computed of a catalogue: indexes, and stores of segments.

    FOLDER/
      manifest.json   what it was computed of and by which model, checksums of the other files
      *.npy           mapped from disk

What one model computed means nothing to another, so a folder is opened by its model's fingerprint
only; checksums are compared once, when it is opened. While it is written, the folder has
`.unfinished` in its name and a lock in it, since two processes would mix their rows; a run that was
killed goes on from the last block that it finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import msgspec
import numpy as np

from m6rec_jax.errors import CheckpointError, ConfigError, DataError
from m6rec_jax.io.hashing import file_sha256
from m6rec_jax.io.locks import unfinished_folder
from m6rec_jax.io.progress import progress_bar

log = logging.getLogger(__name__)
T = TypeVar("T")

MANIFEST = "manifest.json"
# Entries computed between two records of progress.
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


def write_folder(
    folder: Path,
    manifest: ComputedManifest,
    file: str,
    entries: Sequence[T],
    ends: np.ndarray,
    compute: Callable[[Iterable[Sequence[T]]], Iterable[np.ndarray]],
    others: Mapping[str, Callable[[Path], Any]],
    *,
    block: int = BLOCK,
    progress: bool = True,
) -> ComputedManifest:
    """Computes a new folder, block by block; goes on where a killed run stopped.

    Args:
      folder: new or empty; where the same lies already, nothing is done.
      manifest: without checksums.
      file: name of the file of all rows, `manifest.shape`.
      entries: of the catalogue.
      ends: how many rows the entries up to each have together, int `[entries]`.
      compute: blocks of entries to the rows of each block, in their order.
      others: names of the other files, and what writes each.
      block: entries computed at a time.
      progress: whether to show a bar.

    Raises:
      DataError: something else is there, another process is writing it, or rows hold NaN or
        infinity.
      CheckpointError: the manifest that is there is damaged.
      ConfigError: blocks of nothing.
    """
    if block < 1:
        raise ConfigError(f"block = {block} must be at least 1")
    with contextlib.suppress(OSError):
        folder.rmdir()  # where it is empty, it is as good as new
    if folder.exists():
        if not (folder / MANIFEST).is_file():
            raise DataError(f"{folder} exists and has no {MANIFEST}; name a new folder")
        there = read_manifest(folder, manifest.command)
        if dataclasses.replace(there, checksums={}) != manifest:
            raise DataError(
                f"{folder} was computed by another model or of another catalogue; remove it, or "
                "name another folder"
            )
        log.info("%s is there already", folder)
        return there
    made_of = [manifest.model, manifest.content, manifest.dtype]
    with unfinished_folder(folder, f"writing {folder}", made_of) as unfinished:
        done, total = unfinished.done(), len(entries)
        if done:
            log.info("%s of %s entries were computed before", f"{done:,}", f"{total:,}")
        path, dtype = unfinished.path / file, jnp.dtype(manifest.dtype)
        # A file of bfloat16 is one of two bytes each to numpy.
        mapped = np.lib.format.open_memmap(
            path, "r+" if done else "w+", dtype, tuple(manifest.shape)
        )
        rows = mapped.view(dtype)
        blocks = (entries[start : start + block] for start in range(done, total, block))
        with progress_bar(
            total=total, initial=done, desc=path.stem, unit=" items", disable=not progress
        ) as bar:
            for values in compute(blocks):
                if not np.isfinite(values).all():
                    raise DataError(f"{path} would hold NaN or infinity: has training diverged?")
                first, done = done, min(done + block, total)
                rows[ends[first - 1] if first else 0 : ends[done - 1]] = values.astype(dtype)
                mapped.flush()
                unfinished.record(done)
                bar.update(done - first)
        for name, write in others.items():
            write(unfinished.path / name)
        checksums = {name: file_sha256(unfinished.path / name) for name in (file, *others)}
        manifest = dataclasses.replace(manifest, checksums=checksums)
        described = json.dumps(dataclasses.asdict(manifest), indent=2)
        (unfinished.path / MANIFEST).write_text(described + "\n", "utf-8")
    return manifest
