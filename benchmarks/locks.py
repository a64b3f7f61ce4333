"""Locks between commands that run side by side. Standard library only, as `results_file`."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(name: str, waiting: str | None = None) -> Iterator[None]:
    """Has a lock of this user to itself; waits for it if need be.

    Args:
      name: of the lock, as part of a file's name.
      waiting: what is said when it has to wait; None: nothing.
    """
    # Outside of all folders that are kept, or under version control.
    with (Path(tempfile.gettempdir()) / f"m6rec-{name}-{os.getuid()}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                print(waiting, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
