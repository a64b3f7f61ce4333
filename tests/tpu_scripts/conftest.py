"""Fixtures: a world without a slice, and one whose slice is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tpu_scripts.calls import succeeded
from tests.tpu_scripts.world import HERE, World, program


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path)
    yield made
    made.kill_runs()


def make_world(tmp_path: Path) -> World:
    folder = tmp_path / "world"
    made = World(folder=folder, home=tmp_path / "home", bin=tmp_path / "bin")
    made.home.mkdir()
    # -I -S: starts in a few milliseconds.
    interpreter = f"#!{sys.executable} -IS\n"
    gcloud = interpreter + (HERE / "stub_gcloud.py").read_text()
    program(made.bin / "gcloud", gcloud)
    program(made.bin / "sleep", f'#!/bin/sh\necho "$1" >>{folder}/sleeps\nexec /bin/sleep 0.2\n')
    program(folder / "host_bin" / "gcloud", gcloud)
    program(folder / "host_bin" / "hostname", '#!/bin/sh\necho "$STUB_HOST"\n')
    program(folder / "host_bin" / "python3.11", interpreter + (HERE / "stub_python.py").read_text())
    (folder / "buckets" / "bucket").mkdir(parents=True)
    made.write("behaviours.json", {"*": ["wait"]})
    return made


@pytest.fixture
def pod(world: World) -> World:
    """A slice of two hosts that is there, with the package installed."""
    world.write("workers", 2)
    world.write("states.json", ["ACTIVE"])
    succeeded(world.run("install"))
    (world.folder / "calls.jsonl").unlink()
    return world
