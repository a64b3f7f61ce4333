"""Addresses in buckets (gs://...): paths, what they need, and copies of what is there.

What is read or written at any place of a file, or by a library that knows no buckets, goes by way
of a copy on a local disk (`BucketCopies`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import cast

from m6rec_jax.errors import CheckpointError, ConfigError, DataError, M6RecError

_SCHEMES = ("gs", "s3", "az", "hf")
_ADVICE = (
    "check the address, the credentials (gcloud auth application-default login; "
    "AWS_ACCESS_KEY_ID) and the package that reads it (tensorflow for gs://; for s3:// s3fs, with "
    "EPATH_USE_TF=0 in the environment)"
)


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address, not a local one."""
    return "://" in os.fspath(path)


def path_of(path: str | os.PathLike[str]) -> Path:
    """A local path, or one of etils with the same methods for an address.

    Raises:
      ConfigError: no bucket is known by such an address.
    """
    if not in_bucket(path):
        return Path(path)
    from etils import epath

    address = os.fspath(path)
    if address.split("://")[0] not in _SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ConfigError(f"{address}: no address of a bucket begins so (known: {schemes})")
    return cast(Path, epath.Path(address))


def check_bucket(path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError where Orbax needs a package for a gs:// address, and it is missing."""
    packages = ("google", "google.cloud", "google.cloud.storage")  # a missing one ends the search
    there = all(importlib.util.find_spec(package) for package in packages)
    if os.fspath(path).startswith("gs://") and not there:
        raise CheckpointError(
            f"{os.fspath(path)} is in a bucket, and checkpoints there need google-cloud-storage: "
            "pip install google-cloud-storage (the extra m6rec_jax[tpu] brings it)"
        )


@contextlib.contextmanager
def bucket_errors(path: str | os.PathLike[str], tried: str) -> Iterator[None]:
    """Whatever the library of a bucket raises, as a DataError; what a local path raises stays.

    Args:
      path: of what is tried.
      tried: "read", "written".
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, M6RecError) or not in_bucket(path):
            raise
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise DataError(f"{os.fspath(path)} cannot be {tried}: {reason}; {_ADVICE}") from error


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Writes to a folder if it is in a bucket, before work that would be lost.

    Raises:
      DataError: it cannot be written to.
    """
    if in_bucket(folder):
        with bucket_errors(folder, "written"):
            trial = path_of(folder) / f".m6rec-{uuid.uuid4()}"
            trial.parent.mkdir(parents=True, exist_ok=True)
            trial.write_text("may be removed")
            trial.unlink()


class BucketCopies:
    """A temporary folder in which every address has a place; it goes when Python ends."""

    def __init__(self) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="m6rec-bucket-")
        self._folder = Path(self.temporary.name)
        self._versions: dict[Path, tuple[int, float]] = {}

    def of(self, path: str | os.PathLike[str]) -> Path:
        """The place of an address; a local path as it is."""
        if not in_bucket(path):
            return Path(path)
        return self._folder / os.fspath(path_of(path)).replace("://", "/")

    def shown(self, text: str) -> str:
        """A text with addresses in place of their copies."""
        for scheme in _SCHEMES:
            text = text.replace(f"{self._folder}/{scheme}/", f"{scheme}://")
        return text

    def fetch(self, path: str | os.PathLike[str], without: Collection[str] = ()) -> Path:
        """Copies a file or folder here, if it is there, but for what was copied and is unchanged.

        Entries of the folder whose names are in `without` are not copied. Raises DataError where it
        cannot be read.
        """
        if in_bucket(path):
            with bucket_errors(path, "read"):
                for source in _files(path_of(path), without):
                    target, stat = self.of(source), source.stat()
                    version = (stat.length, stat.mtime)  # type: ignore[attr-defined]
                    # Not all buckets say when a file was changed.
                    if not version[1] or self._versions.get(target) != version:
                        _copy(source, target)
                        self._versions[target] = version
        return self.of(path)

    def store(self, path: str | os.PathLike[str], last: str = "") -> None:
        """Copies a file or folder that was written here to its address, if it is one in a bucket.

        The file `last` of the folder, which says that all others are there, is copied last. Raises
        DataError where it cannot be written.
        """
        if in_bucket(path):
            with bucket_errors(path, "written"):
                copy = self.of(path)
                for source in sorted(_files(copy), key=lambda file: (file == copy / last, file)):
                    _copy(source, path_of(path) / os.fspath(source.relative_to(copy)))


def _files(path: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """All files of a folder, or the one file; none where there is nothing."""
    if path.is_dir():
        for entry in path.iterdir():
            # Some buckets have an object for the folder itself.
            if entry != path and entry.name not in without:
                yield from _files(entry)
    elif path.exists():
        yield path


def _copy(source: Path, target: Path) -> None:
    from etils import epath

    target.parent.mkdir(parents=True, exist_ok=True)
    epath.Path(source).copy(epath.Path(target), overwrite=True)


@contextlib.contextmanager
def bucket_copies() -> Iterator[BucketCopies]:
    """Copies that are removed when the block ends; errors in it name addresses, not copies."""
    copies = BucketCopies()
    try:
        yield copies
    except M6RecError as error:
        if (text := copies.shown(str(error))) == str(error):
            raise
        raise DataError(text) from error
    finally:
        copies.temporary.cleanup()


_copies_of_process = functools.cache(BucketCopies)


def kept_copy(path: str | os.PathLike[str], without: Collection[str] = ()) -> Path:
    """The newest version of a file or folder, on a local disk until Python ends: see `fetch`."""
    return _copies_of_process().fetch(path, without)
