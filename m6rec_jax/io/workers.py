"""Who makes results of pieces: threads, processes of this machine, or Ray's on many machines.

    with RayWorkers("a command", functools.partial(Service.open, "runs/ctr")) as workers:
        for result in workers.map(answer, chunks):

Workers hold one thing that is costly to make, such as a model. Results come in the order of the
pieces, each once, whatever dies on the way; as many are under way as keep all workers busy.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import gin

from m6rec_jax.errors import ConfigError, M6RecError

Made = TypeVar("Made")
Piece = TypeVar("Piece")
Begun = TypeVar("Begun")
R = TypeVar("R")
Made_co = TypeVar("Made_co", covariant=True)

# How often a piece is begun anew after what worked on it has died.
_RETRIES = 3


class Workers(Protocol[Made_co]):
    """See the module."""

    def begin(self, function: Callable[..., R], *arguments: Any) -> Callable[[], R]:
        """`function(made, *arguments)` by any of them, perhaps beside other work.

        Returns:
          what waits for the result, and raises what the function raises.
        """

    def map(self, function: Callable[[Made_co, Piece], R], pieces: Iterable[Piece]) -> Iterator[R]:
        """`function(made, piece)` of every piece, in their order; raises what it raises."""


def _in_order(
    begin: Callable[[Piece], Begun], wait: Callable[[Begun], R], pieces: Iterable[Piece], most: int
) -> Iterator[R]:
    """What comes of each piece, with so many under way at most."""
    under_way = collections.deque[Begun]()
    for piece in pieces:
        if len(under_way) == most:
            yield wait(under_way.popleft())
        under_way.append(begin(piece))
    while under_way:
        yield wait(under_way.popleft())


class ThisProcess(Generic[Made]):
    """Threads: with two, Python prepares the next piece while devices work on one.

    Args:
      made: what functions are given.
      threads: that work at a time.
    """

    def __init__(self, made: Made, threads: int = 2) -> None:
        self._made, self._threads = made, threads

    def begin(self, function: Callable[..., R], *arguments: Any) -> Callable[[], R]:
        return functools.partial(function, self._made, *arguments)

    def map(self, function: Callable[[Made, Piece], R], pieces: Iterable[Piece]) -> Iterator[R]:
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:

            def begin(piece: Piece) -> concurrent.futures.Future[R]:
                return pool.submit(function, self._made, piece)

            yield from _in_order(begin, lambda future: future.result(), pieces, self._threads)


class Processes(Generic[Made]):
    """Processes of this machine; use it as a context manager.

    Each imports the script that uses them: let it do so under `if __name__ == "__main__":`.

    Args:
      made: what functions are given; small.
      number: of processes.
    """

    def __init__(self, made: Made, number: int) -> None:
        self._made, self._number = made, number
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(number, context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, function: Callable[..., R], *arguments: Any) -> Callable[[], R]:
        return functools.partial(self._result, self._pool.submit(function, self._made, *arguments))

    def map(self, function: Callable[[Made, Piece], R], pieces: Iterable[Piece]) -> Iterator[R]:
        def begin(piece: Piece) -> concurrent.futures.Future[R]:
            return self._pool.submit(function, self._made, piece)

        return _in_order(begin, self._result, pieces, 2 * self._number)

    def _result(self, future: concurrent.futures.Future[R]) -> R:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise M6RecError(
                "a process that worked on a part of this died, as if something had killed it; "
                "memory may be short (fewer processors need less: taskset -c 0 m6rec ...)"
            ) from error


@gin.configurable
@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """Processes of Ray.

    Attributes:
      number: of them; None: as many as the cluster has room for.
      resources: of Ray that each takes: `{'CPU': 4}`, `{'GPU': 1}`, `{'TPU': 4}`.

    Raises:
      ConfigError: a number below 1, or resources of which none is taken.
    """

    number: int | None = None
    resources: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"CPU": 1})

    def __post_init__(self) -> None:
        if self.number is not None and self.number < 1:
            raise ConfigError(
                f"WorkerOptions.number must be 1 or more, not {self.number}; None: as many as fit"
            )
        if not self.resources or not all(amount > 0 for amount in self.resources.values()):
            raise ConfigError(
                f"WorkerOptions.resources must name what each worker takes, in amounts above 0, as "
                f"in {{'CPU': 1}}, not {dict(self.resources)}"
            )

    def fitting(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many of them run on nodes with these resources; each needs a node for itself.

        Raises:
          ConfigError: not even one.
        """
        own = self.resources.items()
        room = sum(min(int(node.get(name, 0) // amount) for name, amount in own) for node in nodes)
        if room < 1:
            there = [{name: node.get(name, 0.0) for name in self.resources} for node in nodes]
            raise ConfigError(
                f"no worker fits into the cluster: WorkerOptions.resources = "
                f"{dict(self.resources)}, and its nodes have {there}"
            )
        return min(room, self.number or room)


def start_ray(command: str, object_store_bytes: int) -> Any:
    """Joins the cluster that `RAY_ADDRESS` names, or starts Ray on this machine alone.

    What is started ends with the thread that started it.

    Args:
      command: that needs it, for the message where Ray is missing.
      object_store_bytes: of memory for what processes hand each other on this machine.

    Returns:
      The module `ray`.

    Raises:
      ConfigError: Ray is not installed.
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


class _Worker:
    """In a process of Ray's; what is costly is made for the first piece, so that errors arrive."""

    def __init__(self, make: Callable[[], Any], settings: str, folder: str) -> None:
        set_up_process(settings, folder)
        self._make, self._made, self._lock = make, list[Any](), threading.Lock()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
        return function(self._made[0], *arguments)


class RayWorkers(Generic[Made]):
    """Processes of Ray; use it as a context manager. `RAY_ADDRESS` names a cluster.

    A process that dies is started again, elsewhere if need be, and its pieces are begun anew.

    Args:
      command: that wants them, for messages.
      make: makes what functions are given, in each of them.
      threads: of each, that work at a time.

    Raises:
      ConfigError: Ray is not installed, or no worker fits into the cluster.

    Attributes:
      number: of them.
    """

    def __init__(
        self,
        command: str,
        make: Callable[[], Made],
        threads: int = 2,
    ) -> None:
        options = WorkerOptions()
        self._ray = start_ray(command, 512 << 20)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        number = options.fitting(nodes)
        resources = dict(options.resources)
        actor = self._ray.remote(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_restarts=-1,
            max_task_retries=_RETRIES,
            max_concurrency=threads,
        )(_Worker)
        self._workers = [actor.remote(make, gin.config_str(), os.getcwd()) for _ in range(number)]
        self.number = number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def begin(self, function: Callable[..., R], *arguments: Any) -> Callable[[], R]:
        return functools.partial(self._result, self._workers[0].run.remote(function, *arguments))

    def map(self, function: Callable[[Made, Piece], R], pieces: Iterable[Piece]) -> Iterator[R]:
        shared, under_way = self._ray.put(function), dict[Any, int]()  # results, and whose they are

        def begin(piece: Piece) -> Any:
            worker = self._least_busy(under_way)
            begun = self._workers[worker].run.remote(shared, piece)
            under_way[begun] = worker
            return begun

        def wait(begun: Any) -> R:
            del under_way[begun]
            return self._result(begun)

        return _in_order(begin, wait, pieces, 4 * len(self._workers))

    def _least_busy(self, workers: Mapping[Any, int]) -> int:
        results = list(workers)
        done = self._ray.wait(results, num_returns=len(results), timeout=0)[0] if results else []
        busy = collections.Counter(workers[one] for one in set(results).difference(done))
        return min(range(len(self._workers)), key=busy.__getitem__)

    def _result(self, wanted: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(wanted)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            raise M6RecError(
                f"workers died {_RETRIES + 1} times on the same piece; memory may be short (fewer "
                f"rows at a time need less): {str(error).splitlines()[0]}"
            ) from error
