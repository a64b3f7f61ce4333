"""Files and folders that appear whole or not at all, and survive a power cut from then on."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.buckets import in_bucket


def to_disk(*paths: Path) -> None:
    """Returns once files, or folders' lists of names, would survive a power cut."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; it gets the wanted name when the block ends without an error.

    An object of a bucket appears whole anyway, so that its path is yielded as it is.
    """
    if in_bucket(path):
        yield path
        return
    # Processes that write the same file, of several machines too, do not get into each other's way.
    scratch = path.with_name(f".{path.name}.{uuid.uuid4()}.partial")
    try:
        yield scratch
        to_disk(scratch)
        scratch.replace(path)
        to_disk(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, in UTF-8 if it is text, as `atomic_file` does."""
    with atomic_file(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def check_output(file: Path) -> None:
    """Makes the folder of a file that is written last; raises ConfigError where that fails."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{file}: its folder cannot be made ({error}); name another") from error
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file")


def check_new(folder: Path) -> None:
    """Raises CheckpointError if a folder is the current one, or has files already."""
    if folder.absolute() == Path.cwd():
        raise CheckpointError(f"'{folder}' is the current folder; name a new one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; name a new folder")


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder, which goes when the block ends; one of a killed run goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to, which replaces an older one when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        made = Path(beside) / "new"
        made.mkdir()
        yield made
        to_disk(*made.rglob("*"), made)
        if folder.exists():
            folder.rename(Path(beside) / "old")
        made.rename(folder)
    to_disk(folder.parent)


def put_in_place(folders: Mapping[Path, Path]) -> None:
    """Moves what lies in folders into others, in place of what has the same name there."""
    for made, folder in folders.items():
        to_disk(*made.rglob("*"))
        for path in sorted(made.iterdir()):
            shutil.rmtree(folder / path.name, ignore_errors=True)
            path.rename(folder / path.name)
        to_disk(folder)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """As `replaced_folder`, of a folder that does not exist or is empty.

    Raises:
      CheckpointError: as `check_new`, or it cannot be written to (disk full, no permission).
    """
    check_new(folder)
    try:
        with replaced_folder(folder) as made:
            yield made
            check_new(folder)  # another process may have made it meanwhile
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error
