"""The processes of one run: joining them, and what to do when one of them is lost.

A run of several processes (hosts of a TPU slice, tasks of a Slurm job, shells on one machine) is
the same command started in each of them. `join_processes` finds the others:

- on a TPU pod, and under Slurm (`srun`) or Open MPI (`mpirun`), by itself;
- elsewhere by three environment variables in each process, or by gin,

      JAX_COORDINATOR_ADDRESS=HOST:PORT JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=0 m6rec train ...
      m6rec train ... --gin.join_processes.coordinator_address="'HOST:PORT'" \\
          --gin.join_processes.num_processes=4 --gin.join_processes.process_id=0

HOST is where process 0 runs, PORT any free one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import gin
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from m6rec_jax.errors import ConfigError, M6RecError, UnreachableError, causes

logger = logging.getLogger(__name__)

# How a process may find the others: our names, and JAX's for the same.
CLUSTERS: Mapping[str, str | None] = {
    "auto": None,
    "none": None,
    "tpu": None,  # JAX knows Compute Engine from Kubernetes by itself
    "slurm": "slurm",
    "ompi": "ompi",
    "mpi4py": "mpi4py",
}
_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# What errors say when it is another process that failed: of Gloo (CPU), NCCL (GPU), and of the
# coordinator, to which every process reports that it is alive.
_SIGNS_OF_LOSS = re.compile(
    r"\b(gloo|nccl)\b|coordination|heartbeat|(connection (closed|reset) by peer)|socket closed"
    r"|barrier timed out",
    re.IGNORECASE,
)
# The coordinator's end ends all others at once; they get this time to report their own errors.
_COORDINATOR_LINGERS = 2.0  # seconds
# Network file systems show what another host wrote with a delay.
_SHARED_WITHIN = 10.0  # seconds


@gin.configurable(denylist=["heed_preemption"])
def join_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    cluster: str = "auto",
    heartbeat_timeout_seconds: int = 100,
    heed_preemption: bool = False,
) -> None:
    """Joins the other processes of this run, if it has any; call it before JAX has devices.

    Args:
      coordinator_address: 'HOST:PORT' of process 0; None: of `JAX_COORDINATOR_ADDRESS`, or found.
      num_processes: of the run; None: of `JAX_NUM_PROCESSES`, or found. 1: there are no others.
      process_id: this one's, from 0; None: of `JAX_PROCESS_ID`, or found.
      cluster: who knows about the others: 'tpu', 'slurm', 'ompi', 'mpi4py'; 'auto': whichever of
        the first three is there; 'none': nobody, the process is alone unless the above are given.
      heartbeat_timeout_seconds: a process that is silent for so long is lost, and with it the run.
      heed_preemption: SIGTERM to one process is then for `training.preemption` to act on, in all of
        them; else it ends this process, as usual.

    Raises:
      ConfigError: settings that are incomplete, or do not fit each other or the cluster.
      UnreachableError: the others, or the metadata of a TPU that lists them, do not answer.
    """
    if cluster not in CLUSTERS:
        raise ConfigError(
            f"join_processes.cluster = {cluster!r} is not one of {', '.join(CLUSTERS)}"
        )
    if are_joined():  # whoever embeds the command line may have done it
        return
    given: dict[str, Any] = {
        "coordinator_address": coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": num_processes or os.environ.get("JAX_NUM_PROCESSES"),
        "process_id": os.environ.get("JAX_PROCESS_ID") if process_id is None else process_id,
    }
    for name in ("num_processes", "process_id"):
        if not re.fullmatch(r"None|\d+", str(given[name])):
            raise ConfigError(f"{_VARIABLES[name]} = {given[name]!r} is not a whole number")
        given[name] = None if given[name] is None else int(given[name])
    place = find_cluster(os.environ, cluster, jax.config.values["jax_platforms"] or "")
    if given["num_processes"] == 1 or (place == "none" and set(given.values()) == {None}):
        return
    if place == "slurm":
        given |= {k: v for k, v in slurm_arguments(os.environ).items() if given.get(k) is None}
    jax.config.update("jax_enable_preemption_service", heed_preemption)
    logger.info("joining %s (cluster: %s)", given, place)
    try:
        jax.distributed.initialize(
            **given,
            cluster_detection_method="deactivate" if place == "none" else CLUSTERS[place],
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except (ValueError, TypeError, LookupError, RuntimeError, OSError) as error:
        kind = UnreachableError if _may_pass(error, place) else ConfigError
        raise kind(
            f"this process could not join the others (cluster: {place}, {given}): {error}. Set "
            f"{', '.join(_VARIABLES.values())} in every process (HOST:PORT of process 0, how many "
            "there are, and which one this is, from 0), or --gin.join_processes.cluster=none where "
            "there are no others"
        ) from error
    logger.info(
        "process %d of %d, %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def find_cluster(environment: Mapping[str, str], wanted: str, platforms: str) -> str:
    """Who knows about the other processes: a name of `CLUSTERS` other than 'auto'.

    `platforms` is `jax.config.jax_platforms`, which begins with 'tpu' where there are TPUs. 'none'
    also where the cluster has given this job one process only.
    """
    if wanted != "auto":
        return wanted
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    # Within an allocation, but outside `srun`, there is a job and no step.
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment and tasks != "1":
        return "slurm"
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "ompi"
    return "tpu" if platforms.split(",")[0] == "tpu" else "none"


def slurm_arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """What of Slurm's variables JAX would read otherwise, for `jax.distributed.initialize`.

    JAX gives each process one GPU; the only process of a host is to have all of them.
    """
    arguments: dict[str, Any] = {}
    if "SLURM_STEP_NUM_TASKS" in environment:
        arguments["num_processes"] = int(environment["SLURM_STEP_NUM_TASKS"])
    alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if alone and gpus.isdigit() and "JAX_LOCAL_DEVICE_IDS" not in environment:
        arguments["local_device_ids"] = list(range(int(gpus)))
    return arguments


def are_joined() -> bool:
    """Whether this process has joined others (or itself, on a slice of one host)."""
    return bool(jax.distributed.is_initialized())


def print_once(result: object) -> None:
    """Prints in one of the run's processes."""
    if jax.process_index() == 0:
        print(result)


