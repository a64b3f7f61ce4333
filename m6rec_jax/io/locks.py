"""Folders that one process at a time may write to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from m6rec_jax.errors import DataError

LOCK_FILE = "lock"


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """Makes a folder and keeps others out of it until the block, or this process, ends.

    Args:
      folder: may exist. `LOCK_FILE` stays in it.
      doing: what the folder is for, as in "preparing out/shop"; the error of the others names it.

    Raises:
      DataError: another process has locked it.
      OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / LOCK_FILE, blocking=False))
        except Timeout as error:
            raise DataError(
                f"another process is {doing}; wait for it, or name another output"
            ) from error
        yield
