"""Shards that are read and tokenised in processes of their own: Python's lock allows one core each.

A process reads ahead as its tf.data pipelines do, and stands at the same rows as if it were asked
in this process: states are the same, however many processes there are.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gin

from m6rec_jax.errors import DataError, M6RecError
from m6rec_jax.quiet_start import keep_quiet


class InputProcess:
    """`LocalShards`, with the same arguments, in a process of its own.

    The process is given the gin configuration, and so imports the modules that register tasks.
    """

    def __init__(self, settings: Mapping[str, Any], shards: Sequence[int], rows: int) -> None:
        self._shards = shards
        # Not forked: threads of JAX and tensorflow would be missing in the copy.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, gin.config_str(), (dict(settings), shards, rows))
        self._process = context.Process(
            target=_serve, args=arguments, name="m6rec-input", daemon=True
        )
        self._process.start()
        theirs.close()
        # Before `multiprocessing` waits at exit for its processes to end.
        self.close = util.Finalize(self, _end, (self._connection, self._process), exitpriority=10)

    def start(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """As `LocalShards.start`; the result may raise DataError where the process has ended."""
        with contextlib.suppress(BrokenPipeError):  # `_receive` raises
            self._connection.send((method, arguments))
        return self._receive

    def _receive(self) -> Any:
        try:
            result, error = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            raise DataError(
                f"an input process ended with status {self._process.exitcode} while it read shards "
                f"{list(self._shards)}; -9: out of memory, lower BatchIterator.num_input_processes"
            ) from None
        if error is not None:
            raise error
        return result


def _end(connection: Connection, process: BaseProcess) -> None:
    connection.close()  # the process sees it, and ends
    process.join(10)
    if process.exitcode is None:
        process.kill()


def _serve(connection: Connection, configuration: str, arguments: tuple[Any, ...]) -> None:
    """Answers until the other end closes."""
    # The process that trains is told to stop, and tells this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Devices are the trainer's, should a task's module ask JAX for them.
    os.environ["JAX_PLATFORMS"] = "cpu"

    @functools.cache
    def reader() -> Any:
        keep_quiet()
        from m6rec_jax.configuration import macro
        from m6rec_jax.pipeline.shards import LocalShards

        gin.parse_config(configuration)
        macro("MIXTURE_OR_TASK_NAME", "")  # `@own_task()` registers when it is called
        return LocalShards(*arguments)

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            method, given = connection.recv()
            try:
                connection.send((reader().start(method, *given)(), None))
            except Exception as error:
                if not isinstance(error, M6RecError):  # others may not travel
                    error = DataError(f"{type(error).__name__}: {error}")
                connection.send((None, error))
    if reader.cache_info().currsize:
        reader().close()
