"""`m6rec serve --engine ray`: two replicas on this machine, one killed under load."""

import concurrent.futures
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.server.ray_engine import serve_replicas
from tests.server.served import request
from tests.server.test_command import Running


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match=r"min_replicas = 3 .*max_replicas = 2"):
        serve_replicas(lambda: None, "127.0.0.1", 0, 1.0, min_replicas=3, max_replicas=2)  # type: ignore


@pytest.fixture(scope="module")
def ray(folder: Path) -> Any:
    pytest.importorskip("ray.serve", reason="needs the extra ray: make ray")
    served = Running(
        folder,
        *("run", "--bank", "bank", "--index", "index", "--port", "0", "--engine", "ray"),
        *("--gin.PREPARED='data'", "--gin.load_bank.tasks=['ctr', 'titles']"),
        *("--gin.serve_replicas.resources={'CPU': 0}",),
        *("--gin.serve_replicas.min_replicas=2", "--gin.serve_replicas.max_replicas=2"),
    )
    yield served
    served.process.kill()
    served.process.communicate()


def replicas_of(command: int) -> set[int]:
    """Process ids of the replicas of the Ray that a command, by its process id, started."""
    parents, names = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])

    def is_below(process: int) -> bool:
        while process and process != command:
            process = parents.get(process, 0)
        return process == command

    return {one for one, name in names.items() if "ServeReplica" in name and is_below(one)}


def until(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return value


def test_two_replicas_and_one_is_killed_under_load(ray: Any) -> None:
    address = ray.until(r"^(http://127\.0\.0\.1:\d+) ")[1]
    ray.until("ready: 2 replicas")
    client = httpx.Client(base_url=address, timeout=60)
    assert client.get("/readyz").json() == {"ready": True}
    before = replicas_of(ray.process.pid)
    assert len(before) == 2

    # A session is answered by one replica: its metrics have all requests.
    body = request(3) | {"task": "ctr"}
    session = {"X-Session-Id": "u1"}
    answers = [client.post("/v1/score", json=body, headers=session) for _ in range(10)]
    assert len({answer.text for answer in answers}) == 1
    text = client.get("/metrics", headers=session).text
    (count,) = re.findall(r'^m6rec_http_requests_total\{.*route="/v1/score".*\} (.*)$', text, re.M)
    assert float(count) == 10

    # Errors and streams are the plain server's.
    wrong = client.post("/v1/score", json=body | {"candidates": ["?"]})
    assert wrong.json()["error"]["code"] == "unknown_item"
    streamed = {"model": "titles", "prompt": "user, likes comedy", "stream": True}
    with client.stream("POST", "/v1/completions", json=streamed) as response:
        events = [line for line in response.iter_lines() if line]
    assert events[-1] == "data: [DONE]"
    assert len(events) > 2

    statuses: list[int] = []
    done = False

    def load(number: int) -> None:
        while not done:
            headers = {"X-Session-Id": f"u{number}"}
            statuses.append(client.post("/v1/score", json=body, headers=headers).status_code)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        loads = [pool.submit(load, number) for number in range(8)]
        until(lambda: len(statuses) > 40)
        os.kill(min(before), signal.SIGKILL)
        at = len(statuses)
        until(lambda: len(statuses) > at + 100)
        until(lambda: len(replicas_of(ray.process.pid) - {min(before)}) == 2)
        done = True
        for one in loads:
            one.result(60)
    # What the replica had is lost, and nothing else.
    assert sum(status != 200 for status in statuses) <= 8

    ray.process.send_signal(signal.SIGTERM)
    output, _ = ray.process.communicate(timeout=60)
    assert ray.process.returncode == 0, output
    assert "all requests are answered" in output
    assert "comedy" not in "".join(ray.lines) + output
