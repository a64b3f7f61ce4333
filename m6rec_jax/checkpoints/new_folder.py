"""Folders that appear once all their files are written."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from m6rec_jax.errors import CheckpointError
from m6rec_jax.tables.power_cuts import to_disk


def check_new(folder: Path) -> None:
    """Raises CheckpointError where a folder is the current one, or has files already."""
    if folder.absolute() == Path.cwd():
        raise CheckpointError(f"'{folder}' is the current folder; name a new one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; name a new folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the wanted name when the block ends without an error.

    Its files are on the disk by then, so that not even a power cut leaves half of it.

    Args:
      folder: may exist if it is empty.

    Raises:
      CheckpointError: as `check_new`, or it cannot be written to (disk full, no permission).
    """
    check_new(folder)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        if folder.exists():
            folder.rmdir()
        for path in (*unfinished.rglob("*"), unfinished):
            to_disk(path)
        unfinished.rename(folder)
        to_disk(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
