"""Locks between commands."""

import threading
from pathlib import Path

import pytest

from benchmarks.locks import locked


def test_the_second_waits_until_the_first_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, entered = tmp_path / "run", threading.Event()

    def second() -> None:
        with locked(path, "waiting"):
            entered.set()

    other = threading.Thread(target=second)
    with locked(path):
        other.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    other.join()
    assert capsys.readouterr().out == "waiting\n"
    with locked(path, "never said"):
        pass
    assert not capsys.readouterr().out
