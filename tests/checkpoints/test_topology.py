"""Checkpoints know nothing of the mesh they were saved from: 8 → 1, 1 → 8, other axes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("eight_devices.py")


def test_any_mesh_to_any_mesh(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(SCRIPT.parents[2]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "all equal" in done.stdout
