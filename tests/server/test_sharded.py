"""A server over the 8 devices of a host answers as one device does."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server import eight_devices
from tests.several_devices import result, start


def assert_same(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, one in enumerate(expected):
            assert_same(found[index], one, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), where
    else:
        assert found == expected, where


def test_eight_devices_answer_as_one(client: TestClient, folder: Path) -> None:
    process = start(Path(eight_devices.__file__), str(folder), devices=8)
    expected = eight_devices.answers(client)
    found = result(process)
    assert found["compiled"] == 0
    assert found["parts"] == 4
    assert_same(found["answers"], expected, "")
