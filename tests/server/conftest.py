"""Servers over the tiny films: in this process, and over a socket for real clients."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
import uvicorn
from fastapi.testclient import TestClient

from m6rec_jax.engine.programs.kept_programs import keep_programs
from m6rec_jax.server.app import make_app
from m6rec_jax.server.launch import use_compilation_cache
from m6rec_jax.server.snapshots import Server
from m6rec_jax.serving.service import Service
from tests.server import served as served_folder


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[None]:
    """Found without tracing by all workers and all services: they are the same for every folder.

    Tests of other folders count what is traced.
    """
    use_compilation_cache()
    yield
    keep_programs(None)


@pytest.fixture(scope="session")
def folder(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served_folder.write(served, tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="session")
def service(folder: Path) -> Service:
    return served_folder.open_service(folder)


@pytest.fixture(scope="session")
def server(service: Service, folder: Path) -> Iterator[Server]:
    """Ready, and shared: tests that change it make one of their own."""
    use_compilation_cache()  # a session's fixtures come before those of a module
    # One worker compiles, the others find its programs.
    with filelock.FileLock(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "server.lock"):
        server = served_folder.make_server(service)
    yield server
    server.scheduler.close(10)


@pytest.fixture(scope="session")
def client(server: Server) -> TestClient:
    return TestClient(make_app(server), raise_server_exceptions=False)


@pytest.fixture(scope="session")
def listen() -> Iterator[Callable[[Any], str]]:
    """Lets an app listen at a socket; returns its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any) -> str:
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def address(server: Server, listen: Callable[[Any], str]) -> str:
    return listen(make_app(server))
