"""`m6rec serve`: loads a model, compiles everything, answers over HTTP until SIGTERM."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import gin
import jax
import uvicorn
from starlette.types import ASGIApp

from m6rec_jax.data.getting.sources import default_cache_dir
from m6rec_jax.engine.programs.kept_programs import keep_programs
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.io.closest import did_you_mean
from m6rec_jax.jobs.job import jobs as all_jobs
from m6rec_jax.server.access import Tokens
from m6rec_jax.server.app import make_app
from m6rec_jax.server.metrics import PROGRAMS
from m6rec_jax.server.snapshots import Server
from m6rec_jax.serving.service import Service, ServiceOptions
from m6rec_jax.sharding import LogicalRules

log = logging.getLogger(__name__)

# Seconds that an idle connection stays open. Balancers keep theirs for 600, and would else send a
# request as the server closes it.
_KEEP_ALIVE = 620


# What the command line says is not gin's to say.
@gin.configurable(denylist=["model_dir", "bank", "index", "host", "port", "tokens", "engine"])
def serve(
    model_dir: str | Path,
    *,
    bank: str | Path | None = None,
    index: str | Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    tokens: Tokens | None = None,
    engine: Literal["process", "ray"] = "process",
    prepared: str | None = None,
    items: str | None = None,
    segments: str | None = None,
    step: int | None = None,
    rules: LogicalRules | None = None,
    batch_sizes: Sequence[int] | None = None,
    source_buckets: Sequence[int] | None = None,
    jobs: Sequence[str] = (),
    timeout: float = 30.0,
    grace: float = 25.0,
) -> None:
    """Serves until SIGTERM or SIGINT; returns when all requests are answered, or ends the process
    with status 0 where their time is over.

    Args:
      model_dir, bank, step: see `Service.open`.
      index, prepared, items, segments, batch_sizes, source_buckets: see `ServiceOptions`.
      host, port: where to listen; port 0 takes a free one.
      tokens: that routes want; None: see `Tokens`.
      engine: 'process': this one answers; 'ray': replicas of Ray Serve, see `ray_engine`.
      rules: logical-axis rules, by which the model lies over the mesh of `make_mesh` (gin); None:
        it is on the default device.
      jobs: that may be asked beside what tasks are for, and take programs of their own:
        'title_recommendation' of tasks that write titles, 'likelihood' of any task.
      timeout: seconds that a request may wait, and its texts may take, where it does not say.
      grace: seconds that requests have to end in after SIGTERM.

    Raises:
      M6RecError: the model, its data or its indexes are missing or wrong.
    """
    further = [name for name, job in all_jobs().items() if job.on_request]
    for job in jobs:
        if job not in further:
            raise ConfigError(
                f"serve.jobs has '{job}'{did_you_mean(job, further)}; known: {', '.join(further)}"
            )
    options = ServiceOptions(prepared, items, index, segments, batch_sizes, source_buckets, True)
    load = functools.partial(
        Service.open,
        model_dir,
        bank=bank,
        step=step,
        rules=tuple(rules or ()),
        options=options,
    )
    bound = _bind(host, port)
    if host not in ("127.0.0.1", "localhost", "::1") and (tokens is None or tokens.read is None):
        log.warning("everybody who reaches %s may ask: there is no read token", host)
    if engine == "ray":
        from m6rec_jax.server.ray_engine import serve_replicas

        if tokens is not None and tokens.admin is not None:
            raise ConfigError(
                "--engine ray takes no admin token: a replica that starts later would lack a change"
            )
        port = bound.getsockname()[1]
        bound.close()  # it is Ray Serve that listens there
        app = functools.partial(_loaded_app, load, tuple(jobs), timeout, tokens)
        serve_replicas(app, host, port, grace)
        return
    server = Server(jobs, timeout)
    config = uvicorn.Config(
        make_app(server, tokens),
        log_config=None,
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(grace),
    )
    listening = uvicorn.Server(config)

    def stop(*_: object) -> None:
        listening.should_exit = True

    loading = concurrent.futures.ThreadPoolExecutor(1).submit(_start, server, load)
    loading.add_done_callback(lambda done: stop() if done.exception() else None)
    # uvicorn's own handlers send the signal again when all is done: as if the process had failed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        listening.run([bound])
    finally:
        all_answered = server.scheduler.close(1.0)
    if loading.done():
        loading.result()  # raises what kept it from loading
    log.info("stopped: %s", "all requests are answered" if all_answered else "time was over")
    if not (loading.done() and all_answered):
        # Python cannot end threads that compile or compute; the process would abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _start(server: Server, load: Callable[[], Service]) -> None:
    """Opens the model and compiles all that requests may run; raises M6RecError."""
    began = time.monotonic()
    use_compilation_cache()
    server.start(load())
    seconds, counts = time.monotonic() - began, (PROGRAMS.made, PROGRAMS.cached)
    log.info("ready in %.1f s: %d programs, %d of them from the cache", seconds, *counts)


def _loaded_app(
    load: Callable[[], Service], jobs: Sequence[str], timeout: float, tokens: Tokens | None
) -> ASGIApp:
    """The app of a server that has loaded, in a process of a replica."""
    server = Server(jobs, timeout)
    _start(server, load)
    return make_app(server, tokens)


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, also small ones, unless JAX was told where already."""
    folder = jax.config.values["jax_compilation_cache_dir"] or str(default_cache_dir() / "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    if not in_bucket(folder):
        keep_programs(Path(folder) / "without_tracing")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens; raises ConfigError where the port is taken or the host unknown."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen at {host}, port {port}: {error}") from error
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{bound.getsockname()[1]} (documentation: /docs)", flush=True)
    return bound
