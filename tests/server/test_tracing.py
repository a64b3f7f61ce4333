"""Where traces go, and that a server starts without what they need."""

import sys

from m6rec_jax.server.tracing import trace


async def app(scope, receive, send) -> None:
    """Stands for the server's."""


def test_without_the_extra_the_app_stays_as_it_is(monkeypatch, caplog) -> None:
    assert trace(app) is app
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name in ("opentelemetry", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)  # as if it were not installed
            assert trace(app) is app
    assert caplog.text.count("traces need the extra") == 2