def sum_over_processes(*numbers: int) -> list[int]:
    """Each number's sum over all processes, which call this together; the same in all of them."""
    if jax.process_count() == 1:
        return list(numbers)
    return multihost_utils.process_allgather(np.asarray(numbers)).sum(axis=0).tolist()


def check_shared(path: epath.Path) -> None:
    """Raises ConfigError in all processes unless all see a file that process 0 has just written."""
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("written")
    deadline = time.monotonic() + _SHARED_WITHIN
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    seen = multihost_utils.process_allgather(np.asarray(path.exists()))
    blind = [str(process) for process, sees in enumerate(seen.ravel()) if not sees]
    if blind:
        raise ConfigError(
            f"{path.parent} is not shared: process 0 wrote {path.name} there, and processes "
            f"{', '.join(blind)} do not see it. Give a folder that all hosts have in common, or a "
            "bucket (gs://...), as MODEL_DIR"
        )


def speaks_of_a_lost_process(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that another process has gone.

    The texts of errors for the user are not searched: they quote titles and addresses.
    """
    return any(
        _SIGNS_OF_LOSS.search(str(one)) for one in causes(error) if not isinstance(one, M6RecError)
    )


def leave_at_once(status: int) -> None:
    """Ends this process of several without waiting for the others, which notice it and end, too.

    An ordinary exit would wait for all processes, and those wait for this one in a collective.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody may be listening any more
            stream.flush()
    if jax.process_index() == 0:
        time.sleep(_COORDINATOR_LINGERS)
    os._exit(status)


def _may_pass(error: Exception, place: str) -> bool:
    """Whether the same settings may do a little later: it is no use to retry any other error."""
    if isinstance(error, ValueError | TypeError | LookupError):
        return place == "tpu"  # what a host's metadata, which may not be there yet, left undefined
    return not re.search("must be called before|only be called once", str(error))
