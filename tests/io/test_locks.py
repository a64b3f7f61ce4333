"""Folders that one process at a time may write to."""

from __future__ import annotations

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
