"""The FastAPI app over a `Server`: routes, documentation, probes."""

from __future__ import annotations

import logging
import os
from typing import Any

import gin
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from m6rec_jax import __version__
from m6rec_jax.server import admin, native, openai_api, page, rerank_api
from m6rec_jax.server.access import Access, Tokens
from m6rec_jax.server.errors import StrictRoute, add_handlers, responses
from m6rec_jax.server.snapshots import Server

log = logging.getLogger(__name__)

_TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ABOUT = """One language model for every job of a recommender.

Every error has one shape: `{"error": {"message", "type", "param", "code"}}`. Where a request fits
this document and is answered by 409, it does not fit what is served: no task is for that job, the
data set has no such column, times are out of order, there is nothing to read. The header
`X-Timeout-Ms` (1 to 3,600,000) says how long a request may wait. `GET /v1/items` says which columns
users and items of a task have.
"""
_ASKED = responses(400, 404, 408, 409, 413, 422, 429, 500, 503, 504)


@gin.configurable(denylist=["server", "tokens"])
def make_app(server: Server, tokens: Tokens | None = None, *, body_bytes: int = 8 << 20) -> Access:
    """The ASGI app.

    Args:
      server: what answers; it may still be loading.
      tokens: that routes want.
      body_bytes: most bytes of a body.
    """
    about: dict[str, Any] = {"title": "m6rec", "version": __version__, "description": _ABOUT}
    app = FastAPIOffline(redoc_url=None, static_url="/docs-files", **about)
    app.state.server, app.state.body_bytes = server, body_bytes
    add_handlers(app)
    tokens = tokens or Tokens()

    async def ready() -> Response:
        """Whether requests are answered: the model is loaded."""
        return JSONResponse({"ready": server.ready}, 200 if server.ready else 503)

    if health := os.environ.get("AIP_HEALTH_ROUTE"):  # first: it may be '/healthz', or the page's
        app.get(health, include_in_schema=False)(ready)
    page.add_files(app)
    reading = [Depends(tokens.check_read)] if tokens.read else []
    lacking = responses(401) if tokens.read else {}
    under_vertex = APIRouter(route_class=StrictRoute, tags=["Vertex AI"])
    under_vertex.post(os.environ.get("AIP_PREDICT_ROUTE", "/predict"))(native.predict)
    routers = (native.router, rerank_api.router, openai_api.router, under_vertex, page.router)
    for router in routers:
        app.include_router(router, dependencies=reading, responses=_ASKED | lacking)
    app.include_router(
        admin.router,
        dependencies=[Depends(tokens.check_admin)],
        responses=responses(400, 401, 403, 404, 408, 409, 413, 422, 500, 503),
    )
    app.get("/readyz", tags=["operation"], responses={503: {"description": "Not yet."}})(ready)

    @app.get("/healthz", tags=["operation"])
    async def healthy() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "ok"}

    plain = {200: {"content": {"text/plain": {}}}, **lacking}

    @app.get("/metrics", tags=["operation"], dependencies=reading, responses=plain)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    _trace(app)
    return Access(app, server.metrics)


def _trace(app: FastAPI) -> None:
    """Sends a span for each request to where `OTEL_EXPORTER_OTLP_ENDPOINT` says, if it is set."""
    if not os.environ.get(_TRACES):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("%s is set, and traces need the extra m6rec_jax[tracing]", _TRACES)
        return
    provider = TracerProvider(resource=Resource.create({"service.name": "m6rec"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, exclude_spans=["receive", "send"]
    )
