"""Requests of many clients, answered in batches by one thread that owns the devices.

    scheduler = Scheduler()
    future = scheduler.submit(service, accepted, deadline=time.monotonic() + 2.0)
    result = future.result()

Interactive requests go before bulk, but for every eighth time, and then the earliest deadline. A
batch is what has queued for the first one's job, of any tasks; requests of one history go together,
since it is encoded once. Between two batches, texts that grow one by one (`Service.texts`) take as
much time as the batch before took, a few steps at least: neither waits until the other is finished.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import heapq
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
from m6rec_jax.jobs.answering import Accepted, Result, check_finite
from m6rec_jax.jobs.generation import Texts
from m6rec_jax.serving.service import Service

log = logging.getLogger(__name__)

T = TypeVar("T")

# Receives a piece of a text: which text of the answer, and what it goes on with.
OnText = Callable[[int, str], None]

_CHARACTERS_PER_TOKEN = 4
# How much of the measured rate is that of the latest batch.
_SMOOTHING = 0.1
# Of so many batches, and slots of texts, that others take while bulk requests wait, they get one.
_BULK_EVERY = 8
# Seconds that texts may take between two batches.
_LONGEST_TURN = 0.25
# On a CPU a padded row costs as much as a real one.
_CPU_FILL = 0.5


class QueueFull(M6RecError):
    """More requests wait than the queue holds.

    Attributes:
      retry_after: seconds until the queue is done, at the measured rate.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class DeadlinePassed(M6RecError):
    """A request was not begun before its deadline, or its texts had not ended by then."""


