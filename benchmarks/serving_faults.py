"""What clients and disks should not do to a server, and whether others are harmed.

    python -m benchmarks.serving_faults fuzz
    python -m benchmarks.serving_faults hang_ups
    python -m benchmarks.serving_faults sigterm
    python -m benchmarks.serving_faults stores

The server is `m6rec serve` in a process of its own, with a `mini` model of random weights
(`serving_folder`). While it is maltreated, a client asks the same requests over and over and
compares the answers with those of before to the bit.

*fuzz*: requests made from a seed for all routes: malformed JSON, wrong types, bodies of 10 MB,
10,000 candidates, unknown ids, control tokens, deep nesting, huge numbers. Each must be answered by
a 2xx or the right 4xx. *hang_ups*: clients that leave in the middle of a stream; their slots must
be free afterwards. *sigterm*: under load; whoever was accepted is answered, and the exit status is
0. *stores*: segments of a catalogue, truncated and with flipped bits, before the server starts and
under it. Rows go to `benchmarks/results/serving_faults.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.results_file import add_rows, results_path
from benchmarks.serving_folder import ARGUMENTS, ITEMS, NOW
from benchmarks.serving_load import Study, mixed
from benchmarks.serving_process import COMMAND, Serving, chat_request, score_request, serving

REQUESTS, CLIENTS = 10_000, 200
# Statuses that a request may get that is not as it should be.
REFUSED = frozenset({400, 404, 405, 413, 415, 422, 429})
Request = tuple[str, str, bytes, dict[str, str]]
JSON = {"Content-Type": "application/json"}
SEGMENTS = "--gin.serve.segments='segments'"
STREAM: dict[str, Any] = {"model": "titles", "prompt": "likes abc", "stream": True}


class Control:
    """A client in a thread of its own, whose answers must stay what they were."""

    def __init__(self, server: Serving) -> None:
        rng = np.random.default_rng(11)
        self._asked = [*(score_request(rng) for _ in range(6)), chat_request(rng)]
        self._client = httpx.Client(base_url=server.address, timeout=300)
        self._expected = [self._ask(*asked) for asked in self._asked]
        self._stop = threading.Event()
        self.compared, self.changed, self.refused = 0, 0, 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _ask(self, path: str, body: Any) -> Any:
        response = self._client.post(path, json=body, headers={"X-Timeout-Ms": "300000"})
        if response.status_code == 429:
            self.refused += 1
            return None
        response.raise_for_status()
        found = response.json()
        if "choices" in found:
            return found["choices"], found["m6rec"]["recommended"]
        return found["items"]

    def _run(self) -> None:
        while not self._stop.is_set():
            for asked, expected in zip(self._asked, self._expected, strict=True):
                found = self._ask(*asked)
                self.compared += found is not None
                self.changed += found is not None and found != expected
            time.sleep(0.02)

    def stop(self) -> dict[str, float]:
        """Figures; raises RuntimeError where an answer was another one."""
        self._stop.set()
        self._thread.join(600)
        if self.changed or not self.compared or self._thread.is_alive():
            raise RuntimeError(f"{self.changed} of {self.compared} answers of others changed")
        return {"others_compared": self.compared, "others_changed": self.changed}


class Fuzzer:
    """Requests from a seed; hardly one of them is right."""

    def __init__(self, seed: int, routes: list[tuple[str, str]]) -> None:
        self._random = random.Random(seed)
        self._routes = routes
        self._makers: list[tuple[int, Callable[[], bytes]]] = [
            (30, self._body),
            (12, self._cut),
            (8, self._bytes),
            (6, self._nested),
            (3, self._many),
        ]

    def request(self, number: int) -> Request:
        """Method, path, body, headers; one in 500 has 10 MB."""
        pick = self._random
        method, path = pick.choice(self._routes)
        for name in ("{task}", "{path}"):
            path = path.replace(name, pick.choice(["ctr", "x", "..%2f..", "%00", "a" * 300]))
        if number % 500 == 499:
            return "POST", "/v1/score", b'{"a": "' + b"a" * (10 << 20) + b'"}', JSON
        weights, makers = zip(*self._makers, strict=True)
        body = pick.choices(makers, weights)[0]()
        headers = dict(JSON)
        if pick.random() < 0.1:
            headers["Content-Type"] = pick.choice(["text/plain", "", "application/json; x=\xe9"])
        if pick.random() < 0.1:
            headers["X-Timeout-Ms"] = pick.choice(["-1", "soon", "1", "9" * 400, "20"])
        if pick.random() < 0.1:
            headers["X-Priority"] = pick.choice(["bulk", "now", ""])
        if pick.random() < 0.05:
            headers["Authorization"] = pick.choice(["Bearer x", "Basic \xff", "a" * 5000])
        return method, path, body, headers

    def _value(self, depth: int = 0) -> Any:
        pick = self._random
        kind = pick.randrange(12 if depth < 3 else 9)
        if kind < 2:
            return pick.choice([None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e308])
        if kind < 5:
            return pick.choice(
                [
                    *("", "ctr", "next", "titles", "talk_titles", "m6rec", "likelihood", "x"),
                    *("[EOS] [BOS'] </s> <pad> <extra_id_0>", "\x00\u202e\ud83d", "a" * 3000),
                    *("1", "99999999", "abc def", "1764000000", "2026-01-01", "\n\n", "{title}"),
                ]
            )
        if kind < 7:
            return pick.uniform(-10, 2e9)
        if kind < 9:
            return str(pick.randint(-5, 2 * ITEMS))
        if kind < 11:
            return [self._value(depth + 1) for _ in range(pick.randrange(5))]
        keys = ["id", "title", "genre", "item", "time", "value", "role", "content", "x"]
        return {pick.choice(keys): self._value(depth + 1) for _ in range(pick.randrange(4))}

    def _fields(self) -> dict[str, Any]:
        """A request that is right."""
        pick = self._random
        history = [
            {"item": str(pick.randint(1, ITEMS)), "time": NOW - n, "value": 4} for n in range(3)
        ]
        return {
            "task": pick.choice(["ctr", "next", "titles", "explanations", "m6rec", None]),
            "user": {"taste": "abc"},
            "history": history[::-1],
            "candidates": [str(pick.randint(1, ITEMS)) for _ in range(pick.randrange(1, 6))],
            "k": 3,
            "model": pick.choice(["ctr", "next", "next:items", "titles", "m6rec"]),
            "query": "likes abc\nliked def",
            "documents": ["abc", {"id": "3"}],
            "input": "likes abc",
            "prompt": "likes abc",
            "max_tokens": 3,
            "messages": [{"role": "user", "content": "abc"}],
            "instances": [{"user": {"taste": "abc"}, "candidates": ["3"]}],
            "parameters": {"task": "ctr"},
            "stream": pick.random() < 0.2,
        }

    def _body(self) -> bytes:
        """A right one with some wrong values, without some fields, and with others."""
        pick, fields = self._random, self._fields()
        for _ in range(pick.randrange(1, 4)):
            name = pick.choice([*fields, "unheard_of", "exclude", "statistics", "debug", "seed"])
            if pick.random() < 0.2:
                fields.pop(name, None)
            else:
                fields[name] = self._value()
        return json.dumps(fields).encode()

    def _cut(self) -> bytes:
        body = json.dumps(self._fields()).encode()
        return body[: self._random.randrange(len(body))]

    def _bytes(self) -> bytes:
        whole = bytearray(json.dumps(self._fields()).encode())
        for _ in range(self._random.randrange(1, 8)):
            whole[self._random.randrange(len(whole))] = self._random.randrange(256)
        return bytes(whole)

    def _nested(self) -> bytes:
        depth = self._random.choice([15, 17, 100, 10_000, 100_000])
        return self._random.choice([b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth])

    def _many(self) -> bytes:
        """10,000 of something."""
        fields = self._fields()
        name = self._random.choice(["candidates", "history", "documents", "messages", "exclude"])
        fields[name] = [self._random.choice(["1", {"title": "a"}, 3])] * 10_000
        return json.dumps(fields).encode()


def _routes(server: Serving) -> list[tuple[str, str]]:
    """All that the server has, those for changes left to whoever has the token."""
    paths = httpx.get(f"{server.address}/openapi.json", timeout=60).json()["paths"]
    found = [(method.upper(), path) for path, own in paths.items() for method in own]
    asked = [(method, path) for method, path in found if method == "POST"]
    return found + 8 * asked + [("POST", "/nowhere"), ("DELETE", "/v1/score")]


async def _send_all(server: Serving, requests: Iterator[Request], at_once: int) -> Any:
    statuses: collections.Counter[int] = collections.Counter()
    wrong: list[Any] = []

    async with httpx.AsyncClient(base_url=server.address, timeout=300) as client:

        async def sender() -> None:
            for method, path, body, headers in requests:
                encoded = [(n.encode(), v.encode("latin-1")) for n, v in headers.items()]
                content = None if method == "GET" else body
                response = await client.request(method, path, content=content, headers=encoded)
                statuses[response.status_code] += 1
                fine = response.status_code < 300 or response.status_code in (
                    *REFUSED,
                    *(401, 403, 504),
                )
                if fine and response.status_code >= 400 and "json" in _type(response):
                    fine = "error" in response.json() or response.status_code in (404, 405)
                if not fine:
                    wrong.append((method, path, body[:300], headers, response.text[:300]))

        await asyncio.gather(*(sender() for _ in range(at_once)))
    return statuses, wrong


def _type(response: httpx.Response) -> str:
    return response.headers.get("content-type", "")


def fuzz(study: Study, number: int, seed: int) -> dict[str, float]:
    """Sends wrong requests, many at once."""
    with serving(study.model("mini")) as server:
        control = Control(server)
        fuzzer = Fuzzer(seed, _routes(server))
        requests = (fuzzer.request(n) for n in range(number))
        statuses, wrong = asyncio.run(_send_all(server, requests, 8))
        metrics = control.stop()
        if wrong:
            raise RuntimeError(f"{len(wrong)} wrong answers, such as {wrong[:5]}")
        _check_log(server)
        compiled = int(server.metric("m6rec_programs")) - server.programs
        status = server.stop()
    shown = sorted({200, 401, *REFUSED, 504, *statuses})
    metrics |= {f"status_{one}": statuses[one] for one in shown}
    return metrics | {"compiled_after_ready": compiled, "exit_status": status}


def _check_log(server: Serving) -> None:
    """Raises RuntimeError where something was caught that should not have happened."""
    found = [n for n, line in enumerate(server.lines) if "Traceback" in line]
    if found:
        raise RuntimeError("".join(server.lines[found[0] : found[0] + 40]))


async def _hang_up(server: Serving, number: int) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    path, body = ("/v1/completions", STREAM)
    if number % 3 == 0:
        path, body = chat_request(np.random.default_rng(number))
        body["stream"] = True
    elif number % 3 == 1:
        path, body = score_request(np.random.default_rng(number))
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode())
    writer.write(content[: len(content) // 2] if number % 7 == 0 else content)
    await writer.drain()
    if number % 3 != 1 and number % 7:
        await reader.read(100 + number % 200)  # some of the stream
    else:
        await asyncio.sleep(0.002 * (number % 20))
    writer.transport.abort()


def hang_ups(study: Study, clients: int) -> dict[str, float]:
    """Clients leave in the middle; what they asked for must end."""

    async def all_of_them(server: Serving) -> None:
        for start in range(0, clients, 20):
            part = range(start, min(start + 20, clients))
            await asyncio.gather(*(_hang_up(server, n) for n in part))

    with serving(study.model("mini")) as server:
        control = Control(server)
        asyncio.run(all_of_them(server))
        metrics = control.stop()
        began = time.perf_counter()
        while server.metric("m6rec_queue_depth"):
            if time.perf_counter() - began > 60:
                raise RuntimeError("requests of clients that have gone are still waiting")
            time.sleep(0.01)
        response = httpx.post(
            f"{server.address}/v1/completions", json=STREAM | {"stream": False}, timeout=60
        )
        response.raise_for_status()
        _check_log(server)
        status = server.stop()
    return {"hang_ups": clients, **metrics, "exit_status": status}


def sigterm(study: Study, clients: int = 32) -> dict[str, float]:
    """Every request that reached the server is answered, and it ends with status 0.

    A connection that was kept open may be closed as its next request is on its way. Those never
    reached the server, so its log must have as many answers as clients were given.
    """
    statuses: collections.Counter[str] = collections.Counter()
    stopping = False

    async def one(server: Serving, number: int) -> None:
        rng = np.random.default_rng(number)
        async with httpx.AsyncClient(base_url=server.address, timeout=120) as client:
            while True:
                path, body = mixed(rng)
                try:
                    response = await client.post(path, json=body)
                except httpx.TransportError:
                    if not stopping:
                        raise
                    statuses["closed"] += 1
                    return
                statuses[str(response.status_code)] += 1

    async def load(server: Serving) -> None:
        async def stop() -> None:
            nonlocal stopping
            await asyncio.sleep(3.0)
            stopping = True
            server.process.send_signal(signal.SIGTERM)

        await asyncio.gather(stop(), *(one(server, n) for n in range(clients)))

    with serving(study.model("mini")) as server:
        asyncio.run(load(server))
        status = server.stop()
        _check_log(server)
        log = "".join(server.lines)
    logged = len(re.findall("^POST /v1/", log, re.MULTILINE))
    answered = statuses["200"] + statuses["503"]
    whole = "all requests are answered" in log and logged == answered
    if status or not whole or set(statuses) - {"200", "503", "closed"}:
        raise RuntimeError(f"{dict(statuses)}, {logged} in the log, exit status {status}: {log}")
    return {
        "answered": statuses["200"],
        "refused_503": statuses["503"],
        "lost": logged - answered,
        "exit_status": status,
    }


def stores(study: Study) -> dict[str, float]:
    """A store that is damaged before a server starts is refused; under one, it is not believed."""
    source = study.model("mini", late_layers_start=1)
    refused = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "served"
        shutil.copytree(source, folder)
        states = folder / "segments" / "states.npy"
        whole = states.read_bytes()
        for damage in (_cut_off, _flip):
            damage(states)
            command = [*COMMAND, *ARGUMENTS, "--port", "0", SEGMENTS]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            said = done.stdout + done.stderr
            if done.returncode != 2 or "missing or damaged" not in said or "Traceback" in said:
                raise RuntimeError(f"exit status {done.returncode}: {said}")
            refused += 1
            states.write_bytes(whole)
        rng = np.random.default_rng(5)
        asked = [score_request(rng) for _ in range(60)]
        expected, hits = [], 0.0
        for damaged in (False, True):
            with serving(folder, SEGMENTS, programs=source / "programs") as server:
                control = Control(server)
                if damaged:
                    _flip(states)
                    _cut_off(states)
                found = [_scores(server, *one) for one in asked]
                metrics = control.stop()
                _check_log(server)
                text = httpx.get(f"{server.address}/metrics").text
                hits = sum(
                    float(line.split()[-1]) for line in text.splitlines() if "store_hits" in line
                )
                warned = any("was damaged since" in line for line in server.lines)
                if warned != damaged or not hits:
                    raise RuntimeError(f"warned: {warned}, store hits: {hits}")
                status = server.stop()
            if not damaged:
                expected = found
        worst = max(
            float(np.abs(np.subtract(a, b)).max()) for a, b in zip(found, expected, strict=True)
        )
    # States in the store are rounded to bfloat16, computed ones are not.
    if worst > 0.01:
        raise RuntimeError(f"scores changed by {worst}")
    return {
        "refused_at_start": refused,
        "largest_change_of_a_score": worst,
        **metrics,
        "exit_status": status,
    }


def _scores(server: Serving, path: str, body: Any) -> list[float]:
    response = httpx.post(server.address + path, json=body, timeout=120)
    response.raise_for_status()
    return [item["score"] for item in response.json()["items"]]


def _cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    """Turns a bit in every page but the first."""
    with path.open("r+b") as file:
        for place in range(4096, path.stat().st_size, 4096):
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 64]))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Maltreat a server.")
    parser.add_argument("study", choices=["fuzz", "hang_ups", "sigterm", "stores"])
    options = parser.parse_args(arguments)
    study = Study()
    if options.study == "fuzz":
        metrics = fuzz(study, REQUESTS, seed=0)
        split = "fuzz"
    elif options.study == "hang_ups":
        metrics, split = hang_ups(study, CLIENTS), "hang-ups"
    elif options.study == "sigterm":
        metrics, split = sigterm(study), "SIGTERM under load"
    else:
        metrics, split = stores(study), "damaged segments"
    name = f"{REQUESTS:,} requests" if split == "fuzz" else "mini"
    study.add(metrics, "mini", split, name)
    add_rows(results_path("serving_faults"), study.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
