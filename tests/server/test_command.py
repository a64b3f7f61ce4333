"""`m6rec serve` as a user runs it: a process, asked over HTTP, ended by SIGTERM under load."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m6rec_jax.commands.answering import _indexes
from m6rec_jax.errors import ConfigError
from m6rec_jax.server.launch import _bind, serve
from tests.integration.commands import ROOT
from tests.server.served import request

COMMAND = """
import sys
from m6rec_jax.cli import main
status = main(sys.argv[1:])
heavy = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "clu"}
heavy |= {"matplotlib", "sklearn", "tensorboard", "duckdb", "google_crc32c"}
heavy &= set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else status)
"""


class Running:
    """The command; its lines as they come."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        # Programs are kept where a user's are.
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "serve", *arguments],
            cwd=folder,
            env=environment | {"M6REC_DATA_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []

    def until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail("".join(self.lines))


@pytest.fixture
def run(folder: Path) -> Iterator[Any]:
    started: list[Running] = []

    def start(*arguments: str) -> Running:
        started.append(Running(folder, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def ask(address: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_from_a_run_to_an_answer_to_a_clean_exit(run: Any, folder: Path) -> None:
    served = run(
        *("run", "--bank", "bank", "--index", "index", "--port", "0"),
        *("--gin.PREPARED='data'", "--gin.load_bank.tasks=['ctr', 'next']"),
    )
    address = served.until(r"^(http://127\.0\.0\.1:\d+) ")[1]
    assert ask(address, "/healthz")[0] == 200
    found = served.until(r"ready in ([\d.]+) s: (\d+) programs, (\d+) of them from the cache")
    assert int(found[2]) <= 30
    assert ask(address, "/readyz") == (200, {"ready": True})
    body = request(3) | {"task": "ctr"}
    status, answer = ask(address, "/v1/score", body)
    assert status == 200
    assert len(answer["items"]) == len(body["candidates"])

    statuses: list[int] = []

    def load() -> None:
        while True:
            try:
                statuses.append(ask(address, "/v1/score", body)[0])
            except (urllib.error.URLError, ConnectionError):
                return  # it has stopped listening

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        loads = [pool.submit(load) for _ in range(8)]
        while len(statuses) < 30:
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        output, _ = served.process.communicate(timeout=60)
        for one in loads:
            one.result(60)
    assert served.process.returncode == 0, "".join(served.lines) + output
    assert "all requests are answered" in output
    assert set(statuses) <= {200, 503}
    log = "".join(served.lines) + output
    assert "POST /v1/score 200" in log
    assert "comedy" not in log

    assert (folder / "cache" / "programs").is_dir()
    # The second time programs come from the cache.
    again = run(
        *("run", "--bank", "bank", "--index", "index", "--port", "0"),
        *("--gin.PREPARED='data'", "--gin.load_bank.tasks=['ctr', 'next']"),
    )
    address = again.until(r"^(http://127\.0\.0\.1:\d+) ")[1]
    warm = again.until(r"ready in ([\d.]+) s: (\d+) programs, (\d+) of them from the cache")
    assert warm[2] == warm[3] == found[2]
    assert ask(address, "/v1/score", body) == (200, answer)


def test_what_a_user_can_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--index b: of several indexes each is --index TASK="):
        _indexes(["a=x", "b"])
    assert _indexes(["a=x", "b=y"]) == {"a": "x", "b": "y"}
    assert _indexes(["x"]) == "x"
    index = tmp_path / "day=1" / "index"
    index.mkdir(parents=True)
    assert _indexes([str(index)]) == str(index)
    assert _indexes([f"day={index}"]) == {"day": str(index)}
    with pytest.raises(ConfigError, match=r"cannot listen at 127\.0\.0\.1, port 99999"):
        _bind("127.0.0.1", 99999)
    with pytest.raises(ConfigError, match=r"'likelyhood'.*did you mean 'likelihood'"):
        serve("run", jobs=["likelyhood"])


def test_stopped_while_it_loads(run: Any) -> None:
    served = run("run", "--port", "0", "--gin.PREPARED='data'")
    served.until("^http")
    time.sleep(1.0)
    served.process.send_signal(signal.SIGTERM)
    output, _ = served.process.communicate(timeout=60)
    assert served.process.returncode == 0, output
