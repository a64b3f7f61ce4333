"""`m6rec serve --engine ray`: replicas of Ray Serve behind one socket (extra `ray`).

The process that was started listens, and loads no model. It reads a request's body, names its user
(`user_of`), and hands it to a replica. Ray Serve's consistent hash sends a user to the same replica
as long as that lives and has room, so that cached segments are found. A replica runs the app of
the plain server. Where it dies before its answer has begun, another is asked once.

`RAY_ADDRESS` names a cluster, whose nodes find the run, its data and its indexes at the same paths.
Without, Ray runs on this machine and listens on loopback alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m6rec_jax.configuration import bound
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.workers import set_up_process, start_ray
from m6rec_jax.server import page, vertex
from m6rec_jax.server.access import DRAINED_BYTES, OPEN, Tokens
from m6rec_jax.server.admin import PREFIX
from m6rec_jax.server.app import make_app
from m6rec_jax.server.asking import TIMEOUT
from m6rec_jax.server.errors import CLIENT_HAS_GONE, ApiError, as_api_error
from m6rec_jax.server.limits import Limits
from m6rec_jax.server.served import Served
from m6rec_jax.server.tracing import trace

log = logging.getLogger(__name__)

_APP = "m6rec"
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
# What a replica is told of a request beside its body.
_SCOPE = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "root_path"),
    *("query_string", "headers", "client", "server"),
)
# A replica answers at a request's deadline; this much later it is not heard of any more.
_PATIENCE = 10.0


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and what each has.

    Attributes:
      min_replicas, max_replicas: bounds of their number.
      target_queue: requests that a replica has at a time, on average: more of them start another
        replica, fewer end one.
      max_requests: that one replica has at a time; a user whose replica has as many is answered by
        the next one.
      resources: of Ray that a replica takes: `{'CPU': 4}`, `{'GPU': 1}`, `{'TPU': 4}`.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_queue: float = 8.0
    max_requests: int = 64
    resources: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"CPU": 1})

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"Replicas.min_replicas = {self.min_replicas} must be at least 1, and "
                f"Replicas.max_replicas = {self.max_replicas} at least as many"
            )

    def options(self, grace: float) -> dict[str, Any]:
        """Of `ray.serve.deployment`."""
        resources = dict(self.resources)
        actor = {
            "num_cpus": resources.pop("CPU", 0),
            "num_gpus": resources.pop("GPU", 0),
            "resources": resources,
            # Replicas on other machines send their traces to the same place.
            "runtime_env": {
                "env_vars": {n: v for n, v in os.environ.items() if n.startswith("OTEL_")}
            },
        }
        number: dict[str, Any] = {"num_replicas": self.min_replicas}
        if self.max_replicas > self.min_replicas:
            scaling = {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_queue,
            }
            number = {"autoscaling_config": scaling}
        return number | {
            "ray_actor_options": actor,
            "max_ongoing_requests": self.max_requests,
            "max_queued_requests": bound("Scheduler.max_queue", 512),
            "graceful_shutdown_timeout_s": grace,
            "graceful_shutdown_wait_loop_s": 0.2,
            "health_check_period_s": 2.0,
            # What is wrong with a model is wrong at the second time, too.
            "max_constructor_retry_count": 1,
            "request_router_config": {"request_router_class": _ROUTER},
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        }


class Replica:
    """The app of the plain server in a process of Ray's.

    Args:
      served: what is served.
      settings: the gin configuration as text.
      tokens: that routes want.
      folder: against which paths are named.
    """

    def __init__(self, served: Served, settings: str, tokens: Tokens, folder: str) -> None:
        set_up_process(settings, folder)
        self._server = served.server()
        served.load(self._server)
        self._app = trace(make_app(self._server, tokens))  # it is the app that knows routes

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Message]]:
        """The app's messages for a request, as they come; cancelled, its client has gone.

        The first piece of the body comes together with what stands before it: of an answer in one
        piece all or nothing arrives.
        """
        sent = asyncio.Queue[Message | None]()
        gone = asyncio.Event()
        bodies = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for message in bodies:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(scope, receive, sent.put)
            finally:
                sent.put_nowait(None)

        running = asyncio.create_task(run())
        try:
            start: list[Message] = []
            while (message := await sent.get()) is not None:
                if message["type"] == "http.response.start":
                    start = [message]
                else:
                    yield [*start, message]
                    start = []
            await running
        finally:
            gone.set()

    async def metrics(self) -> tuple[int, list[Metric]]:
        """The process, and what it measured."""
        return os.getpid(), list(self._server.metrics.registry.collect())


class Front:
    """An ASGI app that hands requests to replicas.

    Args:
      timeout: seconds that a request may wait where it does not say.
      tokens: that routes want.

    Attributes:
      handle: of the replicas' `answer`; None: they are loading.
      ready: whether one runs, and the server is not ending.
    """

    def __init__(self, timeout: float, tokens: Tokens) -> None:
        self._timeout, self._tokens, self._limits = timeout, tokens, Limits()
        self.handle: Any = None
        self.ready = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            answer = await self._own_answer(scope)
            if answer is not None:
                await answer(scope, receive, sending)
            else:
                await self._forward(scope, receive, sending)
        except Exception as error:
            told = as_api_error(error)
            if not begun:
                answer = JSONResponse(told.body(), told.status_code, told.headers)
                await answer(scope, receive, send)
                return
            # Only events come in several pieces.
            text = f"data: {json.dumps(told.body())}\n\ndata: [DONE]\n\n"
            await send({"type": "http.response.body", "body": text.encode()})

    async def _own_answer(self, scope: Scope) -> Response | None:
        """What no replica is asked for."""
        path, method = scope["path"], scope["method"]
        # First what Vertex AI asks, whose route may have any name.
        if method == "GET" and path in ("/readyz", vertex.health_route()):
            return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)
        if method == "GET" and path == "/healthz":
            return JSONResponse({"status": "ok"})
        if method == "GET" and path in page.PAGE:  # it waits until the model is loaded
            return page.file(path)
        if self.handle is None:
            raise ApiError(503, "not_ready", "the model is loading", headers={"Retry-After": "5"})
        given = Headers(scope=scope).get("authorization", "")
        if method == "GET" and path == "/metrics":
            self._tokens.check(path, given, OPEN)
            return await self._metrics()
        if path.startswith(PREFIX) and method != "GET":
            self._tokens.check(path, given, OPEN)
            raise ApiError(
                501,
                "not_on_replicas",
                "replicas of --engine ray are not changed while they run: one that starts later "
                "would lack the change. Start the server anew with the changed folders",
            )
        return None

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._read(scope, receive)
        user = user_of(body, Headers(scope=scope).get("x-session-id"))
        sent = {name: scope[name] for name in _SCOPE if name in scope}
        waiting = asyncio.create_task(self._pass_on(sent, body, user, self._deadline(scope), send))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
        finally:
            gone.cancel()
            waiting.cancel()

    async def _pass_on(
        self, scope: dict[str, Any], body: bytes, user: str, deadline: float, send: Send
    ) -> None:
        """Sends what a replica answers; asks another where it dies before that has begun."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        handle = self.handle.options(session_id=user)
        begun, more, died = False, True, 0
        while True:
            messages = handle.remote(scope, body)
            try:
                # Only the first message has a deadline: the replica heeds that of texts.
                async with asyncio.timeout_at(deadline) as waiting:
                    async for piece in messages:
                        waiting.reschedule(None)
                        begun, more = True, piece[-1].get("more_body", False)
                        for message in piece:
                            await send(message)
                return
            except RayActorError:
                if not more:
                    return
                died += 1
                again = died == 1 and not begun
                log.warning(
                    "a replica died; its request %s", "is asked again" if again else "fails"
                )
                if not again:
                    raise ApiError(
                        503, "replica_lost", "what answered has died", headers={"Retry-After": "1"}
                    ) from None
            except BackPressureError:
                raise ApiError(
                    429,
                    "queue_full",
                    "all replicas have as many requests as they take",
                    headers={"Retry-After": "1"},
                ) from None
            except TimeoutError:
                raise ApiError(
                    504, "deadline_passed", "no replica answered before the request's deadline"
                ) from None
            finally:
                messages.cancel()

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """The body; of one that is too large a byte more than the limit, so that it is refused."""
        body, taken, more = bytearray(), 0, True
        limit = self._limits.body_bytes + 1
        while more and taken < DRAINED_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ApiError(CLIENT_HAS_GONE, "client_has_gone", "nobody waits for the answer")
            piece = message.get("body", b"")
            taken += len(piece)
            body += piece[: limit - len(body)]
            more = message.get("more_body", False)
        return bytes(body)

    def _deadline(self, scope: Scope) -> float:
        given = Headers(scope=scope).get(TIMEOUT, "")
        seconds = int(given[:10]) / 1000 if given.isascii() and given.isdigit() else None
        loop = asyncio.get_running_loop()
        return loop.time() + (seconds or self._timeout) + _PATIENCE

    async def _metrics(self) -> Response:
        found = await self.handle.broadcast("metrics").results_async(
            timeout_s=5.0, return_exceptions=True
        )
        registry = CollectorRegistry()
        registry.register(_OfReplicas([one for one in found if isinstance(one, tuple)]))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class RayReplicas:
    """Ray and its replicas, behind a `Front`; see `launch.serve`.

    Args:
      served, tokens: of each replica.
      grace: seconds in which requests may end when a replica is stopped.

    Attributes:
      app: what `launch.serve` listens for.

    Raises:
      ConfigError: Ray is not installed, or `Replicas` are impossible.
    """

    def __init__(self, served: Served, tokens: Tokens, grace: float) -> None:
        # In the thread that stays: what Ray starts here ends with the thread that started it.
        self._ray = start_ray("m6rec serve --engine ray", 100 << 20)
        self._served, self._tokens, self._options = served, tokens, Replicas().options(grace)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._draining, self._ended, self._loading = False, threading.Event(), threading.Lock()
        self._front = Front(served.timeout, tokens)
        self.app: ASGIApp = self._front

    def load(self) -> None:
        """Starts the replicas; returns when requests are answered.

        Raises:
          ConfigError: no replica could be started; says why.
        """
        from ray import serve

        began = time.monotonic()
        with self._loading:
            if self._ended.is_set():
                return
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
            replica = serve.deployment(name="replica", **self._options)(Replica).bind(
                self._served, gin.config_str(), self._tokens, os.getcwd()
            )
            target = serve.RunTarget(replica, name=_APP, route_prefix=None)
            (handle,) = serve.run_many([target], wait_for_applications_running=False)
            while (status := serve.status().applications[_APP].status) != "RUNNING":
                if status in ("DEPLOY_FAILED", "UNHEALTHY"):
                    found = serve.status().applications[_APP]
                    texts = [one.message for one in found.deployments.values()]
                    reason = _reason("\n".join([found.message, *texts]))
                    raise ConfigError(f"no replica could be started: {reason}")
                if self._ended.wait(0.2):
                    return
        self._front.handle = handle.options(method_name="answer", stream=True)
        log.info("ready in %.1f s: %d replicas", time.monotonic() - began, self._look())
        threading.Thread(target=self._watch, name="m6rec-replicas", daemon=True).start()

    def drain(self) -> None:
        """`/readyz` says no from now on."""
        self._draining, self._front.ready = True, False

    def close(self) -> bool:
        """Ends the replicas, and a Ray that was started here."""
        self._ended.set()
        with self._loading, contextlib.suppress(Exception):
            self._ray.serve.delete(_APP)
        self._ray.shutdown()
        return True

    def _look(self) -> int:
        """Counts the replicas that run."""
        application = self._ray.serve.status().applications.get(_APP)
        states = {} if application is None else application.deployments["replica"].replica_states
        running: int = states.get("RUNNING", 0)
        self._front.ready = running > 0 and not self._draining
        return running

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            with contextlib.suppress(Exception):  # the controller may be starting anew
                self._look()


