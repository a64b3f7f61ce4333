"""One request on its way: accepted by a snapshot, queued, answered, or given up with its client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from m6rec_jax.jobs.answering import Accepted, Answer
from m6rec_jax.server.errors import CLIENT_HAS_GONE, ApiError, as_api_error
from m6rec_jax.server.snapshots import Server
from m6rec_jax.serving.scheduler import Queued

T = TypeVar("T")


def _served(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


# What routes share, for those that are asked nothing by `Asked`.
Served = Annotated[Server, Depends(_served)]


class Asking:
    """A request over HTTP, by the newest snapshot; routes have it as `Asked`.

    Attributes:
      snapshot: that answers all of it.
      accepted: so far, by `accept`.
      gone: done when its client has hung up.
    """

    def __init__(self, server: Server, request: Request, timeout: float) -> None:
        self._scheduler, self.snapshot = server.scheduler, server.current
        self._deadline = time.monotonic() + timeout
        self.gone = asyncio.create_task(_disconnected(request))
        self.accepted: list[Accepted] = []

    async def accept(
        self, row: Mapping[str, Any], task: str, job: str, number: int = 0
    ) -> Accepted:
        """See `Snapshot.accept`."""
        self.accepted.append(await run_in_threadpool(self.snapshot.accept, row, task, job, number))
        return self.accepted[-1]

    async def answer(self, *accepted: Accepted) -> list[Answer]:
        """Answers of these requests, which may share a batch; errors as `Scheduler.submit`."""
        submit = self._scheduler.submit
        return await self._results(submit(one, deadline=self._deadline) for one in accepted)

    async def call_together(self, function: Callable[[list[Any]], list[Any]], argument: Any) -> Any:
        """What a function gives for an argument, see `Scheduler.call_together`."""
        sizes, call = self.snapshot.service.batch_sizes, self._scheduler.call_together
        return (await self._results([call(function, argument, sizes, deadline=self._deadline)]))[0]

    async def pieces(self, accepted: Accepted) -> AsyncIterator[tuple[str, Answer | None]]:
        """The one text of an answer as it is generated; last no text, and the answer."""
        loop, texts = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def put(text: str | None) -> None:
            loop.call_soon_threadsafe(texts.put_nowait, text)

        submit, deadline = self._scheduler.submit, self._deadline
        future = self._watched(submit(accepted, on_text=lambda _, t: put(t), deadline=deadline))
        future.add_done_callback(lambda _: put(None))
        try:
            while (text := await texts.get()) is not None:
                yield text, None
            answer: Answer = await _result(future)
            yield "", answer
        finally:
            future.cancel()

    async def _results(self, queued: Iterable[Queued[Any]]) -> list[Any]:
        return [await _result(one) for one in list(map(self._watched, queued))]

    def _watched(self, future: Queued[T]) -> Queued[T]:
        """Cancelled when the client hangs up, or has its answer."""
        self.gone.add_done_callback(lambda _: future.cancel())
        return future


async def _result(future: Queued[T]) -> T:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if future.cancelled():
            message = "nobody waits for the answer"
            raise ApiError(CLIENT_HAS_GONE, "client_has_gone", message) from None
        raise


_Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)] | None


async def _asking(
    request: Request,
    server: Served,
    timeout: Annotated[_Milliseconds, Header(alias="X-Timeout-Ms", include_in_schema=False)] = None,
) -> AsyncIterator[Asking]:
    asked = Asking(server, request, server.timeout if timeout is None else timeout / 1000)
    try:
        yield asked
    finally:
        asked.gone.cancel()


# What was queued is cancelled when the client hangs up.
Asked = Annotated[Asking, Depends(_asking)]


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def events(pieces: AsyncGenerator[Mapping[str, Any], None]) -> StreamingResponse:
    """Server-sent events as OpenAI's client reads them: JSON objects, then `[DONE]`.

    What is wrong before the first of them is raised, and gets a status of its own, such as 429.
    Later an error is an event itself.
    """
    first = await anext(pieces)

    async def lines() -> AsyncIterator[str]:
        async with contextlib.aclosing(pieces):
            try:
                yield _event(first)
                async for piece in pieces:
                    yield _event(piece)
            except Exception as error:
                problem = as_api_error(error)
                if problem.status_code == CLIENT_HAS_GONE:
                    return
                yield _event(problem.body())
        yield "data: [DONE]\n\n"

    return StreamingResponse(
        lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


def _event(piece: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(piece, ensure_ascii=False)}\n\n"
