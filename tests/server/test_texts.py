"""Texts that grow one by one in the scheduler's thread, beside everything else."""

import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import jax
import pytest

from m6rec_jax.engine.decoding.continuous import ContinuousGenerator
from m6rec_jax.jobs.answering import Accepted
from m6rec_jax.server.app import make_app
from m6rec_jax.server.metrics import PROGRAMS
from m6rec_jax.server.snapshots import Server
from m6rec_jax.serving.scheduler import DeadlinePassed, Scheduler, SchedulerClosed
from m6rec_jax.serving.service import Service
from tests.server import served
from tests.server.served import request
from tests.server.test_routes import wait_until

WAIT = 30


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler()
    yield made
    made.close(WAIT)


class Gate:
    """Lets a generator take steps one by one, until `open`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._allowed, self._open, self._taken = threading.Semaphore(0), False, 0
        step = ContinuousGenerator.step

        def held(generator: ContinuousGenerator) -> bool:
            assert self._open or self._allowed.acquire(timeout=WAIT)
            more = step(generator)
            self._taken += 1
            return more

        monkeypatch.setattr(ContinuousGenerator, "step", held)

    def step(self, number: int = 1) -> None:
        for _ in range(number):
            before = self._taken
            self._allowed.release()
            wait_until(lambda taken=before: self._taken > taken)  # type: ignore[misc]

    def open(self) -> None:
        self._open = True
        self._allowed.release()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, scheduler: Scheduler) -> Iterator[Gate]:
    del scheduler  # is closed after the gate has been opened
    made = Gate(monkeypatch)
    yield made
    made.open()


def accept(service: Service, number: int, task: str, **changes: Any) -> Accepted:
    accepted = service.accept(request(number) | changes, task=task, number=number)
    assert isinstance(accepted, Accepted), accepted
    return accepted


def assert_texts(found: Any, expected: Any) -> None:
    assert [(text.text, text.ended) for text in found.texts] == [
        (text.text, text.ended) for text in expected.texts
    ]
    assert log_probabilities(found) == pytest.approx(log_probabilities(expected), abs=1e-4)


def log_probabilities(answer: Any) -> list[float]:
    return [text.log_probability for text in answer.texts]


@pytest.mark.parametrize("temperature", [0, 1])
def test_texts_are_those_of_whole_batches(
    folder: Path, scheduler: Scheduler, temperature: int
) -> None:
    service = served.open_service(folder, index=None)
    with gin.unlock_config():
        gin.parse_config(
            f"Decoding.temperature = {temperature}\nDecoding.seed = 3\nDecoding.top_p = 0.9"
        )
    try:
        asked = [accept(service, n, ("titles", "contents")[n % 2]) for n in range(8)]
    finally:
        gin.clear_config()
    assert any(len(one.request.candidates) > 1 for one in asked)
    heard: dict[tuple[int, int], str] = {}

    def listen(number: int) -> Callable[[int, str], None]:
        def put(index: int, piece: str) -> None:
            heard[number, index] = heard.get((number, index), "") + piece

        return put

    futures = [scheduler.submit(one, on_text=listen(number)) for number, one in enumerate(asked)]
    for number, (one, future) in enumerate(zip(asked, futures, strict=True)):
        found: Any = future.result(WAIT)
        (expected,) = service.answer([one])
        assert_texts(found, expected)
        assert [heard.get((number, i), "") for i in range(len(found.texts))] == [
            text.text for text in found.texts
        ]


def test_a_score_does_not_wait_for_a_text(
    service: Service, scheduler: Scheduler, gate: Gate
) -> None:
    pieces: list[str] = []
    text = scheduler.submit(
        accept(service, 1, "contents"), on_text=lambda _, piece: pieces.append(piece)
    )
    gate.step(3)
    wait_until(lambda: bool(pieces))
    score = accept(service, 3, "ctr")
    asked = scheduler.submit(score)
    gate.step(2)  # at most the one it was at, and one more
    found: Any = asked.result(WAIT)
    assert not text.done()
    gate.open()
    answered: Any = text.result(WAIT)
    assert "".join(pieces) == answered.texts[0].text
    (expected,) = service.answer([score])
    probabilities = found.values["probabilities"]
    assert probabilities == pytest.approx(expected.values["probabilities"], abs=2e-6)


def test_many_texts_leave_slots_to_others(
    service: Service, scheduler: Scheduler, gate: Gate
) -> None:
    films = [f"f{n % 12}" for n in range(40)]
    many = scheduler.submit(accept(service, 1, "titles", candidates=films))
    gate.step()
    wait_until(lambda: service.continuous_generator().num_running > 0)
    one = scheduler.submit(accept(service, 2, "contents"))
    assert scheduler.depth == 1
    gate.open()
    one.result(WAIT)
    assert not many.done()
    found: Any = many.result(WAIT)
    texts = found.values["texts"]
    assert len(texts) == 40
    assert texts[:12] == texts[12:24]


def test_cancelled_late_and_closed(service: Service, scheduler: Scheduler, gate: Gate) -> None:
    generator = service.continuous_generator()
    asked = accept(service, 1, "contents")
    gone = scheduler.submit(asked)
    late = scheduler.submit(asked, deadline=time.monotonic() + 1)
    kept = scheduler.submit(asked)
    gate.step(2)
    wait_until(lambda: generator.num_running == 3 or late.done())
    assert gone.cancel()
    time.sleep(1)
    gate.step(2)  # the one it was at, and one that frees them
    with pytest.raises(DeadlinePassed):
        late.result(WAIT)
    wait_until(lambda: generator.num_running == 1)
    gate.open()
    assert scheduler.close(WAIT)
    (expected,) = service.answer([asked])
    assert_texts(kept.result(0), expected)


def test_a_step_that_fails_ends_its_texts_alone(
    service: Service, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ContinuousGenerator.step

    def fail(generator: ContinuousGenerator) -> bool:
        monkeypatch.setattr(ContinuousGenerator, "step", step)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ContinuousGenerator, "step", fail)
    asked = accept(service, 1, "contents")
    with pytest.raises(RuntimeError, match="out of memory"):
        scheduler.submit(asked).result(WAIT)
    (expected,) = service.answer([asked])
    assert_texts(scheduler.submit(asked).result(WAIT), expected)


def test_closing_does_not_wait_for_ever(service: Service, gate: Gate) -> None:
    own = Scheduler()
    text = own.submit(accept(service, 1, "contents"))
    gate.step()
    assert not own.close(0.05)
    gate.open()
    with pytest.raises(SchedulerClosed):
        text.result(WAIT)
    assert service.continuous_generator().step() is False  # its slot is free


def test_a_text_ends_with_the_snapshot_that_began_it(
    folder: Path, scheduler: Scheduler, gate: Gate
) -> None:
    service = served.open_service(folder, index=None)
    service.warm_up()
    bank: Any = service.model
    prompts = jax.tree.map(lambda leaf: leaf * 1.5 + 0.1, bank.variables["prompts"])
    other = dataclasses.replace(bank, variables={**bank.variables, "prompts": prompts})
    asked = accept(service, 1, "contents")
    (expected,) = service.answer([asked])
    programs = PROGRAMS.made
    pieces: list[str] = []
    before = scheduler.submit(asked, on_text=lambda _, piece: pieces.append(piece))
    gate.step(3)
    wait_until(lambda: bool(pieces))
    new = service.changed(model=other)
    new.warm_up()
    asked = accept(new, 1, "contents")
    after = scheduler.submit(asked)
    gate.open()
    assert_texts(before.result(WAIT), expected)
    found = after.result(WAIT)
    assert PROGRAMS.made == programs
    (own,) = new.answer([asked])
    assert_texts(found, own)
    assert log_probabilities(found) != log_probabilities(expected)


def test_who_hangs_up_frees_the_slot_of_a_text(
    server: Server, listen: Callable[[Any], str], service: Service, gate: Gate
) -> None:
    generator = service.continuous_generator()
    port = int(listen(make_app(server)).rpartition(":")[2])
    body = json.dumps({"model": "contents", "prompt": "a", "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        gate.step(3)
        wait_until(lambda: generator.num_running == 1)
        (entry,) = server.scheduler._requests
        while b'"text"' not in connection.recv(4096):
            pass
    wait_until(entry.cancelled)
    gate.step(2)
    wait_until(lambda: generator.num_running == 0)
    assert entry.streams[0].finish_reason == "cancelled"
