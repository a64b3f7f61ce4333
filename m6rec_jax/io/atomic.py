"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.buckets import in_bucket


def to_disk(path: Path) -> None:
    """Returns once a file, or a folder's list of names, would survive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a path to write to; it gets the wanted name when the block ends without an error.

    Args:
      path: a `Path` or `epath.Path`; its folder exists. An object of a bucket appears whole
        anyway, so that it is yielded as it is.
      durable: the file survives a power cut.
    """
    if in_bucket(path):
        yield path
        return
    # Processes that write the same file do not get into each other's way.
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield scratch
        if durable:
            to_disk(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Writes a file, in UTF-8 if it is text, as `atomic_file` does."""
    with atomic_file(path, durable=durable) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def check_output(file: Path) -> None:
    """Makes the folder of a file that is written last, so that no work is lost for want of it.

    Raises:
      ConfigError: it cannot be made, or the file is a folder.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: its folder cannot be made ({error}); name another file"
        ) from error
    if file.is_dir():
        raise ConfigError(f"{file} is a folder; name a file")


def check_new(folder: Path) -> None:
    """Raises CheckpointError if a folder is the current one, or has files already."""
    if folder.absolute() == Path.cwd():
        raise CheckpointError(f"'{folder}' is the current folder; name a new one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; name a new folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to; it gets the wanted name when the block ends without an error.

    Its files survive a power cut from then on.

    Args:
      folder: may exist if it is empty.

    Raises:
      CheckpointError: as `check_new`, or it cannot be written to (disk full, no permission).
    """
    check_new(folder)
    # A name of its own: another process may be making the same folder.
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if folder.exists():
            folder.rmdir()
        for path in (*unfinished.rglob("*"), unfinished):
            to_disk(path)
        unfinished.rename(folder)
        to_disk(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to, which replaces an older one when the block ends well.

    Several processes may make the same folder at once: one of theirs stays, whole.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield made
        made.chmod(0o755)  # mkdtemp lets only its owner read
        with tempfile.TemporaryDirectory(prefix=".old-", dir=folder.parent) as old:
            # Another process may have put it there, or taken it away, a moment ago.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(Path(old) / folder.name)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
