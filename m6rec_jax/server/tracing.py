"""OpenTelemetry traces of requests (extra `tracing`), where the environment says where they go."""

from __future__ import annotations

import logging
import os

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def trace(app: ASGIApp) -> ASGIApp:
    """The app with a span for each request, named by method and route; it holds no text of users.

    `OTEL_EXPORTER_OTLP_ENDPOINT` says where spans go; without it, and without the extra, the app
    stays as it is.
    """
    if not os.environ.get(_ENDPOINT):
        return app
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("%s is set, and traces need the extra m6rec_jax[tracing]", _ENDPOINT)
        return app

    provider = TracerProvider(resource=Resource.create({"service.name": "m6rec"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return with_spans(app, provider)


def with_spans(app: ASGIApp, provider: object) -> ASGIApp:
    """The app with a span for each request, of a `TracerProvider`."""
    from opentelemetry.propagate import extract
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind, StatusCode

    assert isinstance(provider, TracerProvider)
    tracer = provider.get_tracer("m6rec_jax.server")

    async def traced(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        given = {name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]}
        with tracer.start_as_current_span(
            scope["method"], extract(given), kind=SpanKind.SERVER
        ) as span:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    route = getattr(scope.get("route"), "path", "(no route)")
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await app(scope, receive, noting)

    return traced
