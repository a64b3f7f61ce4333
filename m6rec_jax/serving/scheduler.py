"""Requests of many clients, answered in batches and by texts that grow one by one.

    scheduler = Scheduler()
    future = scheduler.submit(accepted, deadline=time.monotonic() + 2.0)
    result = future.result()

XLA's own thread runs programs on the devices. The threads here do the host's work around them: a
few workers lay out a batch, start its programs, and turn arrays into answers, so that the devices
have the next batch when one ends; another thread lets texts into slots, takes steps, and hands on
what they say. A batch is what has queued for the first request's job, of any tasks:
requests with the earliest deadline go first.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import gin
import jax

from m6rec_jax.engine.decoding.continuous import ContinuousGenerator
from m6rec_jax.engine.decoding.stream import GenerationStream
from m6rec_jax.errors import ConfigError, M6RecError
from m6rec_jax.jobs.answering import Accepted, Answer
from m6rec_jax.jobs.generation import answer_of

log = logging.getLogger(__name__)

T = TypeVar("T")

# Receives a piece of a text: which text of the answer, and what it goes on with.
OnText = Callable[[int, str], None]

# On a CPU a padded row costs as much as a real one: so much of a padded batch must be requests.
_CPU_FILL = 0.5


class QueueFull(M6RecError):
    """More requests wait than the queue holds."""


class DeadlinePassed(M6RecError):
    """A request was not begun before its deadline, or its texts had not ended by then."""


class SchedulerClosed(M6RecError):
    """No requests are taken any more."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


@dataclasses.dataclass(eq=False, repr=False)
class Queued(concurrent.futures.Future[T]):
    """A request in the queue or under way, and its answer to come.

    Attributes:
      job: its name, for metrics.
      group: requests of equal ones may share a batch.
      run: answers arguments of a batch.
      order: by which the queue is ordered: deadline, number.
      generator: of texts that grow one by one; None: it is answered in a batch.
      texts: those that have no slot yet.
      streams: of those that have one.
      began: of `time.monotonic`, when it left the queue; until then it is infinite.
    """

    job: str
    group: Any
    run: Callable[[list[Any]], list[Any]]
    argument: Any
    batch_sizes: Sequence[int]
    order: tuple[float, int]
    on_text: OnText | None = None
    generator: Any = None
    texts: list[GenerationStream] = dataclasses.field(default_factory=list)
    streams: list[GenerationStream] = dataclasses.field(default_factory=list)
    since: float = dataclasses.field(default_factory=time.monotonic)
    began: float = math.inf

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def is_dead(self) -> bool:
        """Whether nobody waits for it any more, or it is late."""
        return self.cancelled() or self.order[0] < time.monotonic()

    def claim(self) -> tuple[int, float, int]:
        """On a free slot: who has the fewest goes first."""
        return sum(stream.finish_reason is None for stream in self.streams), *self.order

    def fail(self, error: Exception) -> None:
        """Ends it, unless it has ended."""
        self.texts.clear()
        for stream in self.streams:
            stream.cancel()  # its slot is free at the next step
        if not self.done() and self.set_running_or_notify_cancel():
            self.set_exception(error)

    def say(self, index: int, piece: str) -> None:
        """Hands on a piece of a text; a listener that has gone must not end the thread."""
        with contextlib.suppress(Exception):
            if self.on_text is not None:
                self.on_text(index, piece)


