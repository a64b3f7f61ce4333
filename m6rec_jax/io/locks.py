"""Folders that one process at a time may write to."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from m6rec_jax.errors import DataError

LOCK_FILE = "lock"
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
