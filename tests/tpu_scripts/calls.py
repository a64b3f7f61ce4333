"""What tests of the scripts share: what gcloud is expected to be asked, and how runs are read."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.tpu_scripts.world import World, program

COMMANDS = ("create", "install", "stage_data", "launch", "serve", "logs", "watch", "delete")
WHERE = ["--project=shop", "--zone=us-east5-a"]
QUEUED = ["compute", "tpus", "queued-resources"]
DESCRIBE = [*QUEUED, "describe", "pod", *WHERE, "--format=value(state.state)"]
TRAIN = ("--", "train", "--gin_file", "run.gin", "--gin.MODEL_DIR=gs://bucket/run")
V5E = "--accelerator-type=v5litepod-16"


# Of ssh and scp: a host that is gone is noticed in minutes.
PATIENCE = ("-oConnectTimeout=15", "-oServerAliveInterval=30", "-oServerAliveCountMax=4")


def succeeded(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """A user's error: status 2, one line, nothing else."""
    assert run.returncode == 2, run.stdout + run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    return run.stderr


def ssh(command: str, node: str = "pod", worker: str = "all") -> list[str]:
    where = [*WHERE, f"--worker={worker}", "--quiet", *(f"--ssh-flag={flag}" for flag in PATIENCE)]
    return ["compute", "tpus", "tpu-vm", "ssh", node, *where, f"--command={command}"]


def stub_m6rec(world: World) -> Path:
    """An m6rec that notes its arguments and data folder, and prepares a file."""
    program(
        world.bin / "m6rec",
        "#!/bin/bash\n"
        f'printf "%q " "$M6REC_DATA_DIR" "$@" >>{world.folder}/m6rec; '
        f"echo >>{world.folder}/m6rec\n"
        '[[ $1 == data && $2 == fetch ]] || echo "$1" >"$M6REC_DATA_DIR/$1"\n',
    )
    return world.folder / "m6rec"


def until(condition: Callable[[], bool], within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
