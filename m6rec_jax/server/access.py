"""Who may ask: tokens, the access log, and what is checked before a body is read.

One ASGI wrapper around the app; it sees streams as they are, and the log has no word of a user.
"""

from __future__ import annotations

import dataclasses
import hmac
import logging
import os
import time
import uuid
from collections.abc import Collection
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from m6rec_jax.errors import ConfigError
from m6rec_jax.server.admin import PREFIX
from m6rec_jax.server.asking import Server
from m6rec_jax.server.errors import CLIENT_HAS_GONE, ApiError, as_api_error
from m6rec_jax.server.page import PAGE

access_log = logging.getLogger("m6rec_jax.access")

# Routes that everybody may ask: probes have no tokens.
OPEN = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json", *PAGE})
# Of a body that is too large so much is read, so that the client hears the answer.
DRAINED_BYTES = 64 << 20
# What the documentation's page is made of.
DOCS_FILES = "/docs-files"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens; None: reading is free, and changing is refused.

    Attributes:
      read: for everything but the admin's routes.
      admin: for all routes.
    """

    read: str | None = dataclasses.field(default=None, repr=False)
    admin: str | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def find(cls, read_file: Path | None = None, admin_file: Path | None = None) -> Tokens:
        """Reads tokens from files, or from `M6REC_READ_TOKEN` and `M6REC_ADMIN_TOKEN`.

        Raises:
          ConfigError: a file that cannot be read, or a token of fewer than 16 characters.
        """
        return cls(_token(read_file, "M6REC_READ_TOKEN"), _token(admin_file, "M6REC_ADMIN_TOKEN"))

    def check(self, path: str, authorization: str, open_routes: Collection[str]) -> None:
        """Raises ApiError (401, 403) where a request brings no token that its route wants."""
        if path in open_routes or path.startswith(DOCS_FILES):
            return
        scheme, _, rest = authorization.partition(" ")
        given = (rest if scheme.lower() == "bearer" else authorization).strip(" \t")
        is_admin = self.admin is not None and _same(given, self.admin)
        if path.startswith(PREFIX):
            if self.admin is None:
                raise ApiError(
                    403, "no_admin", "start the server with an admin token to change what it serves"
                )
            if not is_admin:
                raise _unauthorized("admin")
        elif self.read is not None and not is_admin and not _same(given, self.read):
            raise _unauthorized("read")


class Access:
    """Wraps the app. Args: see `Server` and `Tokens`; `open_routes` beside `OPEN`."""

    def __init__(
        self, app: FastAPI, server: Server, tokens: Tokens, open_routes: Collection[str] = ()
    ) -> None:
        self._app, self._server, self._tokens = app, server, tokens
        self._open = OPEN | frozenset(open_routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, id_ = time.perf_counter(), uuid.uuid4().hex
        status = CLIENT_HAS_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = id_
                if self._server.draining:
                    answer["Connection"] = "close"  # and the client asks elsewhere
            await send(message)

        try:
            try:
                headers = Headers(scope=scope)
                self._check_method(scope)
                self._tokens.check(scope["path"], headers.get("authorization", ""), self._open)
                await self._check_body(scope, headers, receive)
            except ApiError as error:
                answer = JSONResponse(error.body(), error.status_code, error.headers)
                await answer(scope, receive, send_with_id)
            else:
                await self._app(scope, self._bounded(receive), send_with_id)
        except Exception as error:
            # Answered and logged already, or its client has gone.
            if status == CLIENT_HAS_GONE and not isinstance(error, OSError):
                as_api_error(error)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "(no route)")
            metrics = self._server.metrics
            # A client may call its method anything.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics.requests.labels(method, route, status).inc()
            metrics.request_seconds.labels(route).observe(seconds)
            # Probes come every second.
            level = logging.DEBUG if route in self._open else logging.INFO
            line = "%s %s %d %.1f ms %s"
            access_log.log(level, line, scope["method"], route, status, 1000 * seconds, id_)

    def _check_method(self, scope: Scope) -> None:
        """Raises ApiError (405) where there is a route, but not by this method."""
        found = [(route.matches(scope)[0], route) for route in self._app.routes]
        others = [getattr(route, "methods", ()) for fit, route in found if fit == Match.PARTIAL]
        if others and not any(fit == Match.FULL for fit, _ in found):
            allowed = ", ".join(sorted({method for methods in others for method in methods}))
            raise ApiError(
                405,
                "method_not_allowed",
                f"{scope['path']} is asked by {allowed}, not by {scope['method']}",
                headers={"Allow": allowed},
            )

    async def _check_body(self, scope: Scope, headers: Headers, receive: Receive) -> None:
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise ApiError(400, "bad_header", "Content-Length is no number")
        if int(length) > self._server.limits.body_bytes:
            drained, more = 0, int(length) <= DRAINED_BYTES
            while more and drained < DRAINED_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
            raise self._too_large()
        has_body = length != "0" or "transfer-encoding" in headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] in ("POST", "PUT") and has_body and kind != "application/json":
            raise ApiError(
                415,
                "not_json",
                "bodies are JSON: send 'Content-Type: application/json' (curl --json does)",
            )

    def _bounded(self, receive: Receive) -> Receive:
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._server.limits.body_bytes:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        limit = self._server.limits.body_bytes
        return ApiError(
            413, "body_too_large", f"the body has more than Limits.body_bytes = {limit} bytes"
        )


def _same(given: str, token: str) -> bool:
    # Headers are read as latin-1, whatever the client wrote.
    return hmac.compare_digest(given.encode("latin-1"), token.encode())


def _unauthorized(name: str) -> ApiError:
    return ApiError(
        401,
        "unauthorized",
        f"this route wants 'Authorization: Bearer TOKEN' with the {name} token",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _token(file: Path | None, variable: str) -> str | None:
    token = os.environ.get(variable)
    if file is not None:
        try:
            token = file.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"the token in {file} cannot be read: {error}") from error
    if token is None:
        return None
    token = token.strip()
    if len(token) < 16:
        raise ConfigError(
            f"the token of {file or variable} has {len(token)} characters, fewer than 16; "
            "`openssl rand -hex 32` makes one"
        )
    return token
