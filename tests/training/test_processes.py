"""A run of two processes, resumed by one: the same data, each row once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from m6rec_jax.checkpoints.location import locate, read_manifest
from m6rec_jax.checkpoints.trees import flatten
from tests.training import one_of_many
from tests.training.toy_run import toy_train


def run_processes(count: int, folder: Path, steps: int) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "JAX_PLATFORMS": "cpu",
    }
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, one_of_many.__file__),
                *map(str, (port, count, index, folder, steps)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(count)
    ]
    reports = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        reports.append(json.loads(out.strip().splitlines()[-1]))
    return reports


@pytest.mark.slow
def test_two_processes_then_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trainable": "prompts", "accumulation_steps": 2}
    whole, batches = toy_train(tmp_path / "whole", 10, **settings)
    reports = run_processes(2, tmp_path / "many", 6)
    assert [report["shards"] for report in reports] == [[0, 1], [2, 3]]
    assert {report["step"] for report in reports} == {6}
    assert reports[0]["loss"] == reports[1]["loss"]
    manifest = read_manifest(locate(tmp_path / "many"))
    assert manifest.num_data_shards == 4

    resumed, later = toy_train(tmp_path / "many", 10, **settings)
    assert resumed.step == 10
    for index in range(6, 10):
        assert later.digests[index] == batches.digests[index], f"batch {index}"
    if jax.device_count() == 1:  # else the sums before step 6 ran over other devices, too
        for name, leaf in flatten(whole.state.prompts).items():
            np.testing.assert_allclose(
                np.asarray(flatten(resumed.state.prompts)[name]),
                np.asarray(leaf),
                atol=2e-3,
                err_msg=name,
            )
