"""`m6rec serve --engine ray`: the plain server's app as a deployment of Ray Serve (extra `ray`).

Ray Serve listens and hands each request to a replica. Its consistent hash sends a session, which a
client names in `X-Session-Id`, to the same replica as long as that lives and has room, so that
cached segments are found.

`RAY_ADDRESS` names a cluster, whose nodes find the run, its data and its indexes at the same paths.
Without, Ray runs on this machine, which is then the only one that listens.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

import gin
from starlette.types import ASGIApp

from m6rec_jax.configuration import bound
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.workers import set_up_process, start_ray

log = logging.getLogger(__name__)

_APP = "m6rec"
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@gin.configurable(denylist=["make_app", "host", "port", "grace"])
def serve_replicas(
    make_app: Callable[[], ASGIApp],
    host: str,
    port: int,
    grace: float,
    *,
    min_replicas: int = 1,
    max_replicas: int = 1,
    target_queue: float = 8.0,
    max_requests: int = 64,
    resources: Mapping[str, float] | None = None,
) -> None:
    """Serves by replicas until SIGTERM or SIGINT; returns when they have ended.

    Args:
      make_app: called in the process of each replica; can be pickled.
      host, port: where Ray Serve listens.
      grace: seconds in which requests may end when a replica is stopped.
      min_replicas, max_replicas: bounds of their number.
      target_queue: requests that a replica has at a time, on average: more of them start another
        replica, fewer end one.
      max_requests: that one replica has at a time; a session whose replica has as many is answered
        by the next one.
      resources: of Ray that a replica takes: `{'CPU': 4}`, `{'GPU': 1}`, `{'TPU': 4}`; None: one
        CPU.

    Raises:
      ConfigError: Ray is not installed, bounds that are none, or no replica could be started.
    """
    if not 1 <= min_replicas <= max_replicas:
        raise ConfigError(
            f"serve_replicas.min_replicas = {min_replicas} must be at least 1, and "
            f"serve_replicas.max_replicas = {max_replicas} at least as many"
        )
    ray = start_ray("m6rec serve --engine ray", 100 << 20)
    from ray import serve

    settings, folder = gin.config_str(), os.getcwd()

    def application() -> ASGIApp:
        """The app, in a process of a replica."""
        set_up_process(settings, folder)
        return make_app()

    of_replica = dict(resources or {"CPU": 1})
    options: dict[str, Any] = {
        "ray_actor_options": {
            "num_cpus": of_replica.pop("CPU", 0),
            "num_gpus": of_replica.pop("GPU", 0),
            "resources": of_replica,
            # Replicas on other machines send their traces to the same place.
            "runtime_env": {
                "env_vars": {n: v for n, v in os.environ.items() if n.startswith("OTEL_")}
            },
        },
        "autoscaling_config": {
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_queue,
        },
        "max_ongoing_requests": max_requests,
        "max_queued_requests": bound("Scheduler.max_queue", 512),
        "graceful_shutdown_timeout_s": grace,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2.0,
        # What is wrong with a model is wrong at the second time, too.
        "max_constructor_retry_count": 1,
        "request_router_config": {"request_router_class": _ROUTER},
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    listening = {"host": host, "port": port}
    serve.start("HeadOnly", http_options=listening, logging_config={"log_level": "ERROR"})
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has set its own
        signal.signal(number, lambda *_: stopped.set())
    deployment = serve.deployment(name="replica", **options)(serve.ingress(application)())
    target = serve.RunTarget(deployment.bind(), name=_APP, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    try:
        while not stopped.wait(0.2):
            status = serve.status().applications[_APP]
            if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                texts = [status.message, *(one.message for one in status.deployments.values())]
                reasons = re.findall(r"m6rec_jax\.\S+Error: (.*)$", "\n".join(texts), re.MULTILINE)
                why = reasons[-1] if reasons else "\n".join(texts)[-2000:]
                raise ConfigError(f"no replica could be started: {why}")
            if status.status == "RUNNING":
                number_running = status.deployments["replica"].replica_states.get("RUNNING", 0)
                log.info("ready: %d replicas", number_running)
                stopped.wait()
        serve.delete(_APP)
        log.info("stopped: all requests are answered")
    finally:
        ray.shutdown()
