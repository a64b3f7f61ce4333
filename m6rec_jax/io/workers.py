"""Workers that apply functions to pieces of work: threads, processes, or actors of a Ray cluster.

    with RayWorkers("a command", functools.partial(Service.open, "runs/ctr")) as workers:
        for result in workers.map(answer, chunks):

A worker makes once what its functions need, such as a model, and keeps it. Results come in the
order of the pieces, each once, whatever dies meanwhile.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import gin

from m6rec_jax.errors import ConfigError, M6RecError

Made = TypeVar("Made")
Piece = TypeVar("Piece")
R = TypeVar("R")

# How often a piece is begun anew after its worker has died.
_RETRIES = 3


def num_processors() -> int:
    """Fewer than the machine's where the process is held to some, as by `taskset`."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """The first piece makes what is costly, so that its errors arrive."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._lock = functools.cache(make), threading.Lock()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            made = self._make()
        return function(made, *arguments)


class Workers(Generic[Made]):
    """See the module; a context manager. `most` pieces are under way at a time."""

    def __init__(self, pool: concurrent.futures.Executor, run: Callable[..., Any], most: int):
        self._pool, self._run, self.most = pool, run, most

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, function: Callable[..., R], *arguments: Any) -> Callable[[], R]:
        """Starts `function(made, *arguments)`; returns what waits for the result, or raises."""
        return functools.partial(_result, self._pool.submit(self._run, function, *arguments))

    def map(self, function: Callable[[Made, Piece], R], pieces: Iterable[Piece]) -> Iterator[R]:
        """`function(made, piece)` of every piece, in their order; raises what it raises."""
        under_way = collections.deque[Callable[[], R]]()
        for piece in pieces:
            if len(under_way) == self.most:
                yield under_way.popleft()()
            under_way.append(self.begin(function, piece))
        while under_way:
            yield under_way.popleft()()


def _result(future: concurrent.futures.Future[R]) -> R:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise M6RecError(
            "a process that worked on a part of this died; memory may be short (fewer processors "
            "need less: taskset -c 0 m6rec ...)"
        ) from error


class Threads(Workers[Made]):
    """Of this process: with two, Python prepares the next piece while devices work on one."""

    def __init__(self, made: Made, threads: int = 2) -> None:
        pool = concurrent.futures.ThreadPoolExecutor(threads)
        super().__init__(pool, lambda function, *arguments: function(made, *arguments), threads)


_of_process: _Worker


def _start(make: Callable[[], Any]) -> None:
    global _of_process
    _of_process = _Worker(make)


def _run(*arguments: Any) -> Any:
    return _of_process.run(*arguments)


class Processes(Workers[Made]):
    """Processes of this machine, in each of which `make` makes what functions are given.

    Each imports the script that uses them: let it do so under `if __name__ == "__main__":`.
    """

    def __init__(self, make: Callable[[], Made], number: int) -> None:
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(number, context, _start, (make,))
        super().__init__(pool, _run, 2 * number)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """Processes of Ray.

    Attributes:
      resources: of Ray that each takes: `{'CPU': 4}`, `{'GPU': 1}`, `{'TPU': 4}`. As many are
        started as the cluster has room for.
    """

    resources: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"CPU": 1})

    def fitting(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many workers run on nodes with these resources; ConfigError for not even one."""
        amounts = {name: amount for name, amount in self.resources.items() if amount > 0}
        room = sum(
            min((int(node.get(name, 0) // amount) for name, amount in amounts.items()), default=0)
            for node in nodes
        )
        if room < 1:
            there = [{name: node.get(name, 0.0) for name in self.resources} for node in nodes]
            raise ConfigError(
                f"no worker fits into the cluster: WorkerOptions.resources = "
                f"{dict(self.resources)}, and its nodes have {there}"
            )
        return room


def start_ray(command: str, object_store_bytes: int) -> Any:
    """Joins the cluster that `RAY_ADDRESS` names, or starts Ray here; returns the module.

    Args:
      command: that needs it, for the ConfigError where Ray is missing.
      object_store_bytes: of memory for what processes hand each other on this machine.
    """
    # Nobody outside is told what runs here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{command} needs the package {error.name}: pip install 'm6rec_jax[serve,ray]'"
        ) from error
    address = os.environ.get("RAY_ADDRESS")
    local = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    ray.init(
        address=address or "local",
        logging_level=logging.ERROR,
        **({} if address else local | {"object_store_memory": object_store_bytes}),
    )
    return ray


def set_up_process(settings: str, folder: str) -> None:
    """Makes a process of Ray's like the one that started it: its log, folder and gin settings."""
    logger, handler = logging.getLogger("m6rec_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    if Path(folder).is_dir():
        os.chdir(folder)
    gin.parse_config(settings)


class _Actor(_Worker):
    def __init__(self, make: Callable[[], Any], settings: str, folder: str) -> None:
        set_up_process(settings, folder)
        super().__init__(make)


class RayWorkers(Workers[Made]):
    """Actors of Ray, on this machine or the cluster that `RAY_ADDRESS` names (`WorkerOptions`).

    One that dies is started again, elsewhere if need be, and its pieces are begun anew. In each,
    `make` makes what functions are given, and so many `threads` work at a time. `number` counts the
    workers.

    Raises:
      ConfigError: Ray is not installed for the `command`, or no worker fits into the cluster.
    """

    def __init__(self, command: str, make: Callable[[], Made], threads: int = 2) -> None:
        options = WorkerOptions()
        self._ray = start_ray(command, 512 << 20)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self.number = options.fitting(nodes)
        self.most = 4 * self.number
        resources = dict(options.resources)
        actor = self._ray.remote(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_restarts=-1,
            max_task_retries=_RETRIES,
            max_concurrency=threads,
        )(_Actor)
        actors = [actor.remote(make, gin.config_str(), os.getcwd()) for _ in range(self.number)]
        self._actors = itertools.cycle(actors)

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def begin(self, function: Callable[..., R], *arguments: Any) -> Callable[[], R]:
        result = next(self._actors).run.remote(function, *arguments)
        return functools.partial(self._get, result)

    def _get(self, result: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(result)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            raise M6RecError(
                f"workers died {_RETRIES + 1} times on the same piece; memory may be short: "
                f"{str(error).splitlines()[0]}"
            ) from error
