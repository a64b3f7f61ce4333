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

import collections
import concurrent.futures
import contextlib
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

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting; try again later")


class DeadlinePassed(M6RecError):
    """A request was not begun before its deadline, or its texts had not ended by then."""


class SchedulerClosed(M6RecError):
    """No requests are taken any more."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class Queued(concurrent.futures.Future[T]):
    """A request in the queue or under way, and its answer to come.

    Attributes:
      began: of `time.monotonic`, when it left the queue; until then it is infinite.
      group: requests of equal ones may share a batch.
      order: by which the queue is ordered: deadline, number.
      texts: that have no slot of `generator` yet; None: they do not grow.
      streams: of those that have one.
    """

    def __init__(
        self,
        job: str,
        group: Any,
        run: Callable[[list[Any]], list[Any]],
        argument: Any,
        batch_sizes: Sequence[int],
        order: tuple[float, int],
        on_text: OnText | None = None,
    ) -> None:
        super().__init__()
        self.job, self.group, self.run, self.argument = job, group, run, argument
        self.batch_sizes, self.order, self._on_text = batch_sizes, order, on_text
        self.since, self.began = time.monotonic(), math.inf
        self.texts: collections.deque[GenerationStream] | None = None
        self.generator: ContinuousGenerator | None = None
        self.streams: list[GenerationStream] = []

    @property
    def is_dead(self) -> bool:
        """Whether nobody waits for it any more, or it is late."""
        return self.cancelled() or self.order[0] < time.monotonic()

    def claim(self) -> tuple[int, float, int]:
        """On a free slot: who has the fewest goes first."""
        return sum(stream.finish_reason is None for stream in self.streams), *self.order

    def fail(self, error: Exception) -> None:
        """Ends it, unless it has ended."""
        for stream in self.streams:
            stream.cancel()  # its slot is free at the next step
        if not self.done() and self.set_running_or_notify_cancel():
            self.set_exception(error)

    def say(self, index: int, piece: str) -> None:
        """Hands on a piece of a text; a listener that has gone must not end the thread."""
        with contextlib.suppress(Exception):
            if self._on_text is not None:
                self._on_text(index, piece)


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
        observe: Callable[[str, Sequence[float], float, int], None] | None = None,
    ) -> None:
        if min(max_queue, max_batch, max_running) < 1:
            raise ConfigError(
                f"Scheduler: max_queue = {max_queue}, max_batch = {max_batch} and max_running = "
                f"{max_running} must be at least 1"
            )
        self._max_queue, self._max_batch = max_queue, max_batch
        self._observe = observe or (lambda *_: None)
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._queue: list[Queued[Any]] = []  # of batches
        self._growing: list[Queued[Any]] = []  # of texts, those that have no slot yet among them
        self._generators = set[ContinuousGenerator]()  # that have texts
        self._running = 0
        self._closed = self._stopped = False
        names = {f"m6rec-batches-{number}": self._run_batches for number in range(max_running)}
        for name, work in {**names, "m6rec-texts": self._grow_texts}.items():
            threading.Thread(target=work, name=name, daemon=True).start()

    @property
    def depth(self) -> int:
        """Requests that wait, for a batch or for the first slot of their texts."""
        return len(self._queue) + sum(math.isinf(one.began) for one in self._growing)

    def submit(
        self,
        accepted: Accepted,
        *,
        deadline: float = math.inf,
        on_text: OnText | None = None,
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
            queued.texts = collections.deque(texts)
            queued.generator = resources.continuous_generator()
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
        with self._changed:
            self._closed = True
            all_done = self._changed.wait_for(
                lambda: not (self._queue or self._running or self._growing), grace
            )
            left, self._queue = self._queue, []
            self._stopped = True
            self._changed.notify_all()
        for one in left:
            one.fail(SchedulerClosed())
        return all_done

    def _put(self, queued: Queued[Any]) -> Queued[Any]:
        with self._changed:
            if self._closed:
                raise SchedulerClosed
            if self.depth >= self._max_queue:
                self._drop_dead()
            if (waiting := self.depth) >= self._max_queue:
                raise QueueFull(waiting)
            (self._queue if queued.texts is None else self._growing).append(queued)
            self._changed.notify_all()
        return queued

    def _drop_dead(self) -> None:
        """Takes cancelled and late requests out of the queue; the caller holds the lock."""
        for one in [one for one in self._queue if one.is_dead]:
            self._queue.remove(one)
            one.fail(DeadlinePassed("the request waited until after its deadline"))
            self._changed.notify_all()

    def _run_batches(self) -> None:
        while self._run_batch():  # and holds nothing of a batch while there is none
            pass

    def _run_batch(self) -> bool:
        """Waits for a batch and answers it; False: none will come."""
        with self._changed:
            batch = self._changed.wait_for(lambda: self._stopped or self._next_batch())
            if batch is True:
                return False
            for one in batch:
                self._queue.remove(one)
                one.began = time.monotonic()
            self._running += 1
        # A future that runs can no longer be cancelled.
        batch = [one for one in batch if one.set_running_or_notify_cancel()]
        began = time.monotonic()
        failures = self._answer(batch) if batch else 0
        seconds = time.monotonic() - began
        with self._changed:
            self._running -= 1
            self._changed.notify_all()
        if batch:
            waits = [one.began - one.since for one in batch]
            self._observe(batch[0].job, waits, seconds, failures)
        return True

    def _next_batch(self) -> list[Queued[Any]]:
        """Requests of the next batch, none where it may not begin; the caller holds the lock."""
        self._drop_dead()
        if not self._queue:
            return []
        ordered = sorted(self._queue, key=lambda one: one.order)
        first = ordered[0]
        fitting = [one for one in ordered if one.group == first.group]
        number = len(fitting)
        sizes = [size for size in first.batch_sizes if size <= self._max_batch] or [1]
        if self._running and number < sizes[-1]:
            return []
        fill = _CPU_FILL if jax.default_backend() == "cpu" else 0.0
        padded = [size for size in first.batch_sizes if number >= size * fill]
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
        while True:
            with self._changed:
                while not (self._growing or self._generators or self._stopped):
                    self._drop_dead()
                    deadline = min((one.order[0] for one in self._queue), default=math.inf)
                    left = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
                    self._changed.wait(max(left, 0.0))
                self._drop_dead()
                if self._stopped:
                    break
            self._grow()
        for one in list(self._growing):
            one.fail(SchedulerClosed())

    def _grow(self) -> None:
        """Lets texts into free slots, takes a few steps, hands on what they say."""
        for one in [one for one in self._growing if one.is_dead]:
            self._end(one, DeadlinePassed("the request's deadline came before its text's end"))
        while (taker := self._next_text()) is not None:
            try:
                assert taker.texts is not None
                assert taker.generator is not None
                taker.streams.append(taker.generator.submit(taker.texts.popleft()))
                self._generators.add(taker.generator)
            except Exception as error:
                self._end(taker, error)
        for generator in list(self._generators):
            try:
                has_more = generator.step()
            except Exception as error:  # its texts are lost, and those of others go on
                has_more = False
                for one in [one for one in self._growing if one.generator is generator]:
                    self._end(one, error)
            if not has_more:
                self._generators.remove(generator)
        for one in list(self._growing):
            # First: pieces come before a text's end.
            ended = not one.texts and all(stream.finish_reason for stream in one.streams)
            for index, stream in enumerate(one.streams):
                for piece in stream.take():
                    one.say(index, piece)
            if ended:
                self._end(one)

    def _next_text(self) -> Queued[Any] | None:
        """Whose text gets the next free slot; a request with many texts leaves slots to others."""

        def has_room(one: Queued[Any]) -> bool:
            if one.generator is None or not one.texts:
                return False
            under_way = one.generator.num_running + len(one.generator.pending)
            return under_way < min(one.generator.num_slots, self._max_batch)

        with self._changed:
            taker = min(filter(has_room, self._growing), key=Queued.claim, default=None)
            if taker is not None:
                taker.began = min(taker.began, time.monotonic())
        return taker

    def _end(self, one: Queued[Any], error: Exception | None = None) -> None:
        """Answers a request whose texts have ended, or gives it up."""
        try:
            if error is not None:
                raise error
            result = answer_of(one.argument, (stream.result() for stream in one.streams))
            if one.set_running_or_notify_cancel():
                one.set_result(result)
        except Exception as failure:
            error = failure
            one.fail(failure)
        with self._changed:
            self._growing.remove(one)
            self._changed.notify_all()
        now = time.monotonic()
        began = min(one.began, now)
        failed = error is not None and not isinstance(error, DeadlinePassed)
        self._observe(one.job, [began - one.since], now - began, failed)
