"""Several files that take the places of others together: all of them, also after a kill."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from m6rec_jax.io.atomic import to_disk

_FILES, _COMPLETE = "files", "complete"


@contextlib.contextmanager
def staged_files(folder: Path, root: Path) -> Iterator[Path]:
    """Yields a folder for files that then take the places of those of the same paths below `root`.

    Killed before the block ends, nothing has changed. Killed later, `is_cut_short` is true until
    `finish_staged` moves what is left.

    Args:
      folder: on the disk of `root`, without what a killed block left there.
      root: of the files' paths.
    """
    shutil.rmtree(folder, ignore_errors=True)
    files = folder / _FILES
    files.mkdir(parents=True)
    try:
        yield files
    except BaseException:
        shutil.rmtree(folder)
        raise
    for path in (*files.rglob("*"), files):
        to_disk(path)
    (folder / _COMPLETE).touch()
    to_disk(folder)
    finish_staged(folder, root)


def is_cut_short(folder: Path) -> bool:
    """Whether some files may have taken their places and others not."""
    return (folder / _COMPLETE).exists()


def finish_staged(folder: Path, root: Path) -> None:
    """Moves the files that a killed `staged_files` left, if it had written all of them."""
    if not is_cut_short(folder):
        return
    files = folder / _FILES
    for path in sorted(files.rglob("*")):
        if path.is_file():
            target = root / path.relative_to(files)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    (folder / _COMPLETE).unlink()
    shutil.rmtree(folder)
