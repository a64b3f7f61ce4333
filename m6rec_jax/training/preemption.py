"""SIGTERM and SIGINT: finish the step, save, leave."""

from __future__ import annotations

import itertools
import signal
import threading
from types import FrameType
from typing import Any, Self

from jax.experimental import multihost_utils

from m6rec_jax.sharding.processes import are_joined

# The agreement on where to stop is about numbers of calls, and a notice that comes before the first
# one will be heeded at call 1. So calls are counted from there in every launch, and on over several
# runs of one program; steps will not do, since a resumed run does not begin with step 1.
_calls = itertools.count(1)


class PreemptionGuard:
    """Notes a request to stop while its `with` block runs.

    A second SIGINT interrupts at once (KeyboardInterrupt): whoever presses Ctrl-C twice does not
    want to wait for a checkpoint.

    In a run of several processes only some may get the signal, and all must stop after the same
    step. There JAX's own notifier, which is connected to the cluster's coordinator, listens for
    SIGTERM from the moment that processes are joined (`sharding.processes`), and this class asks
    it. SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self._asks_notifier = are_joined()
        self._signal: str | None = None  # to this process
        self._agreed: str | None = None  # by all processes
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread only; elsewhere the caller has to listen.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *(() if self._asks_notifier else (signal.SIGTERM,))):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopped_by(self) -> str | None:
        """The signal to save and leave for now, or None; all processes get the same answer.

        To be called by all of them alike: before the first step, and after each one.
        """
        if not self._asks_notifier:
            return self._signal
        # The notifier says so at one call only.
        if self._agreed is None and multihost_utils.reached_preemption_sync_point(next(_calls)):
            self._agreed = "SIGTERM"
        return self._agreed

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
        if self._asks_notifier:
            signal.raise_signal(signal.SIGTERM)
