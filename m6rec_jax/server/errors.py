"""Errors as answers: one shape, that of OpenAI's API, for all routes.

{"error": {"message": "'k' is 500, more than RetrievalAnswers.max_k = 100",
           "type": "invalid_request_error", "param": "k", "code": "k_too_large"}}
"""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

import pydantic_core
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match

from m6rec_jax.errors import ConfigError
from m6rec_jax.requests.request import RejectedRow
from m6rec_jax.server import schemas
from m6rec_jax.serving.scheduler import DeadlinePassed, QueueFull, SchedulerClosed
from m6rec_jax.serving.service import UnknownTask

log = logging.getLogger(__name__)

# In which a body must have come: no slow client keeps a connection for ever.
BODY_SECONDS = 30.0
# Nobody reads the answer: the status that nginx has for it.
CLIENT_HAS_GONE = 499
# What pydantic calls a type in the place of an error: 'str', 'list[str]', 'function-wrap[...]'.
_TYPE = re.compile(r"^(?:constrained-)?(?:str|dict|int|float|bool)$|\[")


class ApiError(HTTPException):
    """An error that a client is told.

    Attributes:
      code: one word or a few, which stay as they are.
      param: the field that is meant; None: none.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> dict[str, object]:
        """The answer."""
        kind = "invalid_request_error" if self.status_code < 500 else "server_error"
        named = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return {"error": named}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors of a route, for the OpenAPI document."""
    return {s: {"model": schemas.Error, "description": HTTPStatus(s).phrase} for s in statuses}


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error. Unforeseen ones say nothing, and are logged."""
    match error:
        case ApiError():
            return error
        case RejectedRow():
            named = re.match(r"'([^']+)'", str(error))
            code = "invalid_field" if error.kind == "wrong_type" else error.kind
            status = 404 if code == "unknown_item" else 409
            return ApiError(status, code, str(error), named[1] if named else None)
        case QueueFull():
            return ApiError(429, "queue_full", str(error), headers={"Retry-After": "1"})
        case SchedulerClosed():
            return ApiError(503, "shutting_down", str(error), headers={"Retry-After": "1"})
        case DeadlinePassed():
            return ApiError(504, "deadline_passed", str(error))
        case UnknownTask():
            return ApiError(404, "unknown_task", str(error))
        case ConfigError():
            return ApiError(409, "cannot_be_answered", str(error))
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
            return ApiError(error.status_code, code, str(error.detail), headers=error.headers)
    # Where, but not the message, which may hold what a user wrote.
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s, not answered:\n%s", type(error).__name__, where.rstrip())
    return ApiError(500, "internal_error", "the server failed to answer; its log says where")


def _invalid(error: RequestValidationError) -> ApiError:
    # Where several types are allowed each has errors, and the one that was meant has got furthest.
    worst = max(error.errors(), key=lambda one: (one["type"] == "unknown_field", len(one["loc"])))
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        # After 'body', 'query' or 'header'.
        for part in (*worst["loc"][1:], *filter(None, [worst.get("ctx", {}).get("field")]))
        if not _TYPE.search(str(part))
    )
    name = path.removeprefix(".") or "the body"
    code = "unknown_field" if worst["type"] == "unknown_field" else "invalid_field"
    return ApiError(422, code, f"'{name}': {worst['msg']}", name)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    answer = as_api_error(error)
    headers = dict(answer.headers or {})
    if answer.status_code == 405:  # Starlette names the methods of one route alone
        routes = list(iter_route_contexts(request.app.routes))
        fitting = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
        headers["Allow"] = ", ".join(sorted({name for r in fitting for name in r.methods or ()}))
    return JSONResponse(answer.body(), answer.status_code, headers)


def add_handlers(app: FastAPI) -> None:
    """Answers every error in the one shape."""
    for kind in (Exception, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer)


class _StrictRequest(Request):
    async def body(self) -> bytes:
        if hasattr(self, "_body"):
            return self._body
        limit, received = self.app.state.body_bytes, bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self.stream():
                    received += chunk
                    if len(received) > limit:
                        said = f"the body has more than make_app.body_bytes = {limit} bytes"
                        raise ApiError(413, "body_too_large", said)
        except TimeoutError:
            said = f"the body has not come within {BODY_SECONDS:g} seconds"
            raise ApiError(408, "body_too_slow", said) from None
        self._body = bytes(received)
        return self._body

    async def json(self) -> Any:
        try:  # Python's own reader takes NaN and half surrogate pairs, and any depth
            return pydantic_core.from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None


class StrictRoute(APIRoute):
    """A route whose body must come in time, be no larger than `app.state.body_bytes`, and be JSON
    as the standard has it, in UTF-8.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
