"""The FastAPI app over a `Server`: routes, documentation, probes."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from m6rec_jax import __version__
from m6rec_jax.server import admin, native, openai_api, page, rerank_api, vertex
from m6rec_jax.server.access import Access, Tokens
from m6rec_jax.server.asking import Server
from m6rec_jax.server.errors import add_handlers

_ABOUT = """One language model for every job of a recommender.

Every error has one shape: `{"error": {"message", "type", "param", "code"}}`. Two headers may go
with every request: `X-Timeout-Ms`, how long it may wait, and `X-Priority: bulk`: others go first.
"""


def make_app(server: Server, tokens: Tokens | None = None) -> Access:
    """The ASGI app.

    Args:
      server: what answers; it may still be loading.
      tokens: that routes want.
    """
    app = FastAPI(title="m6rec", version=__version__, description=_ABOUT, redoc_url=None)
    add_handlers(app)

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
    for part in (page, native, rerank_api, openai_api, vertex, admin):
        app.include_router(part.routes(server))
    app.get("/healthz", tags=["operation"])(healthy)
    app.get("/readyz", tags=["operation"])(ready)
    app.get("/metrics", tags=["operation"])(metrics)
    return Access(app, server, tokens or Tokens(), () if under_vertex is None else (under_vertex,))
