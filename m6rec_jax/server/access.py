"""Who may ask: tokens as dependencies of routes; and what goes around the app for every request:
its id, the access log and metrics.
"""

from __future__ import annotations

import dataclasses
import hmac
import logging
import os
import time
import uuid
from http import HTTPMethod
from pathlib import Path
from typing import Annotated

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m6rec_jax.errors import ConfigError
from m6rec_jax.server.errors import CLIENT_HAS_GONE, ApiError
from m6rec_jax.server.metrics import Metrics

access_log = logging.getLogger("m6rec_jax.access")

_PROBES = frozenset({"/healthz", "/readyz"})
_Given = Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens; None: reading is free, and changing is refused. The methods are dependencies of
    routes, and raise ApiError (401, 403).

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

    def check_read(self, given: _Given) -> None:
        """Of all routes but the admin's, the probes and the page's files."""
        _check(given, "read", self.read, self.admin)

    def check_admin(self, given: _Given) -> None:
        """Of the admin's routes."""
        if self.admin is None:
            said = "start the server with an admin token to change what it serves"
            raise ApiError(403, "no_admin", said)
        _check(given, "admin", self.admin)


def _check(given: HTTPAuthorizationCredentials | None, name: str, *tokens: str | None) -> None:
    text = b"" if given is None else given.credentials.encode()
    if not any(hmac.compare_digest(text, token.encode()) for token in tokens if token):
        said = f"this route wants 'Authorization: Bearer TOKEN' with the {name} token"
        raise ApiError(401, "unauthorized", said, headers={"WWW-Authenticate": "Bearer"})


def _token(file: Path | None, variable: str) -> str | None:
    try:
        token = os.environ.get(variable) if file is None else file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the token in {file} cannot be read: {error}") from error
    if token is not None and len(token := token.strip()) < 16:
        raise ConfigError(
            f"the token of {file or variable} has {len(token)} characters, fewer than 16; "
            "`openssl rand -hex 32` makes one"
        )
    return token


class Access:
    """Wraps the app, and sees streams as they are; the log has no word of a user."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, id_, status = time.perf_counter(), uuid.uuid4().hex, CLIENT_HAS_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = id_
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the app has answered and logged it already, or its client has gone
            access_log.debug("request %s ended with an error", id_)
        finally:
            if scope["type"] == "http":
                self._count(scope, status, time.perf_counter() - began, id_)

    def _count(self, scope: Scope, status: int, seconds: float, id_: str) -> None:
        route = getattr(scope.get("route"), "path", "(no route)")
        # A client may call its method anything.
        method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        level = logging.DEBUG if route in _PROBES else logging.INFO  # probes come every second
        line = "%s %s %d %.1f ms %s"
        access_log.log(level, line, method, route, status, 1000 * seconds, id_)
