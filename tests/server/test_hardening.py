"""What clients should not send, tokens, full queues, deadlines, clients that hang up."""

import asyncio
import concurrent.futures
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m6rec_jax.errors import ConfigError
from m6rec_jax.server import errors
from m6rec_jax.server.access import Tokens
from m6rec_jax.server.app import make_app
from m6rec_jax.server.asking import events
from m6rec_jax.server.snapshots import Server
from m6rec_jax.serving.service import Service
from tests.server import served
from tests.server.served import request
from tests.server.test_routes import failed, fields_of, post, wait_until

ROUTES = [
    *("/v1/score", "/v1/retrieve", "/v1/recommend", "/v1/explain", "/v1/write", "/v1/rerank"),
    *("/v1/embeddings", "/v1/completions", "/v1/chat/completions", "/predict"),
]
SCORE = request(3) | {"task": "ctr"}


@pytest.fixture
def small(server: Server) -> Iterator[Callable[..., Any]]:
    """Servers with other limits and queues, over the snapshot that there is."""
    made: list[Server] = []

    def make(tokens: Tokens | None = None, body_bytes: int = 8 << 20, **options: Any) -> Any:
        own = served.make_server(None, **options)
        own._current = server.current
        made.append(own)
        return own, TestClient(
            make_app(own, tokens, body_bytes=body_bytes), raise_server_exceptions=False
        )

    yield make
    for own in made:
        own.scheduler.close(10)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_field"),
        (b"{half", 400, "invalid_json"),
        (b"9" * 5000, 400, "invalid_json"),
        (b"[]", 422, "invalid_field"),
        (b'"text"', 422, "invalid_field"),
        (b'{"task": "\xff"}', 400, "invalid_json"),
        (b'{"task": "\\ud800"}', 400, "invalid_json"),
        (b'{"time": NaN}', 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b"[" * 16 + b"]" * 16, 422, "invalid_field"),
    ],
)
def test_bodies_that_are_no_requests(
    client: TestClient, body: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    for route in ROUTES:
        response = client.post(route, content=body, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), route


def test_bodies_have_bounds(small: Callable[..., Any]) -> None:
    _, client = small(body_bytes=400_000)
    event = {"item": "f1", "time": 1000.0, "value": 3}
    for route, changes, path in (
        ("score", {"candidates": ["f1"] * 1001}, "candidates"),
        ("score", {"history": [event] * 1001}, "history"),
        ("retrieve", {"exclude": ["f1"] * 10_001}, "exclude"),
        ("retrieve", {"k": 1001}, "k"),
    ):
        body = WELL_FORMED[f"/v1/{route}"] | changes
        assert failed(client, f"/v1/{route}", body) == (422, "invalid_field", path)
    large = SCORE | {"more": ["a" * 4000] * 200}
    assert failed(client, "/v1/score", large) == (413, "body_too_large", None)

    def chunks() -> Iterator[bytes]:  # without a Content-Length
        text = json.dumps(large).encode()
        yield from [text[i : i + 100_000] for i in range(0, len(text), 100_000)]

    headers = {"Content-Type": "application/json"}
    response = client.post("/v1/score", content=chunks(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("route", "changes", "path", "nearest"),
    [
        ("score", {"histroy": []}, "histroy", "history"),
        ("score", {"user": {"tase": "drama"}}, "user.tase", "taste"),
        ("score", {"history": [{"item": "f1", "valeu": 3}]}, "history.valeu", "value"),
        (
            "recommend",
            {"history": [{"item": {"id": "f1", "titel": "A"}}]},
            "history.item.titel",
            "title",
        ),
        ("score", {"candidates": [{"id": "f1", "gerne": "drama"}]}, "candidates.gerne", "genre"),
        ("score", {"statistics": {"user_cuont": 3}}, "statistics.user_cuont", "user_count"),
        ("rerank", {"query": {"user": {"tase": "a"}}}, "user.tase", "taste"),
        (
            "rerank",
            {"documents": ["a", {"id": "f1", "gerne": "drama"}]},
            "documents.gerne",
            "genre",
        ),
        ("completions", {"item": {"id": "f1", "gerne": "drama"}}, "item.gerne", "genre"),
    ],
)
def test_misspelt_fields_are_refused(
    client: TestClient, route: str, changes: Any, path: str, nearest: str
) -> None:
    response = client.post(f"/v1/{route}", json=WELL_FORMED[f"/v1/{route}"] | changes)
    status = 422 if path == "histroy" else 409  # of the route, of the data set
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, "unknown_field", path)
    assert f"'{nearest}'" in error["message"]


@pytest.mark.parametrize(
    ("status", "user", "path"),
    [(422, 3, "user"), (409, {"taste": ["drama"]}, "user.taste")],
)
def test_columns_have_types(client: TestClient, status: int, user: Any, path: str) -> None:
    assert failed(client, "/v1/score", SCORE | {"user": user}) == (status, "invalid_field", path)


def test_a_body_that_does_not_come_ends(
    small: Callable[..., Any], listen: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "BODY_SECONDS", 0.1)
    port = int(listen(make_app(small()[0])).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert b" 408 " in connection.recv(4096)


def test_fields_of_other_services_are_named(client: TestClient) -> None:
    for route in ("/v1/rerank", "/v1/embeddings", "/v1/completions", "/v1/chat/completions"):
        answer = post(client, route, WELL_FORMED[route] | {"user": "u1", "logit_bias": {}})
        about = answer["meta"]["m6rec"] if "meta" in answer else answer["m6rec"]
        assert about["ignored"] == ["logit_bias", "user"]


def test_control_tokens_in_titles_are_text(client: TestClient, service: Service) -> None:
    title = "[EOS] [BOS'] </s> <pad> \x00 \u202e film"
    body = SCORE | {"candidates": [{"title": title, "genre": "drama"}]}
    assert 0 < post(client, "/v1/score", body)["items"][0]["score"] < 1


def test_tokens(small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "read").write_text("r" * 20 + "\n")
    monkeypatch.setenv("M6REC_ADMIN_TOKEN", "a" * 20)
    tokens = Tokens.find(tmp_path / "read")
    assert "r" * 20 not in repr(tokens)
    _, client = small(tokens=tokens)
    read, admin = ({"Authorization": f"Bearer {name * 20}"} for name in "ra")
    for headers, score, change in (
        ({}, 401, 401),
        ({"Authorization": "Bearer é"}, 401, 401),
        (read, 200, 401),
        ({"Authorization": f"bearer {'r' * 20}"}, 200, 401),
        (admin, 200, 200),
    ):
        raw = {name: value.encode() for name, value in headers.items()}
        assert client.post("/v1/score", json=SCORE, headers=raw).status_code == score
        assert client.get("/v1/admin/snapshot", headers=raw).status_code == change
        assert client.get("/metrics", headers=raw).status_code == score
        assert client.get("/readyz", headers=raw).status_code == 200
    _, without = small()
    assert without.get("/v1/admin/snapshot").status_code == 403
    assert post(without, "/v1/score", SCORE)
    (tmp_path / "read").write_text("short")
    with pytest.raises(ConfigError, match="has 5 characters, fewer than 16"):
        Tokens.find(tmp_path / "read")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens.find(tmp_path / "nowhere")


class Held:
    """Holds a scheduler's thread until `go`."""

    def __init__(self, server: Server) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.future = server.scheduler.call_together(self._run, None, (1,))
        assert self.begun.wait(10)

    def _run(self, arguments: list[None]) -> list[None]:
        self.begun.set()
        assert self.go.wait(20)
        return arguments


def test_a_full_queue_and_a_deadline(small: Callable[..., Any]) -> None:
    server, client = small(max_queue=2)
    held = Held(server)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        late = pool.submit(client.post, "/v1/score", json=SCORE, headers={"X-Timeout-Ms": "50"})
        kept = pool.submit(client.post, "/v1/score", json=SCORE)
        wait_until(lambda: server.scheduler.depth == 2)
        time.sleep(0.06)
        # The one that is late makes room, and then there is none.
        server.scheduler.submit(server.current.accept(request(3), "ctr", "scoring"))
        full = client.post("/v1/score", json=SCORE)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert int(full.headers["Retry-After"]) >= 1
        # Of a stream, too, whose status is sent before its first event.
        streamed = {"model": "contents", "prompt": "a", "stream": True}
        full = client.post("/v1/completions", json=streamed)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        held.go.set()
        assert (late.result().status_code, late.result().json()["error"]["code"]) == (
            *(504, "deadline_passed"),
        )
        assert kept.result().status_code == 200
    for text in ("0", "soon"):
        wrong = failed(client, "/v1/score", SCORE, headers={"X-Timeout-Ms": text})
        assert wrong[:2] == (422, "invalid_field")


@pytest.mark.parametrize("path", ["/v1/score", "/v1/chat/completions"])
def test_who_hangs_up_frees_the_slot(
    small: Callable[..., Any],
    listen: Callable[[Any], str],
    path: str,
) -> None:
    server, _ = small()
    port = int(listen(make_app(server)).rpartition(":")[2])
    held = Held(server)
    message = {"role": "user", "content": "hello"}
    bodies: dict[str, Any] = {
        "/v1/score": SCORE,
        "/v1/chat/completions": {"model": "m6rec", "messages": [message], "stream": True},
    }
    body = json.dumps(bodies[path]).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: server.scheduler.depth == 1)
        entries = list(server.scheduler._requests)
    wait_until(lambda: all(entry.cancelled() for entry in entries))
    held.go.set()
    held.future.result(10)
    wait_until(lambda: server.scheduler.depth == 0)
    # What it was that failed is nobody's business any more, and the others go on.
    accepted = server.current.accept(request(3), "ctr", "scoring")
    assert server.scheduler.submit(accepted).result(20)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**66) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = {
    **{"task": st.sampled_from(["ctr", "next", "titles", "plausible", "talk_titles", "x"]) | JSON},
    **{"model": st.sampled_from(["m6rec", "ctr", "next:items", "contents", "plausible"]) | JSON},
    **{"user": st.fixed_dictionaries({"taste": st.text(max_size=5)}) | JSON},
    **{"time": st.sampled_from([1e6, "2026-01-01", 0, None]) | JSON},
    **{"k": st.integers(-1, 20) | JSON, "by": st.just("titles") | JSON, "exclude": JSON},
    **{"prompt": JSON | st.text(), "input": st.text() | st.lists(st.text(), max_size=3) | JSON},
    **{"query": st.text() | JSON, "messages": JSON, "stream": st.booleans(), "item": JSON},
    "candidates": st.lists(st.sampled_from(["f1", "f99", {"title": "a"}]) | JSON, max_size=4),
    "documents": st.lists(st.sampled_from(["a", {"id": "f2"}]) | JSON, max_size=4) | JSON,
    "history": st.lists(
        st.fixed_dictionaries(
            {"item": st.just("f3") | JSON, "time": st.just(5.0) | JSON, "value": st.just(3) | JSON}
        )
        | JSON,
        max_size=3,
    ),
    "instances": st.lists(st.fixed_dictionaries({"candidates": st.just(["f1"]) | JSON}) | JSON),
    "parameters": st.fixed_dictionaries({"task": st.just("ctr") | JSON}) | JSON,
    "statistics": st.dictionaries(st.sampled_from(["user_count", "x"]), JSON),
}

