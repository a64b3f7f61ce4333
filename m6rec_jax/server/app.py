"""The FastAPI app over a `Server`: routes, documentation, probes."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Security
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from m6rec_jax import __version__
from m6rec_jax.server import admin, document, native, openai_api, page, rerank_api, vertex
from m6rec_jax.server.access import DOCS_FILES, Access, Tokens
from m6rec_jax.server.asking import Server, read_headers
from m6rec_jax.server.document import responses
from m6rec_jax.server.errors import STATUSES, add_handlers

_ABOUT = """One language model for every job of a recommender.

Every error has one shape: `{"error": {"message", "type", "param", "code"}}`. Two headers may go
with every request: `X-Timeout-Ms`, how long it may wait (1 to 3,600,000), and `X-Priority: bulk`:
others go first.
"""
_ASKED = responses(400, 404, 409, 413, 415, 422, 429, 500, 503, 504)


def make_app(server: Server, tokens: Tokens | None = None) -> Access:
    """The ASGI app.

    Args:
      server: what answers; it may still be loading.
      tokens: that routes want.
    """
    app = FastAPIOffline(
        title="m6rec",
        version=__version__,
        description=_ABOUT,
        redoc_url=None,
        static_url=DOCS_FILES,
    )
    add_handlers(app)
    tokens = tokens or Tokens()

    def openapi() -> dict[str, Any]:
        return document.of_snapshot(
            app, server.snapshots.current if server.snapshots.ready else None
        )

    app.openapi = openapi  # type: ignore[method-assign]

    async def healthy() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "ok"}

    async def ready() -> Response:
        """Whether requests are answered: the model is loaded, and the server is not ending."""
        return JSONResponse({"ready": server.ready}, 200 if server.ready else 503)

    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    under_vertex = vertex.health_route()
    if under_vertex is not None:  # first: it may be '/healthz', or the page's
        app.get(under_vertex, include_in_schema=False)(ready)
    # `Access` checks tokens before a body is read; here they are for the document.
    bearer = [Security(HTTPBearer(auto_error=False))]
    reading = bearer if tokens.read else []
    lacking = responses(401) if tokens.read else {}
    for part in (native, rerank_api, openai_api, vertex):
        app.include_router(
            part.routes(server),
            dependencies=[*reading, Depends(read_headers)],
            responses=_ASKED | lacking,
        )
    app.include_router(
        page.routes(server), dependencies=reading, responses=responses(404, 409, 422, 503) | lacking
    )
    app.include_router(
        admin.routes(server),
        dependencies=bearer if tokens.admin else [],
        responses=responses(400, 401, 403, 404, 409, 413, 415, 422, 500, 503),
    )
    app.get("/healthz", tags=["operation"])(healthy)
    loading = {503: {"description": "Not yet, or not any more."}}
    app.get("/readyz", tags=["operation"], responses=loading)(ready)  # type: ignore[arg-type]
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    texts: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
    if tokens.read:
        texts[401] = {"description": STATUSES[401], "content": error}
    app.get(
        "/metrics",
        tags=["operation"],
        response_class=Response,
        dependencies=reading,
        responses=texts,
    )(metrics)
    return Access(app, server, tokens, () if under_vertex is None else (under_vertex,))
