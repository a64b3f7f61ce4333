"""Locks between commands."""

import threading
import uuid

import pytest

from benchmarks.locks import locked


def test_the_second_waits_until_the_first_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    name, entered = uuid.uuid4().hex, threading.Event()

    def second() -> None:
        with locked(name, "waiting"):
            entered.set()

    other = threading.Thread(target=second)
    with locked(name):
        other.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    other.join()
    assert capsys.readouterr().out == "waiting\n"
    with locked(name, "never said"):
        pass
    assert not capsys.readouterr().out