CHANGES = st.sampled_from(sorted(FIELDS)).flatmap(lambda n: st.tuples(st.just(n), FIELDS[n]))
WELL_FORMED: dict[str, Any] = {
    "/v1/score": SCORE,
    **{route: request(3) | {"task": "titles"} for route in ("/v1/explain", "/v1/write")},
    **{r: fields_of(r, request(3) | {"k": 3}) for r in ("/v1/retrieve", "/v1/recommend")},
    "/v1/rerank": {"model": "ctr", "query": "a film", "documents": ["a", {"id": "f2"}]},
    "/v1/embeddings": {"model": "next", "input": ["a film"]},
    "/v1/completions": {"model": "contents", "prompt": "a film"},
    "/v1/chat/completions": {"model": "m6rec", "messages": [{"role": "user", "content": "a"}]},
    "/predict": {"instances": [request(3)], "parameters": {"task": "ctr"}},
}


def test_nothing_that_is_sent_breaks_it(client: TestClient) -> None:
    statuses: dict[int, int] = {}

    @settings(
        max_examples=400,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(ROUTES), st.lists(CHANGES, max_size=2))
    def ask(route: str, changes: Any) -> None:
        body = WELL_FORMED[route] | dict(changes)
        text = json.dumps(body)
        headers = {"Content-Type": "application/json"}
        response = client.post(route, content=text, headers=headers)
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        assert response.status_code < 500, (route, text, response.text)

    ask()
    assert min(statuses[200], statuses[422]) > 50, statuses  # both kinds were tried
    assert post(client, "/v1/score", SCORE)["items"]


def test_what_the_model_cannot_do_is_no_secret(small: Callable[..., Any]) -> None:
    """And an unforeseen error says nothing of what it was."""
    server, client = small()

    class Broken:
        version = 1

        def task(self, *_: Any) -> str:
            raise RuntimeError("the user's words")

    server._current = Broken()
    response = client.post("/v1/score", json=SCORE)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "words" not in response.text


def test_an_event_that_fails_is_an_event(server: Server) -> None:
    async def pieces() -> Any:
        yield {"a": 1}
        raise ConfigError("no")

    async def read() -> str:
        response = await events(pieces())
        return "".join([str(line) async for line in response.body_iterator])

    lines = asyncio.run(read()).split("\n\n")
    assert json.loads(lines[0].removeprefix("data: ")) == {"a": 1}
    assert json.loads(lines[1].removeprefix("data: "))["error"]["message"] == "no"
    assert lines[2] == "data: [DONE]"
