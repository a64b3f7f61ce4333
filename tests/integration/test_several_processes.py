"""`m6rec train` in several processes on this machine: killed, stopped, started again by fewer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m6rec_jax.checkpoints.checkpoint import list_steps
from m6rec_jax.training.metric_log import read_metrics
from tests.integration.watched_rows import small_config
from tests.several_devices import free_port
from tests.training.toy_run import toy_train

ROOT = Path(__file__).resolve().parents[2]
BATCH, SHARDS, STEPS = 16, 4, 24

TRAIN = """
import m6rec_jax.sharding.processes
import m6rec_jax.training.loop
import m6rec_jax.training.optimizers
import tests.integration.watched_rows

train.model = @small_model()
train.data = @TrainingData()
TrainingData.mixture_or_task_name = 'toy'
TrainingData.task_feature_lengths = {'inputs': 8, 'targets': 4}
train.model_dir = %MODEL_DIR
train.train_steps = %TRAIN_STEPS
TrainingData.batch_size = %BATCH_SIZE
train.optimizer = @adamw()
TrainingData.batches = @WatchedBatches
train.seed = 3
Step.accumulation_steps = 2
Validation.batches = @toy_validation
Validation.period = 12
Checkpoints.period = 4
Logging.period = 1
Logging.tensorboard = False
adamw.learning_rate = 3e-3
adamw.weight_decay = 0.01
WatchedBatches.folder = '.'
join_processes.heartbeat_timeout_seconds = 15
BATCH_SIZE = 16
TRAIN_STEPS = 24
MODEL_DIR = 'run'
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that shall not outlive a test that fails."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()


def start(folder: Path, count: int, notes: str, trouble: str) -> list[subprocess.Popen[str]]:
    """`m6rec train` in `count` processes of two devices each, who find each other by variables."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
        "NOTES": notes,
        "TROUBLE": trouble,
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "m6rec_jax.cli", "train", "--gin_file", "train.gin"],
            cwd=folder,
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def ended(processes: list[subprocess.Popen[str]], within: float) -> list[tuple[int, str]]:
    """Exit status and messages of each."""
    deadline = time.monotonic() + within
    return [
        (process.returncode, err)
        for process in processes
        for _, err in [process.communicate(timeout=deadline - time.monotonic())]
    ]


def rows_of(folder: Path, notes: str) -> dict[int, list[int]]:
    """Rows of each batch that a launch read, in the order of its processes."""
    found: dict[int, list[int]] = {}
    for path in sorted(folder.glob(f"{notes}-*.jsonl")):
        for index, numbers in map(json.loads, path.read_text().splitlines()):
            found.setdefault(index, []).extend(numbers)
    return found


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    return {int(line["step"]): line[name] for line in read_metrics(folder) if name in line}


def test_killed_stopped_and_resumed_by_fewer(
    started: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Two processes, one of which dies; two, one of which a signal stops; then one."""
    (tmp_path / "train.gin").write_text(TRAIN)
    checkpoints = tmp_path / "run" / "checkpoints"

    started += (lost := start(tmp_path, 2, "lost", "kill 1 9"))
    assert lost[1].wait(300) == -signal.SIGKILL
    # 15 s for the heartbeat, and what the coordinator lingers, on a busy machine.
    status, messages = ended(lost, 60)[0]
    # The coordinator's library ends those who do not notice a lost connection first.
    assert status in (3, -signal.SIGABRT), messages
    assert "another process of this run has gone" in messages or "another task died" in messages
    first = list_steps(checkpoints)[-1]
    assert first in (4, 8)

    started += (stopped := start(tmp_path, 2, "stopped", "term 1 14"))
    for status, messages in ended(stopped, 300):
        assert status == 143, messages
    second = list_steps(checkpoints)[-1]
    assert first < second < STEPS

    resumed = one_process(tmp_path / "run")
    assert resumed.step == STEPS
    whole = one_process(tmp_path / "whole")
    assert whole.step == STEPS

    trained = {
        **{i: rows for i, rows in rows_of(tmp_path, "lost").items() if i < first},
        **{i: rows for i, rows in rows_of(tmp_path, "stopped").items() if first <= i < second},
    }
    own = BATCH // SHARDS  # rows of a shard in a batch
    for index in range(second):
        expected = [
            100_000 * shard + own * index + k for shard in range(SHARDS) for k in range(own)
        ]
        assert trained[index] == expected, f"batch {index}"

    one, several = losses(tmp_path / "whole"), losses(tmp_path / "run")
    assert list(one) == list(several) == list(range(1, STEPS + 1)), "each step is logged once"
    # The sums of 4 devices and of 1 differ in rounding, which grows with the steps.
    np.testing.assert_allclose(list(several.values()), list(one.values()), rtol=5e-4)
    one_validated, validated = (losses(tmp_path / f, "validation/loss") for f in ("whole", "run"))
    assert list(one_validated) == list(validated) == [12, STEPS]
    np.testing.assert_allclose(list(validated.values()), list(one_validated.values()), rtol=5e-4)
    assert one[STEPS] < one[1] - 0.1, "the steps do train"


def one_process(folder: Path) -> Any:
    """On one device, in the same process as the test."""
    settings = {"accumulation_steps": 2, "eval_period": 12, "checkpoint_period": 4, "log_period": 1}
    result, _ = toy_train(folder, STEPS, model=small_config(), batch_size=BATCH, **settings)
    return result
