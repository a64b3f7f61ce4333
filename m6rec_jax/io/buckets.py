"""Addresses in buckets (gs://...), and the package that they need."""

from __future__ import annotations

import importlib.util
import os

from m6rec_jax.errors import CheckpointError

PACKAGE = "google-cloud-storage"
INSTALLATION = f"pip install {PACKAGE} (the extra m6rec_jax[tpu] brings it)"


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address, not a local one."""
    return "://" in os.fspath(path)


def can_use_buckets() -> bool:
    """Whether the package is there by which Orbax asks what kind of bucket it lists."""
    try:
        return importlib.util.find_spec("google.cloud.storage") is not None
    except ModuleNotFoundError:  # not even google.cloud
        return False


def check_bucket(path: str | os.PathLike[str]) -> None:
    """A folder in a bucket needs a package that Orbax imports and does not ask for.

    Args:
      path: any; local ones are fine.

    Raises:
      CheckpointError: it is a gs:// address, and the package is missing.
    """
    if os.fspath(path).startswith("gs://") and not can_use_buckets():
        raise CheckpointError(
            f"{os.fspath(path)} is in a bucket, and checkpoints there need {PACKAGE}: "
            f"{INSTALLATION}"
        )
