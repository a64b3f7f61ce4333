"""Workers that apply functions to pieces of work: threads, processes, or actors of a Ray cluster.

    with RayWorkers("a command", functools.partial(Service.open, "runs/ctr")) as workers:
        for result in workers.map(answer, chunks):

A worker makes once what its functions need, such as a model, and keeps it. Results come in the
order of the pieces, each once, whatever dies meanwhile.
"""

from __future__ import annotations

import collections
import concurrent.futures
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


_made_here: Callable[[], Any]


def _start(make: Callable[[], Any]) -> None:
    global _made_here
    _made_here = functools.cache(make)


def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    # The first piece makes what is costly, so that its errors arrive.
    return function(_made_here(), *arguments)


class Processes(Workers[Made]):
    """Processes of this machine, in each of which `make` makes what functions are given.

    Each imports the script that uses them: let it do so under `if __name__ == "__main__":`.
    """

    def __init__(self, make: Callable[[], Made], number: int) -> None:
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(number, context, _start, (make,))
        super().__init__(pool, _run, 2 * number)


def fitting(resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many workers that take `resources` run on nodes; raises ConfigError for not even one."""
    amounts = [(name, amount) for name, amount in resources.items() if amount > 0]
    fits = [min((n.get(name, 0) // amount for name, amount in amounts), default=0) for n in nodes]
    if number := int(sum(fits)):
        return number
    raise ConfigError(
        f"no worker fits into the cluster: RayWorkers.resources = {dict(resources)}, and its nodes "
        f"have {list(map(dict, nodes))}"
    )


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
    options = {} if address else local | {"object_store_memory": object_store_bytes}
    ray.init(address=address or "local", logging_level=logging.ERROR, **options)
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


class _Actor:
    def __init__(self, make: Callable[[], Any], settings: str, folder: str) -> None:
        set_up_process(settings, folder)
        self._lock = threading.Lock()
        _start(make)

    def run(self, *arguments: Any) -> Any:
        with self._lock:
            _made_here()
        return _run(*arguments)


@gin.configurable
class RayWorkers(Workers[Made]):
    """Actors of Ray, on this machine or the cluster that `RAY_ADDRESS` names.

    As many are started as the cluster has room for, if each takes the `resources`: `{'CPU': 4}`,
    `{'GPU': 1}`, `{'TPU': 4}`. One that dies is started again, elsewhere if need be, and its pieces
    are begun anew. In each, `make` makes what functions are given, and so many `threads` work at a
    time. `number` counts the workers.

    Raises:
      ConfigError: Ray is not installed for the `command`, or no worker fits into the cluster.
    """

    def __init__(
        self,
        command: str,
        make: Callable[[], Made],
        threads: int = 2,
        resources: Mapping[str, float] = {"CPU": 1},
    ) -> None:
        self._ray = start_ray(command, 512 << 20)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self.number = fitting(resources, nodes)
        self.most = 4 * self.number
        others = dict(resources)
        taken = {"num_cpus": others.pop("CPU", 0), "num_gpus": others.pop("GPU", 0)}
        tried = {"max_restarts": -1, "max_task_retries": _RETRIES, "max_concurrency": threads}
        actor = self._ray.remote(**taken, **tried, resources=others)(_Actor)
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
