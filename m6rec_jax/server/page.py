"""The page at `/`, and the route by which it finds items of the catalogue.

The page's files are in `static/` and `m6rec_jax.pages`. They hold nothing of the model, and ask the
routes that everybody asks; nothing is fetched from elsewhere.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from m6rec_jax import pages
from m6rec_jax.jobs.answering import title_of
from m6rec_jax.server import schemas
from m6rec_jax.server.asking import Served
from m6rec_jax.server.errors import ApiError
from m6rec_jax.server.snapshots import Snapshot

_STATIC = Path(__file__).parent / "static"
FILES = {"" if path.suffix == ".html" else path.name: path for path in _STATIC.iterdir()}
FILES |= {name: pages.FOLDER / name for name in pages.FILES}
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


def add_files(app: FastAPI) -> None:
    """Routes of the page's files, which everybody may ask for."""
    for name, path in FILES.items():
        app.get(f"/{name}", include_in_schema=False)(functools.partial(_file, path))


async def _file(path: Path) -> Response:
    return FileResponse(path, headers=HEADERS)


router = APIRouter(tags=["recommendation"])


@router.get("/v1/items")
async def items(search: Annotated[schemas.Search, Query()], server: Served) -> dict[str, Any]:
    """`items` of the catalogue whose titles are like a query, in spite of typing errors; and
    what requests about them may hold: `user_columns` and `item_columns` with their types,
    `value`, the column of behaviours' values, and `liked_at_least`, the least of a liked item.
    """
    snapshot = server.current
    return await run_in_threadpool(_find, snapshot, search.task, search.query, search.limit)


def _find(snapshot: Snapshot, task: str | None, query: str, limit: int) -> dict[str, Any]:
    names = snapshot.tasks if task is None else [snapshot.task(task, "retrieval")]
    catalogues = ((name, snapshot.data_of(name)) for name in names)
    name, data = next((pair for pair in catalogues if pair[1] is not None), ("", None))
    if data is None:
        raise ApiError(409, "cannot_be_answered", "no such task has a catalogue", "task")
    if not query.strip():
        items = list(itertools.islice(data.items.values(), limit))
    else:
        exact = [data.items[query]] if query in data.items else []
        search, known = data.title_search
        alike = (known[place] for place in search.find(query, limit))
        items = [*exact, *(item for item in alike if item.id != query)][:limit]
    return {
        "task": name,
        "num_items": len(data.items),
        "user_columns": data.spec.users.columns,
        "item_columns": data.spec.items.columns,
        "value": data.spec.events.value,
        "liked_at_least": data.spec.label.at_least,
        "items": [{"id": item.id, "title": title_of(item)} for item in items],
    }
