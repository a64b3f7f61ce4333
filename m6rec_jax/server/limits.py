"""JSON read strictly: Python's reader takes NaN, half surrogate pairs and any depth, which end in
errors far from here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

import gin
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from m6rec_jax.server.errors import ApiError

# Bytes of a body that is read at once.
_AT_ONCE = 1 << 16


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Limits:
    """Most of what one request may bring.

    Attributes:
      body_bytes: of the body; more is 413.
      nesting: objects and lists within each other.
    """

    body_bytes: int = 8 << 20
    nesting: int = 16

    def parse(self, body: bytes) -> Any:
        """Reads JSON.

        Raises:
          ApiError: 400 for what is no JSON, 422 for what is nested too deeply.
        """
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ApiError(
                400, "invalid_utf8", f"byte {error.start} of the body is not UTF-8"
            ) from None
        try:
            found = json.loads(text, parse_constant=_no_number)
        except RecursionError:
            raise self._too_deep() from None
        except ValueError as error:
            raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
        self._check_values(found)
        return found

    def _check_values(self, found: Any) -> None:
        # Not by recursion: depth is what is checked.
        left: list[tuple[Any, int]] = [(found, 1)]
        while left:
            value, depth = left.pop()
            if isinstance(value, str):
                if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                    raise ApiError(400, "invalid_utf8", "a text has half of a surrogate pair")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ApiError(400, "number_too_large", "the body has a number beyond 1e308")
            elif isinstance(value, dict | list):
                if depth > self.nesting:
                    raise self._too_deep()
                if isinstance(value, dict):
                    left += [(key, depth) for key in value]
                members = value.values() if isinstance(value, dict) else value
                left += [(member, depth + 1) for member in members]

    def _too_deep(self) -> ApiError:
        return ApiError(
            422,
            "nested_too_deeply",
            f"the body is nested more deeply than Limits.nesting = {self.nesting}",
        )


def strict_route(limits: Limits) -> type[APIRoute]:
    """A class of routes whose bodies `Limits.parse` reads."""

    class StrictRequest(Request):
        async def json(self) -> Any:
            body = await self.body()
            # A megabyte of small values takes a second, in which others would wait.
            is_long = len(body) > _AT_ONCE
            return await run_in_threadpool(limits.parse, body) if is_long else limits.parse(body)

    class StrictRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def strict(request: Request) -> Response:
                return await handler(StrictRequest(request.scope, request.receive))

            return strict

    return StrictRoute


def _no_number(name: str) -> Any:
    raise ApiError(400, "nan", f"{name} is no JSON; write null where a value is not known")
