"""What a request may not exceed, and JSON read strictly.

Python's reader takes NaN, half surrogate pairs, numbers of any size and any depth. None of them
means anything to a model, and some of them end in errors far from here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import gin
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from m6rec_jax.server.errors import ApiError

_LARGEST_INT = 2**63
# Bytes of a body that is read at once.
_AT_ONCE = 1 << 16
# Field with a list, and which of `Limits` holds for it.
_LISTS = {
    "candidates": "candidates",
    "documents": "candidates",
    "history": "history",
    "messages": "history",
    "exclude": "exclude",
    "instances": "instances",
    "prompt": "instances",
    "input": "instances",
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Limits:
    """Most of what one request may bring.

    Attributes:
      body_bytes: of the body; more is 413.
      candidates: to be scored or written about, of `candidates` and `documents`.
      history: events of `history`; and turns, of `messages`.
      exclude: ids of `exclude`.
      text: characters of one text, or of all texts of a list that is one value of a column.
      k: items that are asked for.
      nesting: objects and lists within each other.
      instances: rows of one body: Vertex AI's `instances`, `prompt` and `input` of OpenAI's routes.
    """

    body_bytes: int = 1 << 20
    candidates: int = 1000
    history: int = 1000
    exclude: int = 10_000
    text: int = 20_000
    k: int = 1000
    nesting: int = 16
    instances: int = 128

    def check(self, row: Mapping[str, Any], path: str = "") -> None:
        """Raises ApiError (422) where a row has too much of something; names field and limit."""
        for name, setting in _LISTS.items():
            value, limit = row.get(name), getattr(self, setting)
            if isinstance(value, list) and len(value) > limit:
                raise _too_many(f"{path}{name}", f"has {len(value)} entries", setting, limit)
        for name in ("k", "top_n"):
            value = row.get(name)
            if isinstance(value, int | float) and value > self.k:
                raise _too_many(f"{path}{name}", f"is {value}", "k", self.k)

    def parse(self, body: bytes) -> Any:
        """Reads JSON.

        Raises:
          ApiError: 400 for what is no JSON, 422 for what is too long or nested too deeply.
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
                self._check_text(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ApiError(400, "number_too_large", "the body has a number beyond 1e308")
            elif isinstance(value, int) and not -_LARGEST_INT <= value < _LARGEST_INT:
                raise ApiError(400, "number_too_large", "the body has an integer beyond 64 bits")
            elif isinstance(value, dict | list):
                if depth > self.nesting:
                    raise self._too_deep()
                if isinstance(value, dict):
                    left += [(key, depth) for key in value]
                    for name, own in value.items():
                        if isinstance(own, list) and name not in _LISTS:
                            self._check_length(sum(len(m) for m in own if isinstance(m, str)))
                members = value.values() if isinstance(value, dict) else value
                left += [(member, depth + 1) for member in members]

    def _check_length(self, characters: int) -> None:
        if characters > self.text:
            raise ApiError(
                422,
                "text_too_long",
                f"a text, or a list of texts, has {characters} characters, more than Limits.text = "
                f"{self.text}",
            )

    def _check_text(self, text: str) -> None:
        self._check_length(len(text))
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ApiError(400, "invalid_utf8", "a text has half of a surrogate pair")

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
            found = await run_in_threadpool(limits.parse, body) if is_long else limits.parse(body)
            if isinstance(found, dict):
                limits.check(found)
            return found

    class StrictRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def strict(request: Request) -> Response:
                return await handler(StrictRequest(request.scope, request.receive))

            return strict

    return StrictRoute


def _no_number(name: str) -> Any:
    raise ApiError(400, "nan", f"{name} is no JSON; write null where a value is not known")


def _too_many(path: str, words: str, setting: str, limit: int) -> ApiError:
    return ApiError(
        422, "too_many", f"'{path}' {words}, more than Limits.{setting} = {limit}", path
    )
