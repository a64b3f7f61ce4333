"""Locks between commands that run side by side. Standard library only, as `results_file`."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Has a lock of this user to itself; waits for it if need be.

    Args:
      path: what the lock is for; it need not exist. Others of its name, say in another checkout,
        have locks of their own.
      waiting: what is said when it has to wait; None: nothing.
    """
    of = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    # Outside of all folders that are kept, or under version control.
    place = Path(tempfile.gettempdir()) / f"m6rec-{path.name}-{of}-{os.getuid()}.lock"
    with place.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                print(waiting, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
