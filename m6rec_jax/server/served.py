"""What a process of the server answers with: how its model is opened, and its programs compiled."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from m6rec_jax.data.getting.sources import default_cache_dir
from m6rec_jax.engine.programs.kept_programs import keep_programs
from m6rec_jax.io.buckets import in_bucket
from m6rec_jax.server.asking import Server
from m6rec_jax.server.limits import Limits
from m6rec_jax.server.metrics import PROGRAMS, Metrics
from m6rec_jax.server.snapshots import Snapshot, Snapshots
from m6rec_jax.serving.scheduler import Scheduler
from m6rec_jax.serving.service import Service, ServiceOptions
from m6rec_jax.sharding import LogicalRules, make_mesh

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Served:
    """What a process serves; it can be pickled, and names the run's files.

    Attributes:
      model_dir, bank, step, batch_sizes, rules, jobs, timeout: see `launch.serve`.
      options: what it answers with; its `batch_sizes` are not read.
    """

    model_dir: str
    bank: str | None
    step: int | None
    options: ServiceOptions
    batch_sizes: Sequence[int] | None
    rules: LogicalRules | None
    jobs: Sequence[str]
    timeout: float

    def server(self) -> Server:
        """A server that waits for `load`; its limits and its scheduler are gin's."""
        metrics = Metrics()
        snapshots = Snapshots(
            lambda service, version: Snapshot(service, version, self.jobs),
            lambda what: metrics.swaps.labels(what).inc(),
        )
        return Server(snapshots, Scheduler(observe=metrics.batch), Limits(), metrics, self.timeout)

    def load(self, server: Server) -> None:
        """Opens the model and compiles all that requests may run.

        Raises:
          M6RecError: the model, its data or its indexes are missing or wrong.
        """
        began = time.monotonic()
        use_compilation_cache()
        batch_sizes = self.batch_sizes
        if batch_sizes is None:
            batch_sizes = (1, 8) if jax.default_backend() == "cpu" else (1, 32)
        service = Service.open(
            self.model_dir,
            bank=self.bank,
            step=self.step,
            mesh=None if self.rules is None else make_mesh(),
            rules=tuple(self.rules or ()),
            options=dataclasses.replace(self.options, batch_sizes=tuple(batch_sizes)),
        )
        server.snapshots.start(service)
        log.info(
            "ready in %.1f s: %d programs, %d of them from the cache",
            time.monotonic() - began,
            PROGRAMS.made,
            PROGRAMS.cached,
        )


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, also small ones, unless JAX was told where already."""
    folder = jax.config.values["jax_compilation_cache_dir"] or str(default_cache_dir() / "programs")
    jax.config.update("jax_compilation_cache_dir", folder)
    if not in_bucket(folder):
        keep_programs(Path(folder) / "without_tracing")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
