"""The demo's foundation in several processes, one of which is killed: the losses of one process.

    python -m benchmarks.several_processes [--steps 24] [--batch 16] [--folder runs/several]

Needs MovieLens-100k prepared with its vocabulary beside it (`m6rec data prepare` and `vocab train`
with `gin_configs/examples/movielens_prepare.gin`). On this machine, over its loopback: one process
of one device trains; four processes of two devices train, and process 2 is killed with SIGKILL once
there is a checkpoint; the same run goes on in two processes of two devices. The data are read in
shards of a shuffled mixture, so a row lost or read twice would change the loss of every step that
follows; the figures are the largest differences between the losses of all steps. Rows go to
`benchmarks/results/several_processes.json`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import errors_told
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, metric_rows, results_path
from m6rec_jax.checkpoints.location import list_steps
from m6rec_jax.errors import M6RecError
from m6rec_jax.training.metric_log import read_metrics

GIN_FILE = "gin_configs/examples/demo_pretrain.gin"
DEVICES = 2  # of each of several processes
VICTIM = 2
PATIENCE = 1800.0  # seconds that a run may take


def start(folder: Path, processes: int, settings: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """`m6rec train` in processes that find each other by variables; their logs are in `folder`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = []
    for index in range(processes):
        environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
        if processes > 1:
            environment |= {
                "JAX_NUM_CPU_DEVICES": str(DEVICES),
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        with (folder / f"{processes}_{index}.log").open("wb") as log:
            found.append(
                subprocess.Popen(
                    [sys.executable, "-m", "m6rec_jax.cli", "train", *settings],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return found


def finish(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Exit statuses, once all have ended; none outlives this."""
    deadline = time.monotonic() + PATIENCE
    try:
        return [process.wait(max(1.0, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def kill_at_checkpoint(processes: Sequence[subprocess.Popen[bytes]], run: Path) -> int:
    """SIGKILL for one of them once a step is saved; that step.

    Raises:
      M6RecError: a process ended before, or nothing was saved in time.
    """
    deadline = time.monotonic() + PATIENCE
    while not (steps := list_steps(run / "checkpoints")):
        ended = [process.returncode for process in processes if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            raise M6RecError(f"no checkpoint in {run}; statuses {ended}: see the logs beside it")
        time.sleep(0.05)
    processes[VICTIM].send_signal(signal.SIGKILL)
    return steps[-1]


def losses(run: Path) -> dict[int, float]:
    """Of every logged step; each stands in the log once."""
    lines = [line for line in read_metrics(run) if "loss" in line]
    found = {int(line["step"]): line["loss"] for line in lines}
    if len(found) != len(lines):
        raise M6RecError(f"{run}: steps are logged twice")
    return found


@errors_told
def main() -> int:
    """Returns the exit status: 0, or 1 where something did not go as it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16, help="rows of a step, of all processes")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "several")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    folder = options.folder.resolve()

    def settings(name: str) -> list[str]:
        bindings = {
            "MODEL_DIR": folder / name,
            "TRAIN_STEPS": options.steps,
            "BATCH_SIZE": options.batch,
            "WARMUP_STEPS": options.steps // 2,
            "BatchIterator.num_shards": 4,
            "Logging.period": 1,
            "Checkpoints.period": options.steps // 3,
            "Logging.tensorboard": False,
            "join_processes.heartbeat_timeout_seconds": 30,
        }
        return ["--gin_file", GIN_FILE, *(f"--gin.{k}={v}" for k, v in bindings.items())]

    print("one process", flush=True)
    if any(statuses := finish(start(folder, 1, settings("one")))):
        raise M6RecError(f"one process: statuses {statuses}, see {folder.name}/1_0.log")
    print("four processes, one of which is killed", flush=True)
    four = start(folder, 4, settings("several"))
    saved = kill_at_checkpoint(four, folder / "several")
    print(f"step {saved} is saved; statuses {finish(four)}", flush=True)
    print("two processes", flush=True)
    if any(statuses := finish(start(folder, 2, settings("several")))):
        raise M6RecError(f"two processes: statuses {statuses}, see the logs in {folder.name}/")
    one, several = losses(folder / "one"), losses(folder / "several")
    if list(one) != list(several):
        raise M6RecError(f"steps of one process {list(one)}, of several {list(several)}")
    for name, steps in (
        ("four processes of two devices", [step for step in one if step <= saved]),
        ("two processes, after one of four was killed", [step for step in one if step > saved]),
    ):
        found = {
            "first_step": steps[0],
            "last_step": steps[-1],
            "loss_difference": max(abs(several[step] / one[step] - 1) for step in steps),
        }
        print(name, found)
        rows = metric_rows(
            found,
            model=name,
            dataset="movielens-100k",
            split="losses",
            seed=None,
            config=f"`{GIN_FILE}`, {options.batch} rows a step",
        )
        add_rows(results_path("several_processes"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
