"""`m6rec serve` as a process of its own on loopback, and what clients ask it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.provenance import ROOT
from benchmarks.serving_folder import ARGUMENTS, ITEMS, NOW, USERS

COMMAND = (sys.executable, "-m", "m6rec_jax.cli", "serve")
# Seconds until a server must be ready, or have ended.
_PATIENCE = 900.0


class Serving:
    """A server; `serving` starts one.

    Attributes:
      process: the command.
      lines: of its log so far.
      address: such as http://127.0.0.1:40123.
      ready_seconds: from the start of the process until `/readyz` said yes;
        ready_processor_seconds are those that the process had of all cores.
      programs: that it compiled or read from the cache by then.
    """

    def __init__(self, folder: Path, programs: Path, arguments: Sequence[str]) -> None:
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments, "--port", "0"],
            cwd=folder,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.address = ""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self._wait_until_ready(started)
        self.ready_seconds = time.perf_counter() - started
        self.ready_processor_seconds = self.processor_seconds()
        self.programs = int(self.metric("m6rec_programs"))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if not self.address and (found := re.match(r"(http://\S+)", line)):
                self.address = found[1]

    def _wait_until_ready(self, started: float) -> None:
        while time.perf_counter() - started < _PATIENCE:
            if self.process.poll() is not None:
                self._reading.join(10)
                break
            with contextlib.suppress(httpx.TransportError):  # it names its address, then listens
                if self.address and httpx.get(f"{self.address}/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        self.process.kill()
        raise RuntimeError(f"the server is not ready:\n{''.join(self.lines[-30:])}")

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = httpx.get(f"{self.address}/metrics", timeout=60).text
        rows = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, rows))

    def resident_bytes(self) -> int:
        """Memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return 1024 * int(found[1])

    def processor_seconds(self) -> float:
        """That the process has had; others' load on the machine changes it little."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Ends it by SIGTERM; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(_PATIENCE)
        self._reading.join(10)
        return status


@contextlib.contextmanager
def serving(
    folder: Path, *arguments: str, base: Sequence[str] = ARGUMENTS, programs: Path | None = None
) -> Iterator[Serving]:
    """A server that is ready, and is ended.

    Args:
      folder: of `serving_folder`.
      arguments: more of the command line.
      base: its first arguments.
      programs: the persistent cache of programs; None: in `folder`.
    """
    server = Serving(folder, programs or folder.absolute() / "programs", [*base, *arguments])
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def history(rng: np.random.Generator) -> dict[str, Any]:
    """A user, and what it did."""
    number = int(rng.integers(2, 13))
    return {
        "user": {"id": f"u{rng.integers(USERS)}", "taste": "abc"},
        "time": NOW,
        "history": [
            {
                "item": str(rng.integers(1, ITEMS + 1)),
                "time": NOW - 600 * n,
                "value": int(rng.integers(1, 6)),
            }
            for n in range(number, 0, -1)
        ],
    }


def score_request(rng: np.random.Generator, task: str = "ctr") -> tuple[str, dict[str, Any]]:
    """Route and body: up to 20 candidates."""
    places = rng.permutation(ITEMS)[: int(rng.integers(1, 21))]
    return "/v1/score", history(rng) | {"task": task, "candidates": [str(n + 1) for n in places]}


def chat_request(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """Route and body: a dialogue of one or three turns."""
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(12)]
    messages = [{"role": "user", "content": " ".join(words[:6])}]
    if rng.integers(2):
        messages += [
            {"role": "assistant", "content": " ".join(words[4:8])},
            {"role": "user", "content": " ".join(words[6:])},
        ]
    return "/v1/chat/completions", {"model": "m6rec", "messages": messages}
