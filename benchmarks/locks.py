"""Locks between commands that run side by side."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from m6rec_jax.io.hashing import sha256


@contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Has a lock of this user to itself; waits for it if need be.

    Args:
      path: what the lock is for; it need not exist. Others of its name, say in another checkout,
        have locks of their own.
      waiting: what is said when it has to wait; None: nothing.
    """
    of = sha256(os.fsencode(path.resolve()))[:12]
    # Outside of all folders that are kept, or under version control.
    name = f"m6rec-{path.name}-{of}-{os.getuid()}.lock"
    lock = FileLock(Path(tempfile.gettempdir()) / name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if waiting is not None:
            print(waiting, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
