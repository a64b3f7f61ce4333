"""Requests answered by two processes, as one device answers them.

`tests/server/test_sharded.py` has all jobs on the devices of one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.engine import on_meshes
from tests.several_devices import free_port, result, start


def assert_same(found: dict[str, Any], expected: dict[str, Any], name: str) -> None:
    for part in ("titles", "samples", "indices", "ranks"):
        assert found[part] == expected[part], f"{name}: {part}"
    for part in ("scores", "users", "items", "found"):
        np.testing.assert_allclose(found[part], expected[part], 1e-4, 1e-5, err_msg=name)
    for part in ("probabilities", "late"):
        for own, wanted in zip(found[part], expected[part], strict=True):
            np.testing.assert_allclose(own, wanted, 1e-4, err_msg=f"{name}: {part}")


def test_two_processes_answer_as_one(shop_vocabulary) -> None:
    """Every process asks for the same rows, whosever devices hold the first of them."""
    script, port = Path(on_meshes.__file__), str(free_port())
    two = [start(script, shop_vocabulary.model_file, str(i), port, devices=2) for i in (0, 1)]
    model, variables = on_meshes.lively_model(shop_vocabulary)
    expected = on_meshes.answers(model, variables, shop_vocabulary, None, ())
    assert len({tuple(row) for row in expected["samples"]}) == 3
    items = [sorted(index for one in row for index in one) for row in expected["indices"]]
    assert items == [[0, *range(2, 9)], [*range(9)], [*range(7), 8]]
    for index, process in enumerate(two):
        assert_same(result(process), expected, f"process {index}")
