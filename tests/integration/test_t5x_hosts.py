"""t5x in two processes of this machine, with the run of docs/t5x.md."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.checkpoints.t5x_files import checkpoint_folder, read_t5x_files
from tests.integration.commands import ROOT, m6rec_each, succeeded
from tests.integration.page import follow
from tests.integration.test_pages import before_t5x
from tests.several_devices import free_port
from tests.t5x_bridge.needs_t5x import REASON

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)
pytestmark = pytest.mark.timeout(1800)

FOUNDATION = 20


class Hosts:
    """A folder with the page's files, its data and its foundation, and processes that run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        follow(before_t5x(folder), folder)

    def launch(self, program: str, **settings: object) -> None:
        """Starts a program twice; the two find each other."""
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
            "JAX_NUM_PROCESSES": "2",
            "M6REC_DATA_DIR": str(self.folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
        }
        command = [sys.executable, "-m", "m6rec_jax.cli", program]
        command.append(f"--gin_file={program.removeprefix('t5x.')}.gin")
        command += [f"--gin.{name}={value}" for name, value in settings.items()]
        self.processes = []
        for host in (0, 1):
            with self._log(host).open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=self.folder,
                        env=environment | {"JAX_PROCESS_ID": str(host)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def ended(self, status: int = 0) -> None:
        """Waits for the end of both."""
        statuses = [process.wait(timeout=500) for process in self.processes]
        assert statuses == [status] * 2, self.log(0)[-5000:] + self.log(1)[-5000:]

    def _log(self, host: int) -> Path:
        return self.folder / f"log_{host}"

    def log(self, host: int = 0) -> str:
        """What a process has printed."""
        return self._log(host).read_text()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("t5x"))
    yield made
    for process in made.processes:
        process.kill()


def tensors(run: Path) -> dict[str, np.ndarray]:
    """Of its newest checkpoint."""
    return read_t5x_files(checkpoint_folder(run))


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.split("_")[1]) for path in run.glob("checkpoint_*[0-9]"))


def test_trained_stopped_resumed_evaluated_and_inferred(hosts: Hosts) -> None:
    run, foundation = hosts.folder / "ctr", hosts.folder / "foundation_t5x"
    start = {
        "MODEL_DIR": run,
        "INITIAL_CHECKPOINT_PATH": foundation / f"checkpoint_{FOUNDATION}",
        "train.stats_period": 1,
    }
    hosts.launch("t5x.train", TRAIN_STEPS=10_000_000, **start)
    first = f"[{FOUNDATION + 1}] collection=train class"
    deadline = time.monotonic() + 500
    while first not in hosts.log() and time.monotonic() < deadline:
        time.sleep(0.1)
    hosts.processes[1].send_signal(signal.SIGTERM)  # one is told, both stop after the same step
    hosts.ended(143)
    (loss,) = re.findall(re.escape(first) + r".*?, loss=([\d.]+)", hosts.log())
    stopped = saved(run)[-1]
    assert stopped > FOUNDATION

    # The first step is that of the built-in trainer, which reads two shards.
    out = m6rec_each(
        hosts.folder,
        [
            *("train", "--gin_file", "tune.gin", "--gin.MODEL_DIR=tune_2"),
            *("--gin.INITIAL_CHECKPOINT_PATH=foundation", "--gin.BatchIterator.num_shards=2"),
        ],
    )
    succeeded(out[0])
    ours = json.loads((hosts.folder / "tune_2" / "metrics.jsonl").read_text().splitlines()[0])
    assert float(loss) == pytest.approx(ours["loss"], abs=1e-5)

    hosts.launch("t5x.train", TRAIN_STEPS=stopped + 5, **start)
    hosts.ended()
    steps = re.findall(r"\[(\d+)\] collection=train class", hosts.log())
    assert [int(step) for step in steps] == list(range(stopped + 1, stopped + 6))
    checkpoint = run / f"checkpoint_{stopped + 5}"
    # No row was lost or read twice.
    hosts.launch(
        "t5x.train", TRAIN_STEPS=stopped + 5, **start | {"MODEL_DIR": hosts.folder / "whole"}
    )
    hosts.ended()
    whole = tensors(hosts.folder / "whole")
    for name, values in tensors(run).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)

    hosts.launch("t5x.eval", CHECKPOINT_PATH=checkpoint, EVAL_OUTPUT_DIR=hosts.folder / "evaluated")
    hosts.ended()
    hosts.launch(
        "t5x.infer", CHECKPOINT_PATH=checkpoint, INFER_OUTPUT_DIR=hosts.folder / "inferred"
    )
    hosts.ended()
    (metrics,) = (hosts.folder / "evaluated").rglob("corner_shop_ctr-metrics.jsonl")
    theirs = json.loads(metrics.read_text().splitlines()[-1])
    converted, evaluated = m6rec_each(
        hosts.folder,
        ["convert", "--from", "t5x_bridge:ctr", "--to", "ctr_m6rec"],
        ["eval", "--gin_file", "m6rec_eval.gin", "--gin.MODEL_DIR=ctr_m6rec"],
    )
    succeeded(converted)
    out = succeeded(evaluated)
    ours = json.loads(out[out.index("{") :])
    assert theirs.pop("step") == stopped + 5
    assert theirs == pytest.approx({name: ours[name] for name in theirs}, abs=1e-6)
    (predicted,) = (hosts.folder / "inferred").glob("corner_shop_ctr-score.jsonl-*-00001")
    assert len(predicted.read_text().splitlines()) == ours["num_examples"]


def test_a_name_that_gin_does_not_know_is_a_users_error(hosts: Hosts) -> None:
    hosts.launch("t5x.eval", **{"no_such.setting": 1})
    hosts.ended(2)
    assert "no_such" in hosts.log()
