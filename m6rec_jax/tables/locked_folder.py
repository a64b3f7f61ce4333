"""Folders that one process at a time may write to."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from m6rec_jax.errors import DataError

LOCK_FILE = "lock"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked_folder(folder: Path, doing: str) -> Iterator[None]:
    """Makes a folder and keeps others out of it until the block, or this process, ends.

    Args:
      folder: may exist. `LOCK_FILE` stays in it.
      doing: what the folder is for; the message to the others says it.

    Raises:
      DataError: another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another process is {doing}; wait for it, or name another output"
            ) from error
        except OSError as error:
            # Some network disks have no locks; work goes on as it would without this one.
            logger.warning(
                "%s cannot be locked (%s): see that no other process is %s",
                folder,
                error.strerror,
                doing,
            )
        yield
    finally:
        os.close(lock)  # which also unlocks it
