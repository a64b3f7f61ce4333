"""Preparation by a cluster of two nodes writes what one process writes. `make ray` runs it."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.data import shard_run
from m6rec_jax.data.prepare import prepare
from m6rec_jax.data.prepare_options import PrepareOptions

NUM_USERS, NUM_ITEMS = 60, 30


def _workers() -> list[int]:
    """Processes of Ray's workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_Actor"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def test_a_cluster_that_loses_a_worker(write_shop, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("ray", reason="needs the extra ray: make ray")
    from ray.cluster_utils import Cluster

    # Many shards and time slices of few events.
    monkeypatch.setattr(shard_run, "_SHARD_EVENTS", 60)
    monkeypatch.setattr(shard_run, "_SLICE_GROUPS", 20)
    random = np.random.default_rng(0)
    keys = {
        (int(user), int(item), 3600.0 * int(hour))
        for user, item, hour in zip(
            random.integers(NUM_USERS, size=1800),
            random.integers(NUM_ITEMS, size=1800),
            random.integers(1000, size=1800),
            strict=True,
        )
    }
    log = [(*key, float(random.integers(1, 6))) for key in sorted(keys)]
    folder = write_shop(log, num_users=NUM_USERS, num_items=NUM_ITEMS)
    options = PrepareOptions(views=("groups", "next_items", "documents"))
    alone, together = tmp_path / "alone", tmp_path / "together"
    prepare(folder, alone, options=options, progress=False)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    killed: list[int] = []

    def kill_one() -> None:
        while not list(together.glob("*/unfinished/groups-*")):
            time.sleep(0.05)
        for worker in _workers()[:1]:
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)

    try:
        cluster.add_node(num_cpus=3)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        threading.Thread(target=kill_one, daemon=True).start()
        prepare(folder, together, options=options, engine="ray", progress=False)
    finally:
        cluster.shutdown()
    assert len(killed) == 1
    files = sorted(p.relative_to(alone) for p in alone.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(together) for p in together.rglob("*") if p.is_file())
    assert len(files) > 60
    for file in files:
        assert (alone / file).read_bytes() == (together / file).read_bytes(), file
