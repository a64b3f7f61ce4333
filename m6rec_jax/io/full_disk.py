"""Disks without room: said in a way that a user can mend, and not found out by dying."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from m6rec_jax.errors import DataError, first_line

# Without room, over a quota, or over the size that the system lets a file have.
_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def full_disk_errors(*paths: str | Path | None) -> Iterator[None]:
    """Names a disk that has no room.

    Args:
      paths: that are written to, if any.

    Raises:
      DataError: the block failed for want of room.
    """
    try:
        yield
    except _kinds() as error:
        # A database that may put nothing more on disk says that its memory is full; other errors of
        # its files end with what the system says.
        memory = type(error).__name__ == "OutOfMemoryException"
        if isinstance(error, OSError):
            is_full = error.errno in _NUMBERS
        else:
            is_full = memory or any(os.strerror(number) in str(error) for number in _NUMBERS)
        if not is_full:
            raise
        named = " or ".join(str(path) for path in paths if path is not None)
        raise DataError(
            f"no room on the disk of {named}"
            f"{', or too little memory for the database' if memory else ''} "
            f"({first_line(error)}): free some, or name a folder on another disk (TMPDIR for "
            "what is on the way). Nothing that is half written is taken for whole; run the same "
            "command again"
        ) from error


def _kinds() -> tuple[type[Exception], ...]:
    """Errors that may tell of a full disk."""
    duckdb = sys.modules.get("duckdb")  # who did not import it meets none; servers do without it
    if duckdb is None:
        return (OSError,)
    return OSError, duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException
