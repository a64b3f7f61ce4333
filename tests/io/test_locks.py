"""Folders that one process at a time may write to."""

import errno
import fcntl
from pathlib import Path

import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.io.locks import locked_folder


def test_the_second_is_kept_out_until_the_first_has_left(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    told = pytest.raises(DataError, match="another process is busy there")
    with locked_folder(folder, "busy there"), told, locked_folder(folder, "busy there"):
        pass
    with locked_folder(folder, "busy there"):
        pass


def test_on_a_disk_without_locks_a_file_keeps_the_second_out(tmp_path, monkeypatch, caplog):
    for number in (errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):

        def flock(descriptor: int, operation: int, number: int = number) -> None:
            raise OSError(number, "no locks")

        monkeypatch.setattr(fcntl, "flock", flock)
        test_the_second_is_kept_out_until_the_first_has_left(tmp_path / str(number))
        assert str(tmp_path / str(number)) in caplog.text
