"""Processes that find each other, and a signal to one of them that reaches all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from m6rec_jax import cli
from m6rec_jax.commands import training
from m6rec_jax.errors import ConfigError, M6RecError, UnreachableError
from m6rec_jax.sharding import processes
from m6rec_jax.sharding.processes import (
    find_cluster,
    join_processes,
    speaks_of_a_lost_process,
)
from tests.several_devices import free_port, result, start

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "wanted", "platforms", "found"),
    [
        ({}, "auto", "", "none"),
        ({}, "auto", "cpu", "none"),
        ({}, "auto", "tpu,cpu", "tpu"),
        ({}, "none", "tpu,cpu", "none"),
        (SLURM, "auto", "", "slurm"),
        (SLURM, "none", "", "none"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, "auto", "", "none"),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, "auto", "", "none"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "auto", "", "ompi"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, "auto", "cuda", "none"),
    ],
)
def test_who_knows_about_the_others(
    environment: Mapping[str, str], wanted: str, platforms: str, found: str
) -> None:
    assert find_cluster(environment, wanted, platforms) == found


@pytest.mark.parametrize(
    ("variables", "arguments", "words"),
    [
        ({"NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES = 'two' is not a whole number"),
        ({}, {"cluster": "k9s"}, "'k9s' is not one of auto, none, tpu, slurm"),
    ],
)
def test_what_does_not_fit(
    variables: Mapping[str, str],
    arguments: Mapping[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(ConfigError, match=words):
        join_processes(**arguments)


@pytest.mark.parametrize(
    ("cluster", "error", "kind"),
    [
        ("tpu", ValueError("coordinator_address should be defined."), UnreachableError),
        ("tpu", RuntimeError("Getting metadata['agent-worker-number'] failed"), UnreachableError),
        ("tpu", ConnectionError("metadata.google.internal"), UnreachableError),
        ("none", RuntimeError("DEADLINE_EXCEEDED: Barrier timed out"), UnreachableError),
        ("none", ValueError("no such process id"), ConfigError),
        ("none", RuntimeError("jax.distributed.initialize() must be called before"), ConfigError),
    ],
)
def test_whom_a_later_start_may_reach(
    cluster: str, error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is just starting must not end a run for good (status 2)."""

    def initialize(**_: object) -> None:
        raise error

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with pytest.raises(M6RecError, match=f"cluster: {cluster}.*{re.escape(str(error))}") as told:
        join_processes("host:1", 2, 1, cluster=cluster)
    assert isinstance(told.value, kind)
    monkeypatch.setattr(training, "run_params", lambda args: join_processes("host:1", 2, 1))
    monkeypatch.setattr(processes, "find_cluster", lambda *_: cluster)
    status = cli.EXIT_USER_ERROR if kind is ConfigError else cli.EXIT_LOST_PROCESS
    assert cli.main(["params", "--gin_file", "a.gin"]) == status


def test_whose_error_it_is() -> None:
    lost = ConfigError("step 5 could not be saved")
    lost.__cause__ = ValueError("Gloo all-reduce failed: ... Connection closed by peer [::1]:42")
    assert speaks_of_a_lost_process(lost)
    assert not speaks_of_a_lost_process(ConfigError("loss at step 5 is nan"))
    # A title, an address.
    assert not speaks_of_a_lost_process(ConfigError("row 3: 'Gloo' has no director"))
    assert not speaks_of_a_lost_process(ValueError("gs://igloo/run is not there"))


def run(scenario: str, *environments: Mapping[str, str]) -> list[dict[str, Any]]:
    """What each process printed."""
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
    script = Path(__file__).with_name("joined_process.py")
    started = [start(script, scenario, devices=1, **address, **own) for own in environments]
    return [result(process) for process in started]


def test_slurm_tasks_join_one_run() -> None:
    """What `srun` sets in its tasks; here they are two on one machine."""
    tasks = [SLURM | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in (0, 1)]
    assert run("join", *tasks) == [{"process": 0, "count": 2}, {"process": 1, "count": 2}]


@pytest.mark.parametrize(("scenario", "count"), [("before", 2), ("during", 2), ("during", 1)])
def test_a_signal_to_one_process_stops_all(scenario: str, count: int) -> None:
    """At one call of `stopped_by` in all: the first, or soon after the tenth."""
    number = {"JAX_NUM_PROCESSES": str(count)}
    first, *others = run(scenario, *(number | {"JAX_PROCESS_ID": str(i)} for i in range(count)))
    assert all(other == first for other in others)
    assert first["signal"] == "SIGTERM"
    assert first["call"] == 1 if scenario == "before" else first["call"] > 10