@gin.configurable(denylist=["observe"])
class Scheduler:
    """Answers requests in its threads; see the module. Methods may be called from any thread.

    Args:
      max_queue: requests that may wait; more raise `QueueFull`.
      max_batch: requests of a batch, and texts that grow beside each other, at most.
      max_running: batches under way at a time. Beside another one only a full batch begins, so that
        requests do not scatter over small ones.
      observe: called with each batch that has ended: the job of all its requests, 'other' for
        functions; seconds that each waited; seconds that the batch ran; how many ended in an error.
        A request whose texts grow is one by itself.

    Raises:
      ConfigError: numbers below 1.
    """

    def __init__(
        self,
        *,
        max_queue: int = 512,
        max_batch: int = 32,
        max_running: int = 2,
        observe: Callable[[str, Sequence[float], float, int], None] = lambda *_: None,
    ) -> None:
        if min(max_queue, max_batch, max_running) < 1:
            raise ConfigError("Scheduler: max_queue, max_batch and max_running must be at least 1")
        self._max_queue, self._max_batch, self._observe = max_queue, max_batch, observe
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        # Apart, so that a request wakes one thread, not all: each takes the interpreter's lock.
        conditions = (threading.Condition(self._lock) for _ in range(3))
        self._for_batches, self._for_texts, self._for_close = conditions
        self._alarm = math.inf  # of `time.monotonic`: when the thread of texts next looks
        self._requests: list[Queued[Any]] = []  # that wait, or whose texts grow
        self._generators = set[ContinuousGenerator]()  # that have texts
        self._running = 0
        self._closed = self._stopped = False
        names = {f"m6rec-batches-{number}": self._run_batches for number in range(max_running)}
        for name, work in {**names, "m6rec-texts": self._grow_texts}.items():
            threading.Thread(target=work, name=name, daemon=True).start()

    @property
    def depth(self) -> int:
        """Requests that wait, for a batch or for the first slot of their texts."""
        return sum(math.isinf(one.began) for one in self._requests)

    def submit(
        self, accepted: Accepted, *, deadline: float = math.inf, on_text: OnText | None = None
    ) -> Queued[Answer]:
        """Queues a request.

        Args:
          accepted: of `Service.accept`.
          deadline: of `time.monotonic`: a request that has not begun by then never does, and texts
            that grow must have ended.
          on_text: receives generated texts in a thread of the scheduler: piece by piece where they
            grow, else whole.

        Returns:
          The answer to come. It may end in `DeadlinePassed`, `SchedulerClosed`, or what
          `Handler.answer` raises. Cancelled before it begins, the request takes no more time;
          texts that grow may be cancelled at any time.

        Raises:
          QueueFull, SchedulerClosed: it was not queued.
        """
        handler = accepted.handler
        resources, order = handler.resources, (deadline, next(self._numbers))
        group, sizes = (resources, handler.group), resources.batch_sizes
        queued = Queued[Any](handler.job, group, handler.answer, accepted, sizes, order, on_text)
        if (texts := handler.texts(accepted)) is not None:
            queued.texts, queued.generator = texts, resources.continuous_generator()
        return self._put(queued)

    def call_together(
        self,
        function: Callable[[list[Any]], list[Any]],
        argument: Any,
        batch_sizes: Sequence[int],
        *,
        deadline: float = math.inf,
    ) -> Queued[Any]:
        """Queues one of the arguments of a function that takes many; as `submit`.

        Args:
          function: of a list, to a result for each; what has queued for an equal one shares a call.
          argument: to go into the list.
          batch_sizes: lengths of lists that are padded to.
          deadline: as of `submit`.
        """
        order = deadline, next(self._numbers)
        return self._put(Queued("other", function, function, argument, batch_sizes, order))

    def close(self, grace: float = 0.0) -> bool:
        """Takes no more requests, and waits for those that there are.

        Args:
          grace: seconds; requests that have not begun by then, and those whose texts have not
            ended, end in `SchedulerClosed`.

        Returns:
          Whether all were answered.
        """
        with self._lock:
            self._closed = True
            is_done = self._for_close.wait_for(lambda: not (self._requests or self._running), grace)
            left, self._requests = self._requests, []
            self._stopped = True
            self._for_batches.notify_all()
            self._for_texts.notify()
        for one in left:
            one.fail(SchedulerClosed())
        return is_done

    def _put(self, queued: Queued[Any]) -> Queued[Any]:
        with self._lock:
            if self._closed:
                raise SchedulerClosed
            if self.depth >= self._max_queue:
                self._drop_dead()
            if (waiting := self.depth) >= self._max_queue:
                raise QueueFull(f"{waiting} requests are waiting; try again later")
            self._requests.append(queued)
            if queued.generator is None:
                self._for_batches.notify()
            if queued.generator is not None or queued.order[0] < self._alarm:
                self._for_texts.notify()
        return queued

    def _drop_dead(self) -> None:
        """Ends cancelled and late requests; the caller holds the lock."""
        for one in [one for one in self._requests if one.is_dead]:
            self._requests.remove(one)
            one.fail(DeadlinePassed("the request was not answered by its deadline"))
            self._for_close.notify()

    def _run_batches(self) -> None:
        while self._run_batch():  # and holds nothing of a batch while there is none
            pass

    def _run_batch(self) -> bool:
        """Waits for a batch and answers it; False: none will come."""
        with self._lock:
            batch = self._for_batches.wait_for(lambda: self._stopped or self._next_batch())
            if batch is True:
                return False
            began = time.monotonic()
            for one in batch:
                self._requests.remove(one)
                one.began = began
            self._running += 1
            self._for_batches.notify()  # there may be another batch
        # A future that runs can no longer be cancelled.
        batch = [one for one in batch if one.set_running_or_notify_cancel()]
        failures = self._answer(batch) if batch else 0
        with self._lock:
            self._running -= 1
            self._for_close.notify()
        if batch:
            waits = [began - one.since for one in batch]
            self._observe(batch[0].job, waits, time.monotonic() - began, failures)
        return True

    def _next_batch(self) -> list[Queued[Any]]:
        """Requests of the next batch, none where it may not begin; the caller holds the lock."""
        self._drop_dead()
        waiting = [one for one in self._requests if one.generator is None]
        if not waiting:
            return []
        waiting.sort(key=lambda one: one.order)
        first = waiting[0]
        fitting = [one for one in waiting if one.group == first.group]
        sizes = [size for size in first.batch_sizes if size <= self._max_batch] or [1]
        if self._running and len(fitting) < sizes[-1]:
            return []
        fill = _CPU_FILL if jax.default_backend() == "cpu" else 0.0
        padded = [size for size in first.batch_sizes if len(fitting) >= size * fill]
        return fitting[: min(self._max_batch, max(padded, default=sizes[0]))]

    def _answer(self, batch: Sequence[Queued[Any]]) -> int:
        """Answers requests, each by itself where they fail together; returns how many failed."""
        try:
            results = batch[0].run([one.argument for one in batch])
            answered = list(zip(batch, results, strict=True))
        except Exception as error:
            if len(batch) == 1:
                batch[0].set_exception(error)
                return 1
            # One of them cannot be answered; the others can.
            log.warning("a batch of %d failed (%s)", len(batch), type(error).__name__)
            return sum(self._answer([one]) for one in batch)
        for one, result in answered:
            for index, text in enumerate(getattr(result, "texts", ())):
                one.say(index, text.text)
            one.set_result(result)
        return 0

    def _grow_texts(self) -> None:
        """Takes texts further; beside it, ends what waits beyond its deadline."""
        while not self._stopped:
            with self._lock:
                self._drop_dead()
                growing = [one for one in self._requests if one.generator is not None]
                if not (growing or self._generators or self._stopped):
                    self._alarm = min((one.order[0] for one in self._requests), default=math.inf)
                    left = min(self._alarm - time.monotonic(), threading.TIMEOUT_MAX)
                    self._for_texts.wait(max(left, 0.0))
            self._grow(growing)

    def _grow(self, growing: Sequence[Queued[Any]]) -> None:
        """Lets texts into free slots, takes a few steps, hands on what they say."""
        while taker := min(filter(self._has_room, growing), key=Queued.claim, default=None):
            taker.began = min(taker.began, time.monotonic())
            try:
                taker.streams.append(taker.generator.submit(taker.texts.pop(0)))
                self._generators.add(taker.generator)
            except Exception as error:
                self._end(taker, error)
        for generator in list(self._generators):
            try:
                has_more = generator.step()
            except Exception as error:  # its texts are lost, and those of others go on
                has_more = False
                for one in growing:
                    if one.generator is generator:
                        self._end(one, error)
            if not has_more:
                self._generators.remove(generator)
        for one in growing:
            # First: pieces come before a text's end.
            ended = not one.texts and all(stream.finish_reason for stream in one.streams)
            for index, stream in enumerate(one.streams):
                for piece in stream.take():
                    one.say(index, piece)
            if ended:
                self._end(one)

    def _has_room(self, one: Queued[Any]) -> bool:
        """Whether one of its texts could have a slot."""
        under_way = one.generator.num_running + len(one.generator.pending)
        return bool(one.texts) and under_way < min(one.generator.num_slots, self._max_batch)

    def _end(self, one: Queued[Any], error: Exception | None = None) -> None:
        """Answers a request whose texts have ended, or gives it up, unless it has ended."""
        with self._lock:
            if one not in self._requests:
                return
            try:
                if error is not None:
                    raise error
                result = answer_of(stream.result() for stream in one.streams)
                if one.set_running_or_notify_cancel():
                    one.set_result(result)
            except Exception as failure:
                error = failure
                one.fail(failure)
            self._requests.remove(one)
            self._for_close.notify()
        now = time.monotonic()
        began = min(one.began, now)
        self._observe(one.job, [began - one.since], now - began, error is not None)
