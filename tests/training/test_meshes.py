"""The same 20 steps on one device and on 8, split by parameters, and by tensors.

`tests/integration/test_several_processes.py` splits by data alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.training import eight_devices


def test_losses_do_not_depend_on_the_mesh(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    }
    output = tmp_path / "losses.json"
    done = subprocess.run(
        [sys.executable, eight_devices.__file__, str(output)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses = json.loads(output.read_text())
    assert losses["one"][-1] < losses["one"][0] - 0.1, "the steps do train"
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["one"], rtol=2e-4, err_msg=name)
