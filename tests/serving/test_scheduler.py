"""The scheduler, over a service that only writes down what it is asked."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.requests.rendering import RequestText
from m6rec_jax.serving.scheduler import (
    DeadlinePassed,
    QueueFull,
    Scheduler,
    SchedulerClosed,
)

WAIT = 10


class Service:
    """Answers with the numbers of requests; -1 cannot be answered, by whichever batch."""

    def __init__(self, sizes: Sequence[int] = (1, 8)) -> None:
        self.batch_sizes = sizes
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.begun = threading.Event()

    def asked(self, number: int, job: str = "scoring") -> Accepted:
        handler: Any = SimpleNamespace(
            job=job, group=job, resources=self, answer=self.answer, texts=lambda _: None
        )
        request: Any = None
        return Accepted(handler, request, RequestText([str(number)], []), number)

    def answer(self, accepted: Sequence[Accepted]) -> list[Any]:
        self.begun.set()
        assert self.go.wait(WAIT)
        self.batches.append([one.number for one in accepted])
        if any(one.number == -1 for one in accepted):
            raise RuntimeError("no")
        return [
            SimpleNamespace(number=one.number, texts=[SimpleNamespace(text=f"{one.number}")])
            for one in accepted
        ]


@pytest.fixture
def schedulers() -> Iterator[Any]:
    made: list[Scheduler] = []

    def make(**options: Any) -> Scheduler:
        made.append(Scheduler(**{"max_running": 1} | options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def blocked(scheduler: Scheduler, service: Service) -> Any:
    """A request that runs until `service.go`, so that others queue."""
    first = scheduler.submit(service.asked(0))
    assert service.begun.wait(WAIT)
    return first


def test_the_earliest_deadline_goes_first(schedulers: Any) -> None:
    scheduler, service = schedulers(max_batch=1), Service()
    futures, now = [blocked(scheduler, service)], time.monotonic()
    for number, deadline in enumerate((math.inf, now + 99, now + 80, math.inf), 1):
        futures.append(scheduler.submit(service.asked(number), deadline=deadline))
    assert scheduler.depth == 4
    service.go.set()
    for future in futures:
        future.result(WAIT)
    assert service.batches == [[0], [3], [2], [1], [4]]


def test_a_function_of_many_is_called_with_those_that_queue(schedulers: Any) -> None:
    scheduler, service, lists = schedulers(), Service(), list[list[int]]()

    def doubled(numbers: list[int]) -> list[int]:
        lists.append(numbers)
        return [2 * number for number in numbers]

    futures = [blocked(scheduler, service)]
    futures += [scheduler.call_together(doubled, number, (1, 3)) for number in range(3)]
    service.go.set()
    assert [future.result(WAIT) for future in futures[1:]] == [0, 2, 4]
    assert lists == [[0, 1, 2]]


def test_a_batch_is_of_one_job(schedulers: Any) -> None:
    seen: list[tuple[Any, ...]] = []
    scheduler, service = (
        schedulers(max_batch=4, observe=lambda *batch: seen.append(batch)),
        Service((1, 4)),
    )
    futures = [blocked(scheduler, service)]
    for number in range(1, 10):
        job = "retrieval" if number % 3 == 0 else "scoring"
        futures.append(scheduler.submit(service.asked(number, job)))
    service.go.set()
    for future in futures:
        future.result(WAIT)
    assert service.batches == [[0], [1, 2, 4, 5], [3, 6, 9], [7, 8]]
    while len(seen) < 4:  # the last one is told after its futures are done
        time.sleep(0.001)
    assert [(job, len(waits)) for job, waits, *_ in seen[1:3]] == [
        ("scoring", 4),
        ("retrieval", 3),
    ]


def test_beside_a_batch_another_begins_once_it_is_full(schedulers: Any) -> None:
    scheduler, slow, quick = (
        schedulers(max_running=2, max_batch=4),
        Service((1, 4)),
        Service((1, 4)),
    )
    first = blocked(scheduler, slow)
    quick.go.set()
    some = [scheduler.submit(quick.asked(n)) for n in range(3)]
    time.sleep(0.05)
    assert not any(future.done() for future in some)
    some.append(scheduler.submit(quick.asked(3)))
    assert [future.result(WAIT).number for future in some] == [0, 1, 2, 3]
    assert not first.done()
    assert quick.batches == [[0, 1, 2, 3]]
    slow.go.set()


PADDED = [(1, 1, 1), (3, 1, 1), (4, 1, 4), (7, 1, 7), (8, 1, 8), (15, 1, 8), (16, 1, 16)]
# The last: one by one they would be padded to as many.
PADDED += [(40, 1, 32), (3, 8, 3)]


@pytest.mark.parametrize(("waiting", "smallest", "taken"), PADDED)
def test_padding_is_worth_it(schedulers: Any, waiting: int, smallest: int, taken: int) -> None:
    """At least half of a padded batch is filled: a CPU computes padding, too."""
    scheduler, service = schedulers(), Service((smallest, 8, 32))
    futures = [blocked(scheduler, service)]
    futures += [scheduler.submit(service.asked(n)) for n in range(1, waiting + 1)]
    service.go.set()
    for future in futures:
        future.result(WAIT)
    assert len(service.batches[1]) == taken


def test_one_that_cannot_be_answered_harms_no_other(schedulers: Any) -> None:
    scheduler, service = schedulers(), Service()
    futures = [blocked(scheduler, service)]
    futures += [scheduler.submit(service.asked(n)) for n in (1, -1, 2)]
    service.go.set()
    assert [futures[n].result(WAIT).number for n in (1, 3)] == [1, 2]
    with pytest.raises(RuntimeError, match="no"):
        futures[2].result(WAIT)
    assert scheduler.submit(service.asked(3)).result(WAIT).number == 3


def test_late_and_cancelled_requests_take_no_time(schedulers: Any) -> None:
    scheduler, service = schedulers(max_queue=3), Service((1, 3))
    first = blocked(scheduler, service)
    late = scheduler.submit(service.asked(1), deadline=time.monotonic() - 1)
    gone = scheduler.submit(service.asked(2))
    kept = scheduler.submit(service.asked(3))
    assert gone.cancel()
    # The queue has room again, of those that nobody waits for.
    scheduler.submit(service.asked(4))
    scheduler.submit(service.asked(5))
    with pytest.raises(QueueFull):
        scheduler.submit(service.asked(6))
    with pytest.raises(DeadlinePassed):
        late.result(WAIT)
    service.go.set()
    assert kept.result(WAIT).number == 3
    assert first.result(WAIT).number == 0
    assert service.batches == [[0], [3, 4, 5]]


def test_a_deadline_ends_a_request_while_others_run(schedulers: Any) -> None:
    scheduler, service = schedulers(), Service()
    first = blocked(scheduler, service)
    late = scheduler.submit(service.asked(1), deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlinePassed):
        late.result(WAIT)
    assert not first.done()
    assert scheduler.depth == 0
    service.go.set()


def test_texts_come_by_pieces_and_a_listener_that_fails_harms_nobody(schedulers: Any) -> None:
    scheduler, service = schedulers(), Service()
    service.go.set()
    heard: list[tuple[int, str]] = []
    scheduler.submit(
        service.asked(7), on_text=lambda index, text: heard.append((index, text))
    ).result(WAIT)
    assert heard == [(0, "7")]

    def fail(index: int, text: str) -> None:
        raise RuntimeError(text)

    assert scheduler.submit(service.asked(8), on_text=fail).result(WAIT).number == 8
    assert scheduler.submit(service.asked(9)).result(WAIT).number == 9


def test_closing_finishes_what_there_is(schedulers: Any) -> None:
    scheduler, service = schedulers(max_batch=1), Service()
    futures = [blocked(scheduler, service)]
    futures += [scheduler.submit(service.asked(n)) for n in (1, 2)]
    threading.Timer(0.05, service.go.set).start()
    assert scheduler.close(WAIT)
    assert [future.result(0).number for future in futures] == [0, 1, 2]
    with pytest.raises(SchedulerClosed):
        scheduler.submit(service.asked(3))

    hasty, stuck = schedulers(max_batch=1), Service()
    running = blocked(hasty, stuck)
    waiting = hasty.submit(stuck.asked(1))
    assert not hasty.close(0.01)
    with pytest.raises(SchedulerClosed):
        waiting.result(0)
    stuck.go.set()
    assert running.result(WAIT).number == 0
