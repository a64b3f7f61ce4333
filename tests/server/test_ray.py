"""`m6rec serve --engine ray`: two replicas on this machine, one killed under load."""

import asyncio
import concurrent.futures
import http.client
import json
import os
import re
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from m6rec_jax.errors import ConfigError
from m6rec_jax.server import page, ray_engine
from m6rec_jax.server.access import Tokens
from m6rec_jax.server.metrics import Metrics
from m6rec_jax.server.ray_engine import Front, Replica, Replicas, _OfReplicas, user_of
from m6rec_jax.server.tracing import with_spans
from tests.server.served import request
from tests.server.test_command import Running, ask

ADMIN = "an admin's token of a test"


def test_a_user_is_known_by_what_stays_as_the_history_grows() -> None:
    def user(row: Any, session: str | None = None) -> str:
        return user_of(json.dumps(row).encode(), session)

    first, second = {"item": "f1", "time": 1}, {"item": "f2", "time": 2}
    young = {"age": 20}
    assert user({"user": young, "history": [first]}) == user(
        {"user": young, "history": [first, second], "candidates": ["f3"], "task": "ctr"}
    )
    assert user({"user": young, "history": [first]}) != user({"user": young, "history": [second]})
    known = {"user": {"id": "7"} | young, "history": [first]}
    assert user(known) == user({"user": {"id": "7"}, "history": [second]}) != ""
    assert user(known) == user({"instances": [known]}) == user({"query": known, "documents": []})
    assert user(known) == user({"model": "reasons", "prompt": known, "item": "f1"})
    assert user({"query": "24 years old\nliked A"}) == user(
        {"prompt": ["24 years old\nliked A\nliked B", "other"]}
    )
    greeting = {"role": "user", "content": "hello"}
    assert user({"messages": [greeting]}) == user({"messages": [greeting, greeting]}) != ""
    assert user(known, "tab 3") == "tab 3"
    for body in (b"{", b"\xff", b"[]", b"{}", b'{"instances": []}', b"[" * 100_000):
        assert user_of(body) == ""


def test_metrics_of_replicas_stand_beside_each_other() -> None:
    found = []
    for process in (1, 2):
        metrics = Metrics()
        metrics.requests.labels("GET", "/", 200).inc(process)
        found.append((process, list(metrics.registry.collect())))
    registry = CollectorRegistry()
    registry.register(_OfReplicas(found))
    text = generate_latest(registry).decode()
    counted = {
        sample.labels["replica"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "m6rec_http_requests_total"
    }
    assert counted == {"1": 1.0, "2": 2.0}
    assert text.count("# TYPE m6rec_http_requests_total counter") == 1


def test_impossible_numbers_of_replicas() -> None:
    with pytest.raises(ConfigError, match=r"min_replicas = 3 .*max_replicas = 2"):
        Replicas(min_replicas=3, max_replicas=2)


def test_what_is_answered_while_replicas_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page, which waits, and probes, as the plain server."""
    client = TestClient(Front(1.0, Tokens()))
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/models").json()["error"]["code"] == "not_ready"
    for path in page.PAGE:
        assert client.get(path).content == page.file(path).body
    for route in ("/healthz", "/"):
        monkeypatch.setenv("AIP_HEALTH_ROUTE", route)
        assert client.get(route).status_code == 503


def test_a_replica_names_traces_by_routes(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(ray_engine, "trace", lambda app: with_spans(app, provider))
    monkeypatch.setattr(ray_engine, "set_up_process", lambda *_: None)
    loaded: Any = SimpleNamespace(server=lambda: server, load=lambda _: None)
    replica = Replica(loaded, "", Tokens(), "")

    async def ask() -> list[Any]:
        scope = {"type": "http", "method": "GET", "path": "/v1/models/ctr", "headers": []}
        return [piece async for piece in replica.answer(scope | {"query_string": b""}, b"")]

    asyncio.run(ask())
    assert [span.name for span in spans.get_finished_spans()] == ["GET /v1/models/{name}"]


class Replies:
    """In place of Ray's handle: a list of what replicas answer, call by call."""

    def __init__(self, *calls: Any) -> None:
        self._calls = iter(calls)

    def options(self, **_: Any) -> "Replies":
        return self

    def remote(self, *_: Any) -> "Replies":
        return Replies(*next(self._calls))

    async def __aiter__(self) -> AsyncIterator[Any]:
        for reply in self._calls:
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, float):
                await asyncio.sleep(reply)
            else:
                yield reply

    def cancel(self) -> None:
        """As of a response of Ray's."""


