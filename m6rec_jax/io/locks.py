"""Folders that one process at a time may write to, and go on with where another was killed."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from m6rec_jax.errors import DataError
from m6rec_jax.io.atomic import write_atomically

LOCK_FILE, _PROGRESS = "lock", "progress.json"
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}  # of some disks

log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """Makes a folder and keeps others out of it until the block, or this process, ends.

    Args:
      folder: may exist. `LOCK_FILE` stays in it.
      doing: what the folder is for, as in "preparing out/shop"; the error of the others names it.

    Raises:
      DataError: another process has locked it. OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock: BaseFileLock = FileLock(folder / LOCK_FILE, blocking=False)
    try:
        try:
            lock.acquire()
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            lock = SoftFileLock(folder / f"{LOCK_FILE}.soft", blocking=False)
            log.warning("the disk has no locks: %s keeps others out (%s)", lock.lock_file, error)
            lock.acquire()
    except Timeout as error:
        raise DataError(
            f"another process is {doing}; wait for it, or name another output"
        ) from error
    try:
        yield
    finally:
        lock.release()


class Unfinished(NamedTuple):
    """A folder that is being written.

    Attributes:
      path: of the files, until all are there.
      made_of: what they are made of, for JSON.
    """

    path: Path
    made_of: list[Any]

    def done(self) -> int:
        """How much an earlier run has done; 0 where that was made of something else."""
        file = self.path / _PROGRESS
        earlier = json.loads(file.read_bytes()) if file.exists() else {}
        return int(earlier["done"]) if earlier.get("made_of") == self.made_of else 0

    def record(self, done: int) -> None:
        """Keeps how much is done, for a later run."""
        write_atomically(self.path / _PROGRESS, json.dumps({"made_of": self.made_of, "done": done}))


@contextlib.contextmanager
def unfinished_folder(folder: Path, doing: str, made_of: list[Any]) -> Iterator[Unfinished]:
    """Yields what becomes `folder` when the block ends; raises DataError as `locked_folder`."""
    path = folder.with_name(f"{folder.name}.unfinished")
    with locked_folder(path, doing):
        if folder.exists():  # another process has finished it since this one looked
            shutil.rmtree(path, ignore_errors=True)
            raise DataError(f"another process was {doing}, which is there now")
        yield Unfinished(path, made_of)
        (path / _PROGRESS).unlink()
        path.rename(folder)
        for file in folder.glob(f"{LOCK_FILE}*"):
            file.unlink()
