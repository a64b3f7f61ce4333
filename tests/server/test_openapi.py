"""The OpenAPI document against the server: what it says is what happens."""

import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from m6rec_jax.server.access import Tokens
from m6rec_jax.server.app import make_app
from tests.server import served

SCHEMATHESIS = Path(sysconfig.get_path("scripts"), "schemathesis")
ADMIN = "a" * 20


@pytest.mark.parametrize(
    "examples", [3, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
def test_schemathesis_finds_nothing(
    folder: Path, listen: Callable[[Any], str], tmp_path: Path, examples: int
) -> None:
    """With the admin's token: tasks are taken out and added, one request after the other."""
    server = served.make_server(served.open_service(folder))
    address = listen(make_app(server, Tokens(read="r" * 20, admin=ADMIN)))
    command = [str(SCHEMATHESIS), "run", f"{address}/openapi.json", "--no-color", "--seed", "1"]
    command += ["--max-examples", str(examples), "-H", f"Authorization: Bearer {ADMIN}"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    server.scheduler.close(10)
    said = (found.stdout + found.stderr).splitlines()
    assert found.returncode == 0, "\n".join(line[:400] for line in said)  # bodies are long


def test_documentation_needs_no_other_host(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page
    files = [part.split('"')[0] for part in page.split('="/docs-files')[1:]]
    assert files
    for file in files:
        assert client.get(f"/docs-files{file}").status_code == 200