class SchedulerClosed(M6RecError):
    """No requests are taken any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """What became of a batch, for metrics; a request whose texts grow is one by itself.

    Attributes:
      job: of all its requests; 'other' for functions.
      waits: seconds that each request waited.
      seconds: that the batch ran.
      failures: requests that ended in an error.
    """

    job: str
    waits: Sequence[float]
    seconds: float
    failures: int


class Queued(concurrent.futures.Future[T]):
    """An answer to come.

    Attributes:
      began: of `time.monotonic`, when it left the queue; until then it is infinite.
    """

    began = math.inf

    def set_running_or_notify_cancel(self) -> bool:
        """As of a `Future`."""
        self.began = min(self.began, time.monotonic())
        return super().set_running_or_notify_cancel()


@dataclasses.dataclass(slots=True, eq=False)
class _Entry:
    """A request in the queue, or one whose texts grow; entries of equal `group` may share a batch.

    Attributes:
      texts: what submits the texts that have no slot yet; None: they do not grow.
      streams: of those that have one.
    """

    group: Any
    run: Callable[[Sequence[_Entry]], list[Any]]
    deadline: float
    batch_sizes: Sequence[int] = (1,)
    tokens: int = 1
    accepted: Accepted | None = None
    argument: Any = None
    on_text: OnText | None = None
    texts: collections.deque[Callable[[], GenerationStream]] | None = None
    streams: list[GenerationStream] = dataclasses.field(default_factory=list)
    bulk: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)
    future: Queued[Any] = dataclasses.field(default_factory=Queued)

    @property
    def generator(self) -> ContinuousGenerator:
        """Of the snapshot that answers."""
        return self.group[0].parts.continuous_generator()

    def shared(self) -> Any:
        """What is encoded once for all requests of a batch for which it is equal."""
        if self.accepted is None:
            return self.bulk
        return self.bulk, self.accepted.task, tuple(self.accepted.text.history)

    def claim(self) -> tuple[bool, int]:
        """On a free slot, of a text that has none; the least goes first."""
        return self.bulk, sum(stream.finish_reason is None for stream in self.streams)


# By what the queue is ordered, and a request.
_Item = tuple[tuple[bool, float, int], _Entry]


@gin.configurable(denylist=["observe"])
class Scheduler:
    """Owns the devices; see the module. Methods may be called from any thread.

    Args:
      max_queue: requests that may wait; more raise `QueueFull`.
      max_batch: requests of a batch, and texts that grow beside each other, at most.
      max_tokens: of histories and candidates of a batch, at most; counted roughly, by characters.
      wait_ms: how long a request waits for others to share its batch.
      fill: least share of a padded batch that requests fill, so that padding does not cost more
        than sharing saves; None: half of it on a CPU, and anything elsewhere.
      observe: told of each batch.

    Raises:
      ConfigError: numbers that are impossible.
    """

    def __init__(
        self,
        *,
        max_queue: int = 512,
        max_batch: int = 32,
        max_tokens: int = 65536,
        wait_ms: float = 0.0,
        fill: float | None = None,
        observe: Callable[[Batch], None] | None = None,
    ) -> None:
        if min(max_queue, max_batch, max_tokens) < 1 or wait_ms < 0:
            raise ConfigError(
                f"Scheduler: max_queue = {max_queue}, max_batch = {max_batch} and max_tokens = "
                f"{max_tokens} must be at least 1, and wait_ms = {wait_ms} at least 0"
            )
        self._max_queue, self._max_batch, self._max_tokens = max_queue, max_batch, max_tokens
        self._wait = wait_ms / 1000
        # How often interactive requests went before bulk ones: into batches, and slots of texts.
        self._passed = {"batch": 0, "slot": 0}
        self._fill = fill
        self._observe = observe or (lambda batch: None)
        self._queue: list[_Item] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._running = 0
        self._growing: list[_Entry] = []
        self._generators = set[ContinuousGenerator]()  # that have texts
        self._closed = self._stopped = False
        self._batch_seconds = 0.0
        self._rate = 0.0
        self._thread = threading.Thread(target=self._work, name="m6rec-devices", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait, for a batch or for the first slot of their texts."""
        return len(self._queue)

    def submit(
        self,
        service: Service,
        accepted: Accepted,
        *,
        deadline: float | None = None,
        bulk: bool = False,
        on_text: OnText | None = None,
    ) -> Queued[Result]:
        """Queues a request.

        Args:
          service: that accepted it, and answers it.
          accepted: of `Service.accept`.
          deadline: of `time.monotonic`: a request that has not begun by then never does, and texts
            that grow must have ended; None: none.
          bulk: whether all interactive requests go first.
          on_text: receives generated texts in the scheduler's thread: piece by piece where they
            grow, else whole.

        Returns:
          The answer to come. It may end in `DeadlinePassed`, `SchedulerClosed`, or what
          `Service.answer` raises. Cancelled before it begins, the request takes no more time;
          texts that grow may be cancelled at any time.

        Raises:
          QueueFull, SchedulerClosed: it was not queued.
        """

        def run(entries: Sequence[_Entry]) -> list[Any]:
            return service.answer([entry.accepted for entry in entries if entry.accepted])

        text = accepted.text
        characters = sum(map(len, text.history)) + sum(map(len, text.candidates))
        tokens = characters // _CHARACTERS_PER_TOKEN + len(text.history) + 2 * len(text.candidates)
        group, sizes = (service, accepted.job), service.parts.batch_sizes
        entry = _Entry(group, run, _time(deadline), sizes, tokens, accepted, on_text=on_text)
        if (texts := service.texts(accepted)) is not None:
            entry.texts = collections.deque(texts)
        return self._put(entry, bulk)

    def call_together(
        self,
        function: Callable[[list[Any]], list[Any]],
        argument: Any,
        batch_sizes: Sequence[int],
        *,
        deadline: float | None = None,
        bulk: bool = False,
    ) -> Queued[Any]:
        """Queues one of the arguments of a function that takes many; as `submit`.

        Args:
          function: of a list, to a result for each; what has queued for an equal one shares a call.
          argument: to go into the list.
          batch_sizes: lengths of lists that are padded to.
          deadline, bulk: as of `submit`.
        """

        def run(entries: Sequence[_Entry]) -> list[Any]:
            return function([entry.argument for entry in entries])

        entry = _Entry(function, run, _time(deadline), batch_sizes, argument=argument)
        return self._put(entry, bulk)

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
            done = self._changed.wait_for(
                lambda: not (self._queue or self._running or self._growing), grace
            )
            left, self._queue = self._queue, []
            self._stopped = True
            self._changed.notify_all()
        for _, entry in left:
            _fail(entry, SchedulerClosed("the server is shutting down"))
        return done

    def _put(self, entry: _Entry, bulk: bool) -> Queued[Any]:
        entry.bulk = bulk
        with self._changed:
            if self._closed:
                raise SchedulerClosed("the server is shutting down")
            if len(self._queue) >= self._max_queue:
                self._drop_dead()
            if (waiting := len(self._queue)) >= self._max_queue:
                raise QueueFull(waiting, math.ceil(waiting / self._rate) if self._rate else 1)
            heapq.heappush(self._queue, ((bulk, entry.deadline, next(self._numbers)), entry))
            self._changed.notify_all()
        return entry.future

    def _drop_dead(self) -> None:
        """Takes cancelled and late requests out of the queue; the caller holds the lock."""
        now = time.monotonic()
        kept = []
        for item in self._queue:
            entry = item[1]
            if entry.deadline < now:
                _fail(entry, DeadlinePassed("the request waited until after its deadline"))
            elif not entry.future.cancelled():
                kept.append(item)
        heapq.heapify(kept)
        self._queue = kept

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._queue or self._growing or self._generators or self._stopped
                )
                if self._stopped:
                    break
                if self._wait and not self._growing:
                    # Until enough have come, or time has passed, or nothing comes any more.
                    self._changed.wait_for(
                        lambda: len(self._queue) >= self._max_batch or self._closed, self._wait
                    )
                batch = self._take()
                self._running = len(batch)
            until = time.monotonic() + min(self._batch_seconds, _LONGEST_TURN)
            self._grow()
            while self._growing and time.monotonic() < until:
                self._grow()
            self._batch_seconds = 0.0
            if batch:
                self._run(batch)
            with self._changed:
                self._running = 0
                self._changed.notify_all()
        with self._changed:
            left, self._growing = self._growing, []
        for entry in left:
            _give_up(entry, SchedulerClosed("the server is shutting down"))

    def _grow(self) -> None:
        """Lets texts into free slots, takes a few steps, hands on what they say."""
        now = time.monotonic()
        for entry in list(self._growing):
            if entry.future.cancelled():
                self._end(entry)
            elif entry.deadline < now:
                self._end(
                    entry, DeadlinePassed("the request's deadline came before its text's end")
                )
        while (taker := self._next_text()) is not None:
            try:
                if taker.texts:
                    taker.streams.append(taker.texts.popleft()())
                    self._generators.add(taker.generator)
            except Exception as error:
                self._end(taker, error)
        for generator in list(self._generators):
            if not generator.step():
                self._generators.remove(generator)
        for entry in list(self._growing):
            # First: pieces come before a text's end.
            ended = not entry.texts and all(stream.finish_reason for stream in entry.streams)
            if entry.on_text is not None:
                for index, stream in enumerate(entry.streams):
                    for piece in stream.take():
                        _tell(entry.on_text, index, piece)
            if ended:
                self._end(entry)

    def _next_text(self) -> _Entry | None:
        """Whose text gets the next free slot: who has the fewest, those first that began.

        A request with many texts leaves slots to others as they come.
        """

        def has_room(entry: _Entry) -> bool:
            generator = entry.generator
            under_way = generator.num_running + generator.num_pending
            return under_way < min(generator.num_slots, self._max_batch)

        with self._changed:
            known = [entry for entry in self._growing if entry.texts and has_room(entry)]
            best = min(known, key=_Entry.claim, default=None)
            waiting = [i for i in self._queue if i[1].texts is not None and has_room(i[1])]
            item = self._first("slot", waiting)
            if item is None:
                return best
            own_turn = item[1].bulk and item is not min(waiting)
            if best is not None and not own_turn and best.claim() <= item[1].claim():
                return best
            self._queue.remove(item)
            heapq.heapify(self._queue)
            item[1].future.began = time.monotonic()
            self._growing.append(item[1])
            return item[1]

    def _end(self, entry: _Entry, error: Exception | None = None) -> None:
        """Answers a request whose texts have ended, or gives it up."""
        if error is None and not entry.future.cancelled():
            assert entry.accepted is not None  # as of all that texts are written for
            try:
                result = Texts.of(stream.result() for stream in entry.streams)
                check_finite([entry.accepted], [result.log_probabilities])
            except Exception as failure:
                error = failure
            else:
                if entry.future.set_running_or_notify_cancel():
                    entry.future.set_result(result)
        if error is not None or entry.future.cancelled():
            _give_up(entry, error)
        with self._changed:
            number = len(self._growing)
            self._growing.remove(entry)
            self._changed.notify_all()
        began = entry.future.began
        seconds = time.monotonic() - began
        self._measure(number / max(seconds, 1e-6))
        job = entry.accepted.job if entry.accepted else "other"
        failed = error is not None and not isinstance(error, DeadlinePassed | SchedulerClosed)
        self._observe(Batch(job, [began - entry.since], seconds, failed))

    def _take(self) -> list[_Entry]:
        """The next batch, out of the queue; the caller holds the lock."""
        self._drop_dead()
        first = self._first("batch", [item for item in self._queue if item[1].texts is None])
        if first is None:
            return []
        sharing: dict[Any, list[_Item]] = {first[1].shared(): [first]}
        for item in sorted(self._queue):
            entry = item[1]
            if item is not first and entry.texts is None and entry.group == first[1].group:
                sharing.setdefault(entry.shared(), []).append(item)
        members: list[_Item] = []
        tokens = 0
        for item in itertools.chain.from_iterable(sharing.values()):
            entry = item[1]
            if len(members) == self._max_batch:
                break
            if members and tokens + entry.tokens > self._max_tokens:
                continue
            members.append(item)
            tokens += entry.tokens
        members = members[: self._well_filled(len(members), first[1].batch_sizes)]
        taken = {item[0] for item in members}
        self._queue = [item for item in self._queue if item[0] not in taken]
        heapq.heapify(self._queue)
        # A future that runs can no longer be cancelled.
        return [e for _, e in members if e.future.set_running_or_notify_cancel()]

    def _first(self, what: str, waiting: Sequence[_Item]) -> _Item | None:
        """Who goes first; a bulk request where enough others have gone before it."""
        first = min(waiting, default=None)
        bulk = min((item for item in waiting if item[1].bulk), default=None)
        if first is None or bulk is None or first is bulk:
            return first
        self._passed[what] = (self._passed[what] + 1) % _BULK_EVERY
        return first if self._passed[what] else bulk

    def _well_filled(self, number: int, sizes: Sequence[int]) -> int:
        """How many of `number` requests fill a padded batch."""
        if self._fill is None:
            self._fill = _CPU_FILL if jax.default_backend() == "cpu" else 0.0
        filled = [size for size in sizes if number >= size * self._fill]
        return min(number, max(filled, default=min(sizes)))

    def _run(self, batch: Sequence[_Entry]) -> None:
        began = time.monotonic()
        failures = self._answer(batch)
        seconds = self._batch_seconds = time.monotonic() - began
        self._measure(len(batch) / max(seconds, 1e-6))
        job = "other" if batch[0].accepted is None else batch[0].accepted.job
        self._observe(Batch(job, [began - entry.since for entry in batch], seconds, failures))

    def _measure(self, rate: float) -> None:
        self._rate = rate if not self._rate else self._rate + _SMOOTHING * (rate - self._rate)

    def _answer(self, batch: Sequence[_Entry]) -> int:
        """Answers requests, each by itself where they fail together; returns how many failed."""
        try:
            results = batch[0].run(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return 1
            # One of them cannot be answered; the others can.
            log.warning("a batch of %d failed (%s)", len(batch), type(error).__name__)
            return sum(self._answer([entry]) for entry in batch)
        for entry, result in zip(batch, results, strict=True):
            _finish(entry, result)
        return 0


def _time(deadline: float | None) -> float:
    return math.inf if deadline is None else deadline


def _finish(entry: _Entry, result: Any) -> None:
    if entry.on_text is not None:
        for index, text in enumerate(getattr(result, "texts", ())):
            _tell(entry.on_text, index, text)
    entry.future.set_result(result)


def _tell(on_text: OnText, index: int, piece: str) -> None:
    # A listener that has gone must not end the thread.
    with contextlib.suppress(Exception):
        on_text(index, piece)


def _give_up(entry: _Entry, error: Exception | None) -> None:
    """Frees slots at the next step; where the client has gone, nobody hears of the error."""
    for stream in entry.streams:
        stream.cancel()
    if error is not None:
        _fail(entry, error)


def _fail(entry: _Entry, error: Exception) -> None:
    if entry.future.set_running_or_notify_cancel():
        entry.future.set_exception(error)
