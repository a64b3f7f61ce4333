"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from m6rec_jax.engine.programs.kept_programs import LOADED_EVENT
from m6rec_jax.engine.segments.cache import SegmentCache

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


class _Segments(Collector):
    """Reads a cache of segments when somebody asks."""

    def __init__(self, find: Callable[[], SegmentCache | None]) -> None:
        self._find = find

    def collect(self) -> Iterable[Metric]:
        """Counts of both pools; nothing where late interaction is off."""
        cache = self._find()
        if cache is None:
            return
        counters = CounterMetricFamily(
            "m6rec_segments", "Segments by where they were found", labels=("pool", "outcome")
        )
        for pool, counts in cache.counts().items():
            for outcome, number in dataclasses.asdict(counts).items():
                counters.add_metric((pool, outcome), number)
        yield counters


class Metrics:
    """Metrics of one server, in a registry of their own.

    Args:
      depth: of the queue.
      ready: whether requests are answered.
      segments: the cache of early layers' work; None: there is none.
    """

    def __init__(
        self,
        depth: Callable[[], int],
        ready: Callable[[], bool],
        segments: Callable[[], SegmentCache | None],
    ) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"m6rec_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, label: str) -> Histogram:
            buckets = _SIZES if name == "batch_size" else _SECONDS
            return Histogram(f"m6rec_{name}", text, (label,), buckets=buckets, registry=registry)

        def gauge(name: str, text: str, function: Callable[[], float]) -> None:
            Gauge(f"m6rec_{name}", text, registry=registry).set_function(function)

        self.requests = counter(
            "http_requests", "Requests by route and status", "method", "route", "status"
        )
        self.request_seconds = histogram(
            "http_request_seconds", "Until the answer's last byte", "route"
        )
        self._batch_size = histogram("batch_size", "Requests of a batch", "job")
        self._wait = histogram("wait_seconds", "In the queue", "job")
        self._run = histogram("run_seconds", "Of a batch on the devices", "job")
        self._failures = counter("failures", "Requests that failed on the devices", "job")
        self.swaps = counter("swaps", "Changes of prompts and data", "what")
        gauge("programs", "Compiled or read from the cache", lambda: PROGRAMS.made)
        gauge("programs_cached", "Read from the persistent cache", lambda: PROGRAMS.cached)
        gauge("queue_depth", "Requests that wait", depth)
        gauge("ready", "Whether requests are answered", ready)
        registry.register(_Segments(segments))

    def batch(self, job: str, waits: Sequence[float], seconds: float, failures: int) -> None:
        """Counts a batch, see `Scheduler`."""
        self._batch_size.labels(job).observe(len(waits))
        self._run.labels(job).observe(seconds)
        for wait in waits:
            self._wait.labels(job).observe(wait)
        if failures:
            self._failures.labels(job).inc(failures)
