"""Requests answered on a mesh, in one process and in two, as one device answers them.

`tests/server/test_sharded.py` has the model that is split in all ways in one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import on_meshes
from tests.several_devices import free_port, result, start

SCRIPT = Path(on_meshes.__file__)


@pytest.fixture(scope="module")
def one_device(shop_vocabulary) -> dict[str, Any]:
    model, variables = on_meshes.make_model(shop_vocabulary)
    found = on_meshes.answers(model, variables, shop_vocabulary, None, ())
    assert len({tuple(row) for row in found["samples"]}) == 3
    items = [sorted(index for one in row for index in one) for row in found["indices"]]
    assert items == [[0, *range(2, 9)], [*range(9)], [*range(7), 8]]
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    for part in ("titles", "samples", "indices", "ranks"):
        assert found[part] == expected[part], f"{name}: {part}"
    for part in ("scores", "users", "items", "found"):
        np.testing.assert_allclose(found[part], expected[part], 1e-4, 1e-5, err_msg=name)
    for part in ("probabilities", "late"):
        for own, wanted in zip(found[part], expected[part], strict=True):
            np.testing.assert_allclose(own, wanted, 1e-4, err_msg=f"{name}: {part}")


def test_eight_devices_answer_as_one(shop_vocabulary, one_device: dict[str, Any]) -> None:
    found = result(start(SCRIPT, shop_vocabulary.model_file, devices=8))
    assert_same(found, one_device, "data_parallel")


def test_two_processes_answer_as_one(shop_vocabulary, one_device: dict[str, Any]) -> None:
    """Every process asks for the same rows, whosever devices hold the first of them."""
    port = str(free_port())
    two = [start(SCRIPT, shop_vocabulary.model_file, str(i), port, devices=2) for i in (0, 1)]
    for index, process in enumerate(two):
        assert_same(result(process), one_device, f"fully_sharded_2d, process {index}")
