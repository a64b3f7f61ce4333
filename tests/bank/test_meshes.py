"""A bank whose variables lie on several devices, of one process and of two, answers as on one.

`tests/server/test_sharded.py` has a bank that is split in all ways in one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bank import banks_on_meshes
from tests.several_devices import free_port, result, start

SCRIPT = Path(banks_on_meshes.__file__)


@pytest.fixture(scope="module")
def expected(bank_path: Path, backbone_dir: Path) -> Any:
    return banks_on_meshes.answers(bank_path, backbone_dir, None, ())


def assert_same(found: dict[str, Any], expected: Any) -> None:
    for part, values in expected.items():
        # Sums over a split axis are taken in another order.
        np.testing.assert_allclose(found[part], values, 1e-4, 1e-5, err_msg=part)


def test_eight_devices(bank_path: Path, backbone_dir: Path, expected: Any) -> None:
    process = start(SCRIPT, str(bank_path), str(backbone_dir), devices=8)
    assert_same(result(process), expected)


def test_two_processes(bank_path: Path, backbone_dir: Path, expected: Any) -> None:
    arguments, port = (str(bank_path), str(backbone_dir)), str(free_port())
    for process in [start(SCRIPT, *arguments, str(i), port, devices=2) for i in (0, 1)]:
        assert_same(result(process), expected)