def test_what_becomes_of_a_request_whose_replica_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="needs the extra ray: make ray")
    full = pytest.importorskip("ray.serve.exceptions").BackPressureError(
        num_queued_requests=1, max_queued_requests=1
    )
    died = exceptions.ActorDiedError()
    monkeypatch.setattr(ray_engine, "_PATIENCE", 0.0)
    start = {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/event-stream")],
    }

    def piece(text: str, more: bool = True) -> dict[str, Any]:
        body = f"data: {text}\n\n".encode()
        return {"type": "http.response.body", "body": body, "more_body": more}

    def answered(*calls: Any) -> tuple[int, str]:
        front = Front(0.2, Tokens())
        front.handle = Replies(*calls)
        response = TestClient(front).post("/v1/completions", json={})
        return response.status_code, response.text

    whole = [start, piece("all", more=False)]
    assert answered([died], [whole]) == answered([whole, died]) == (200, "data: all\n\n")
    status, text = answered([died], [died], [whole])
    assert (status, json.loads(text)["error"]["code"]) == (503, "replica_lost")
    status, text = answered([[start, piece("1")], died], [whole])
    events = re.findall(r"^data: (.*)$", text, re.MULTILINE)
    assert (status, events[0], events[-1]) == (200, "1", "[DONE]")
    assert json.loads(events[1])["error"]["code"] == "replica_lost"
    status, text = answered([full])
    assert (status, json.loads(text)["error"]["code"]) == (429, "queue_full")
    status, text = answered([5.0])
    assert (status, json.loads(text)["error"]["code"]) == (504, "deadline_passed")
    # Texts may take longer, once they have begun.
    status, text = answered([[start, piece("1")], 0.5, [piece("2", more=False)]])
    assert (status, text) == (200, "data: 1\n\ndata: 2\n\n")


def counts(address: str) -> dict[int, float]:
    """Requests of the scoring route that each replica has answered, by its process."""
    with urllib.request.urlopen(address + "/metrics", timeout=30) as response:
        text = response.read().decode()
    found: dict[int, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "m6rec_ready":
                found.setdefault(int(sample.labels["replica"]), 0.0)
            if sample.name == "m6rec_http_requests_total" and sample.labels["route"] == "/v1/score":
                process = int(sample.labels["replica"])
                found[process] = found.get(process, 0.0) + sample.value
    return found


def stream(address: str, body: Any) -> list[str]:
    """Events of a text, until the last."""
    host = urllib.parse.urlsplit(address).netloc
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    return re.findall(r"^data: (.*)$", response.read().decode(), re.MULTILINE)


def until(condition: Any, seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def ray(folder: Path) -> Any:
    pytest.importorskip("ray.serve", reason="needs the extra ray: make ray")
    token = folder / "admin_token"
    token.write_text(ADMIN)
    served = Running(
        folder,
        *("run", "--bank", "bank", "--index", "index", "--port", "0", "--engine", "ray"),
        *("--admin-token-file", str(token), "--gin.PREPARED='data'"),
        *("--gin.load_bank.tasks=['ctr', 'titles']", "--gin.Replicas.resources={'CPU': 0}"),
        *("--gin.Replicas.min_replicas=2", "--gin.Replicas.max_replicas=2"),
    )
    yield served
    served.process.kill()
    served.process.communicate()


def test_two_replicas_and_one_is_killed_under_load(ray: Any, server: Any) -> None:
    address = ray.until(r"^(http://127\.0\.0\.1:\d+) ")[1]
    assert ask(address, "/healthz")[0] == 200
    assert ask(address, "/v1/models")[1]["error"]["code"] == "not_ready"
    ray.until(r"ready in [\d.]+ s: 2 replicas")
    assert ask(address, "/readyz") == (200, {"ready": True})

    # A user is answered by one replica, several users by both.
    before = counts(address)
    assert len(before) == 2
    body = request(3) | {"task": "ctr"}
    expected = ask(address, "/v1/score", body)
    for _ in range(9):
        assert ask(address, "/v1/score", body) == expected
    (own,) = [process for process, count in counts(address).items() if count]
    assert counts(address)[own] == 10
    bodies = [body | {"user": {"id": f"u{n}", "taste": "comedy"}} for n in range(12)]
    for one in bodies:
        assert ask(address, "/v1/score", one)[0] == 200
    assert all(counts(address).values())

    # Errors are the plain server's, and changes are refused.
    assert (
        ask(address, "/v1/score", body | {"candidates": ["?"]})[1]["error"]["code"]
        == "unknown_item"
    )
    change = urllib.request.Request(
        address + "/v1/admin/data",
        b"{}",
        {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN}"},
        method="PUT",
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(change, timeout=30)
    assert refused.value.code == 501
    text = {"model": "titles", "prompt": "user, likes comedy", "stream": True}
    events = stream(address, text)
    assert events[-1] == "[DONE]"
    assert len(events) > 2

    statuses: list[int] = []
    stop = time.monotonic() + 240

    def load(number: int) -> None:
        while time.monotonic() < stop:
            statuses.append(ask(address, "/v1/score", bodies[number])[0])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        loads = [pool.submit(load, number) for number in range(8)]
        until(lambda: len(statuses) > 40)
        os.kill(own, signal.SIGKILL)
        at = len(statuses)
        until(lambda: len(statuses) > at + 100)
        # It comes back under load, and has users again.
        back = until(lambda: len(set(counts(address)) - {own}) == 2)
        assert back
        again = until(lambda: all(list(counts(address).values())) and counts(address))
        assert len(again) == 2
        stop = 0.0
        for one in loads:
            one.result(60)
    assert set(statuses) == {200}

    ray.process.send_signal(signal.SIGTERM)
    output, _ = ray.process.communicate(timeout=60)
    assert ray.process.returncode == 0, output
    assert "all requests are answered" in output
    assert "comedy" not in "".join(ray.lines) + output
