"""SIGKILL and resumption on real seqio tasks: shuffled, mixed, randomly masked text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.checkpoints.location import list_steps, locate, read_manifest
from m6rec_jax.checkpoints.trees import flatten
from tests.training import shop_run

STEPS = 12


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shop_run.write_shop(data)
    whole, batches = shop_run.shop_train(data, tmp_path / "whole", STEPS)
    assert "validation/loss" in whole.metrics

    root = Path(__file__).resolve().parents[2]
    arguments = [str(data), str(tmp_path / "killed"), str(STEPS), "8"]
    killed = subprocess.run(
        [sys.executable, shop_run.__file__, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list_steps(tmp_path / "killed" / "checkpoints") == [5]

    resumed, later = shop_run.shop_train(data, tmp_path / "killed", STEPS)
    assert min(later.digests) == 5
    for index in range(5, STEPS):
        assert later.digests[index] == batches.digests[index], f"batch {index}"
    one, two = flatten(whole.state), flatten(resumed.state)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(two[name]), err_msg=name)
    manifest = read_manifest(locate(tmp_path / "killed"))
    assert manifest.vocabulary_fingerprint == shop_run.register(data).fingerprint
    assert manifest.num_data_shards == 2
