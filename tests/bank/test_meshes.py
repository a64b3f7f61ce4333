"""A bank whose variables lie on the devices of two processes answers as on one device.

`tests/server/test_sharded.py` has a bank that is split in all ways in one process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.bank import banks_on_meshes
from tests.several_devices import free_port, result, start

SCRIPT = Path(banks_on_meshes.__file__)


def test_two_processes(bank_path: Path, backbone_dir: Path) -> None:
    expected = banks_on_meshes.answers(bank_path, backbone_dir, None, ())
    arguments, port = (str(bank_path), str(backbone_dir)), str(free_port())
    for process in [start(SCRIPT, *arguments, str(i), port, devices=2) for i in (0, 1)]:
        found = result(process)
        for part, values in expected.items():
            # Sums over a split axis are taken in another order.
            np.testing.assert_allclose(found[part], values, 1e-4, 1e-5, err_msg=part)
