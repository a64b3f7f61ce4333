"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from m6rec_jax.engine.programs.kept_programs import LOADED_EVENT

_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHED = "/jax/compilation_cache/cache_hits"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class _Programs:
    """Programs of this process, as JAX counts them.

    Attributes:
      made: compiled, or read from the persistent cache.
      cached: read from there, or without being traced (`kept_programs`).
    """

    def __init__(self) -> None:
        self.made = self.cached = 0
        self._lock = threading.Lock()  # several threads compile
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: self._on(event)
        )
        jax.monitoring.register_event_listener(lambda event, **_: self._on(event))

    def _on(self, event: str) -> None:
        with self._lock:
            self.made += event in (_COMPILED, LOADED_EVENT)
            self.cached += event in (_CACHED, LOADED_EVENT)


PROGRAMS = _Programs()


class Metrics:
    """Metrics of one server, in a registry of their own.

    Args:
      depth: of the queue.
      ready: whether requests are answered.
    """

    def __init__(self, depth: Callable[[], int], ready: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        ours: dict[str, Any] = {"namespace": "m6rec", "registry": self.registry}
        by_job, labels = ours | {"labelnames": ["job"]}, ("method", "route", "status")
        seconds = by_job | {"buckets": _SECONDS}
        self.requests = Counter("http_requests", "Requests by route and status", labels, **ours)
        self.request_seconds = Histogram(
            "http_request_seconds",
            "Until the answer's last byte",
            ["route"],
            buckets=_SECONDS,
            **ours,
        )
        self._batch_size = Histogram("batch_size", "Requests of a batch", **by_job, buckets=_SIZES)
        self._wait = Histogram("wait_seconds", "In the queue", **seconds)
        self._run = Histogram("run_seconds", "Of a batch on the devices", **seconds)
        self._failures = Counter("failures", "Requests that failed on the devices", **by_job)
        self.swaps = Counter("swaps", "Changes of prompts and data", ["what"], **ours)
        for name, text, function in (
            ("programs", "Compiled or read from the cache", lambda: PROGRAMS.made),
            ("programs_cached", "Read from the persistent cache", lambda: PROGRAMS.cached),
            ("queue_depth", "Requests that wait", depth),
            ("ready", "Whether requests are answered", ready),
        ):
            Gauge(name, text, **ours).set_function(function)

    def batch(self, job: str, waits: Sequence[float], seconds: float, failures: int) -> None:
        """Counts a batch, see `Scheduler`."""
        self._batch_size.labels(job).observe(len(waits))
        self._run.labels(job).observe(seconds)
        for wait in waits:
            self._wait.labels(job).observe(wait)
        if failures:
            self._failures.labels(job).inc(failures)
