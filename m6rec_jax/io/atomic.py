"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.io.buckets import in_bucket

_FILES, _COMPLETE = "files", "complete"


def to_disk(*paths: Path) -> None:
    """Returns once files, or folders' lists of names, would survive a power cut."""
    for path in paths:
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
    finally:
        scratch.unlink(missing_ok=True)


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
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder, which goes when the block ends; one of a killed run goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Yields a new folder on the same disk, which goes when the block ends unless it was moved."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    made.chmod(0o755)  # mkdtemp lets only its owner read
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


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
    try:
        with _beside(folder) as made:
            yield made
            if folder.exists():
                folder.rmdir()
            to_disk(*made.rglob("*"), made)
            made.rename(folder)
            to_disk(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to, which replaces an older one when the block ends well.

    Several processes may make the same folder at once: one of theirs stays, whole.
    """
    with _beside(folder) as made, _beside(folder) as old:
        yield made
        # Another process may have put it there, or taken it away, a moment ago.
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old / folder.name)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


@contextlib.contextmanager
def staged_files(folder: Path, root: Path) -> Iterator[Path]:
    """Yields a folder for files that then take the places of those of the same paths below `root`.

    Killed before the block ends, nothing has changed. Killed later, `is_cut_short` is true until
    `finish_staged` moves what is left.

    Args:
      folder: on the disk of `root`, without what a killed block left there.
      root: of the files' paths.
    """
    shutil.rmtree(folder, ignore_errors=True)
    files = folder / _FILES
    files.mkdir(parents=True)
    try:
        yield files
    except BaseException:
        shutil.rmtree(folder)
        raise
    to_disk(*files.rglob("*"), files)
    (folder / _COMPLETE).touch()
    to_disk(folder)
    finish_staged(folder, root)


def is_cut_short(folder: Path) -> bool:
    """Whether some files may have taken their places and others not."""
    return (folder / _COMPLETE).exists()


def finish_staged(folder: Path, root: Path) -> None:
    """Moves the files that a killed `staged_files` left, if it had written all of them."""
    if not is_cut_short(folder):
        return
    files = folder / _FILES
    for path in sorted(files.rglob("*")):
        if path.is_file():
            target = root / path.relative_to(files)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    (folder / _COMPLETE).unlink()
    shutil.rmtree(folder)
