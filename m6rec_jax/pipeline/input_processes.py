"""Shards that are read and tokenised in processes of their own: Python's lock allows one core each.

A process reads ahead as its tf.data pipelines do, and stands at the same rows as if it were asked
in this process: states are the same, however many processes there are.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import util
from typing import Any

import gin

from m6rec_jax.io.workers import Processes
from m6rec_jax.quiet_start import keep_quiet


class InputProcess:
    """`LocalShards`, with the same arguments, in a process of its own.

    The process is given the gin configuration, and so imports the modules that register tasks.
    """

    def __init__(self, settings: Mapping[str, Any], shards: Sequence[int], rows: int) -> None:
        opened = functools.partial(_open, gin.config_str(), dict(settings), shards, rows)
        self._process = Processes(opened, 1)

    def start(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """As `LocalShards.start`; the result may raise M6RecError where the process has died."""
        return self._process.begin(_call, method, *arguments)

    def close(self) -> None:
        """Ends the process."""
        self._process.__exit__()


def _open(configuration: str, *arguments: Any) -> Any:
    """The shards, in the process that reads them."""
    # The process that trains is told to stop, and tells this one; nor does this one outlive it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Devices are the trainer's, should a task's module ask JAX for them.
    os.environ["JAX_PLATFORMS"] = "cpu"
    keep_quiet()
    from m6rec_jax.configuration import macro
    from m6rec_jax.pipeline.shards import LocalShards

    gin.parse_config(configuration)
    macro("MIXTURE_OR_TASK_NAME", "")  # `@own_task()` registers when it is called
    shards = LocalShards(*arguments)
    # tf.data's threads call Python; they must be gone before the interpreter shuts down.
    util.Finalize(None, shards.close, exitpriority=10)
    return shards


def _call(shards: Any, method: str, *arguments: Any) -> Any:
    return getattr(shards, method)(*arguments)


def _end_with_parent() -> None:
    if (trainer := multiprocessing.parent_process()) is not None:
        trainer.join()
        os._exit(1)
