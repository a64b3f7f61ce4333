"""The page at `/`, and the route by which it finds items of the catalogue.

The page's files are in `static/` and `m6rec_jax.pages`. They hold nothing of the model, and ask the
routes that everybody asks; nothing is fetched from elsewhere.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from m6rec_jax import pages
from m6rec_jax.jobs.answering import title_of
from m6rec_jax.requests.serving_data import ServingData
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Server
from m6rec_jax.server.errors import ApiError
from m6rec_jax.server.snapshots import Snapshot

_FILES = {
    "/": ("page.html", "text/html"),
    "/base.css": ("base.css", "text/css"),
    "/page.css": ("page.css", "text/css"),
    "/elements.js": ("elements.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
}
# Routes of the page.
PAGE = frozenset(_FILES)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}


def routes(server: Server) -> APIRouter:
    """The routes, for `FastAPI.include_router`."""
    router = APIRouter(tags=["recommendation"])
    for path in _FILES:
        router.get(path, include_in_schema=False)(_route(path))

    @router.get("/v1/items", response_model=schemas.Catalogue)
    async def items(search: Annotated[schemas.Search, Query()]) -> dict[str, Any]:
        """Items of the catalogue whose titles are like a query, in spite of typing errors."""
        snapshot = server.snapshots.current
        return await run_in_threadpool(_find, snapshot, search.task, search.query, search.limit)

    return router


def file(path: str) -> Response:
    """A file of the page, for one of the routes `PAGE`."""
    name, kind = _FILES[path]
    return Response(_content(name), media_type=kind, headers=HEADERS)


@functools.cache
def _content(name: str) -> bytes:
    folder = pages.FOLDER if name in pages.FILES else Path(__file__).parent / "static"
    return (folder / name).read_bytes()


def _route(path: str) -> Any:
    async def answer() -> Response:
        return file(path)

    return answer


def _find(snapshot: Snapshot, task: str | None, query: str, limit: int) -> dict[str, Any]:
    task, data = _data(snapshot, task)
    if not query.strip():
        found = list(itertools.islice(data.items.values(), limit))
    else:
        exact = [data.items[query]] if query in data.items else []
        search, items = data.title_search
        alike = (items[place] for place in search.find(query, limit))
        found = [*exact, *(item for item in alike if item.id != query)][:limit]
    return {
        "task": task,
        "num_items": len(data.items),
        "user_columns": data.spec.users.columns,
        "item_columns": data.spec.items.columns,
        "value": data.spec.events.value,
        "liked_at_least": data.spec.label.at_least,
        "items": [{"id": item.id, "title": title_of(item)} for item in found],
    }


def _data(snapshot: Snapshot, task: str | None) -> tuple[str, ServingData]:
    if task is not None and task not in snapshot.tasks:
        known = ", ".join(sorted(snapshot.tasks))
        raise ApiError(404, "unknown_task", f"there is no task '{task}': {known}", "task")
    for name in [task] if task is not None else snapshot.tasks:
        data = snapshot.data_of(name)
        if data is not None:
            return name, data
    none = "no task has a catalogue" if task is None else f"'{task}' has no catalogue"
    raise ApiError(409, "cannot_be_answered", none, "task")
