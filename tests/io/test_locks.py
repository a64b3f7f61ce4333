"""Folders that one process at a time may write to."""

import contextlib
import errno
import fcntl
from pathlib import Path

import pytest

from m6rec_jax.errors import DataError
from m6rec_jax.io.locks import locked_folder, unfinished_folder


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
        with unfinished_folder(tmp_path / f"made-{number}", "writing", []) as unfinished:
            unfinished.record(1)
        assert not list((tmp_path / f"made-{number}").iterdir())


def test_what_another_run_has_done_counts_only_if_it_was_of_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with contextlib.suppress(KeyboardInterrupt), unfinished_folder(folder, "writing", [1]) as one:
        one.record(7)
        raise KeyboardInterrupt
    for made_of, done in (([2], 0), ([1], 7)):
        with contextlib.suppress(KeyboardInterrupt), unfinished_folder(folder, "", made_of) as one:
            assert one.done() == done
            raise KeyboardInterrupt
