"""The same 20 steps on one device and on 8, split by parameters, and by tensors.

`tests/integration/test_several_processes.py` splits by data alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.several_devices import result, start
from tests.training import eight_devices


def test_losses_do_not_depend_on_the_mesh() -> None:
    losses = result(start(Path(eight_devices.__file__), devices=8))
    assert losses["one"][-1] < losses["one"][0] - 0.1, "the steps do train"
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["one"], rtol=2e-4, err_msg=name)