class _OfReplicas(Collector):
    """Metrics of all replicas, each with the label `replica`: the id of its process."""

    def __init__(self, found: Sequence[tuple[int, Sequence[Metric]]]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for process, metrics in self._found:
            for metric in metrics:
                own = Metric(metric.name, metric.documentation, metric.type)
                family = families.setdefault(metric.name, own)
                for sample in metric.samples:
                    labels = {**sample.labels, "replica": str(process)}
                    family.samples.append(sample._replace(labels=labels))
        return families.values()


def user_of(body: bytes, session: str | None = None) -> str:
    """Who asks, so that the same replica answers: one that has the user's segments.

    A session's name where the client gives one (`X-Session-Id`), else the user's id, else what
    stays as a history grows: the user's columns and the first behaviour, a text's first line, a
    dialogue's first turn. Empty where none of it is there; then any replica will do.

    Args:
      body: of a request, JSON of any route's.
    """
    if session:
        return session
    try:
        row = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if isinstance(row, dict) and isinstance(row.get("instances"), list):
        row = row["instances"][0] if row["instances"] else None
    for name in ("query", "prompt"):
        if isinstance(row, dict) and isinstance(row.get(name), dict):
            row = row[name]
    if not isinstance(row, dict):
        return ""
    user = row.get("user")
    if isinstance(user, dict) and user.get("id") is not None:
        return json.dumps(user["id"])
    parts = [user, *_first(row.get("history")), *_first(row.get("messages"))]
    for name in ("query", "prompt", "input"):
        text = row.get(name)
        for one in _first(text) if isinstance(text, list) else [text]:
            parts += one.splitlines()[:1] if isinstance(one, str) else []
    return json.dumps(parts) if any(parts) else ""


def _first(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value[:1]


def _reason(message: str) -> str:
    """The error of this package in a replica's traceback, else the last lines."""
    found = re.findall(r"m6rec_jax\.\S+Error: (.*)$", message, re.MULTILINE)
    return found[-1] if found else "\n".join(message.strip().splitlines()[-20:])


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
