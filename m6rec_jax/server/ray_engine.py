"""`m6rec serve --engine ray`: the plain server's app as a deployment of Ray Serve (extra `ray`).

Ray Serve listens and hands each request to a replica. Its consistent hash sends a session, which a
client names in `X-Session-Id`, to the same replica as long as that lives and has room, so that
cached segments are found.

`RAY_ADDRESS` names a cluster, whose nodes find the run, its data and its indexes at the same paths.
Without, Ray runs on this machine, which is then the only one that listens.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import gin
from starlette.types import ASGIApp

from m6rec_jax.configuration import bound
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.workers import set_up_process, start_ray
from m6rec_jax.server.access import Tokens
from m6rec_jax.server.app import make_app
from m6rec_jax.server.served import Served
from m6rec_jax.server.tracing import trace

log = logging.getLogger(__name__)

_APP = "m6rec"
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and what each has.

    Attributes:
      min_replicas, max_replicas: bounds of their number.
      target_queue: requests that a replica has at a time, on average: more of them start another
        replica, fewer end one.
      max_requests: that one replica has at a time; a session whose replica has as many is answered
        by the next one.
      resources: of Ray that a replica takes: `{'CPU': 4}`, `{'GPU': 1}`, `{'TPU': 4}`.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_queue: float = 8.0
    max_requests: int = 64
    resources: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"CPU": 1})

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"Replicas.min_replicas = {self.min_replicas} must be at least 1, and "
                f"Replicas.max_replicas = {self.max_replicas} at least as many"
            )

    def options(self, grace: float) -> dict[str, Any]:
        """Of `ray.serve.deployment`."""
        resources = dict(self.resources)
        actor = {
            "num_cpus": resources.pop("CPU", 0),
            "num_gpus": resources.pop("GPU", 0),
            "resources": resources,
            # Replicas on other machines send their traces to the same place.
            "runtime_env": {
                "env_vars": {n: v for n, v in os.environ.items() if n.startswith("OTEL_")}
            },
        }
        number: dict[str, Any] = {"num_replicas": self.min_replicas}
        if self.max_replicas > self.min_replicas:
            scaling = {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_queue,
            }
            number = {"autoscaling_config": scaling}
        return number | {
            "ray_actor_options": actor,
            "max_ongoing_requests": self.max_requests,
            "max_queued_requests": bound("Scheduler.max_queue", 512),
            "graceful_shutdown_timeout_s": grace,
            "graceful_shutdown_wait_loop_s": 0.2,
            "health_check_period_s": 2.0,
            # What is wrong with a model is wrong at the second time, too.
            "max_constructor_retry_count": 1,
            "request_router_config": {"request_router_class": _ROUTER},
            "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
        }


def serve_replicas(served: Served, tokens: Tokens, host: str, port: int, grace: float) -> None:
    """Serves by replicas until SIGTERM or SIGINT; returns when they have ended.

    Args:
      served, tokens: of each replica.
      host, port: where Ray Serve listens.
      grace: seconds in which requests may end when a replica is stopped.

    Raises:
      ConfigError: Ray is not installed, `Replicas` are impossible, no replica could be started, or
        there is a token for changes: replicas that start later would lack them.
    """
    if tokens.admin is not None:
        raise ConfigError(
            "--engine ray takes no admin token: replicas are not changed while they run, since one "
            "that starts later would lack the change. Start the server anew with changed folders"
        )
    options = Replicas().options(grace)
    ray = start_ray("m6rec serve --engine ray", 100 << 20)
    from ray import serve

    settings, folder = gin.config_str(), os.getcwd()

    def application() -> ASGIApp:
        """The app, in a process of a replica."""
        set_up_process(settings, folder)
        server = served.server()
        served.load(server)
        return trace(make_app(server, tokens))

    began = time.monotonic()
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
                reason = _reason("\n".join(texts))
                raise ConfigError(f"no replica could be started: {reason}")
            if status.status == "RUNNING":
                number_running = status.deployments["replica"].replica_states.get("RUNNING", 0)
                seconds = time.monotonic() - began
                log.info("ready in %.1f s: %d replicas", seconds, number_running)
                stopped.wait()
        serve.delete(_APP)
        log.info("stopped: all requests are answered")
    finally:
        ray.shutdown()


def _reason(message: str) -> str:
    """The error of this package in a replica's traceback, else the last lines."""
    found = re.findall(r"m6rec_jax\.\S+Error: (.*)$", message, re.MULTILINE)
    return found[-1] if found else "\n".join(message.strip().splitlines()[-20:])
