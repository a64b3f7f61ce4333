"""Load on a server over loopback: clients, saturation, start, a bank of 1,000 tasks.

    python -m benchmarks.serving_load clients [--models mini small] [--seconds 30]
    python -m benchmarks.serving_load saturation [--seconds 600]
    python -m benchmarks.serving_load start
    python -m benchmarks.serving_load bank [--seconds 30]

The server is `m6rec serve` in a process of its own, with random weights (`serving_folder`). Clients
are coroutines of one process, not locust's: they share a machine's few cores with the server, and
the answers that must be compared are at hand. A client asks again as soon as it is answered. Four
requests of five are scores of up to 20 candidates, the fifth is a turn of a dialogue.

*clients*: 1, 8 and 64 of them, beside a server that answers one request at a time
(`Scheduler.max_batch = 1`); the two take turns. *saturation*: 96 clients against a queue of 64.
*start*: with an empty cache of programs, and again. *bank*: requests of all tasks, mixed, against
requests of one task of a bank of one. Rows go to `benchmarks/results/serving_load.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.provenance import ROOT
from benchmarks.results_file import Row, add_rows, results_path, told_rows
from benchmarks.serving_folder import (
    ALL_JOBS,
    write_folder,
    write_large_bank,
)
from benchmarks.serving_process import Serving, chat_request, score_request, serving

FOLDER = ROOT / "runs" / "serving"
CLIENTS = (1, 8, 64)
TASKS = 1_000
Make = Callable[[np.random.Generator], tuple[str, dict[str, Any]]]


@dataclasses.dataclass
class Answers:
    """What clients were answered.

    Attributes:
      seconds: from the first request on until the last client had ended.
      processor_seconds: that the server took meanwhile.
      latencies: seconds of each answered request, by its route.
      statuses: how many of each.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    latencies: dict[str, list[float]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    statuses: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)

    def metrics(self) -> dict[str, float]:
        """Throughput, and latencies of all requests together."""
        found = [seconds for own in self.latencies.values() for seconds in own]
        metrics = {"requests_per_second": len(found) / self.seconds}
        if self.processor_seconds:
            metrics["processor_milliseconds"] = 1000 * self.processor_seconds / len(found)
        for percent in (50, 95, 99):
            metrics[f"p{percent}_milliseconds"] = 1000 * float(np.quantile(found, percent / 100))
        return metrics


def mixed(rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """Four scores to one turn of a dialogue."""
    return chat_request(rng) if rng.integers(5) == 0 else score_request(rng)


async def _ask(address: str, clients: int, make: Make, until: Callable[[], bool]) -> Answers:
    answers = Answers()

    async def one(number: int) -> None:
        rng = np.random.default_rng(number)
        # Of its own: httpx looks at every connection of a pool for each request.
        async with httpx.AsyncClient(base_url=address, timeout=120, verify=False) as client:
            while not until():
                path, body = make(rng)
                began = time.perf_counter()
                response = await client.post(path, json=body)
                answers.statuses[response.status_code] += 1
                if response.status_code == 200:
                    answers.latencies[path].append(time.perf_counter() - began)
                elif response.status_code == 429:
                    await asyncio.sleep(0.1)

    began = time.perf_counter()
    await asyncio.gather(*map(one, range(clients)))
    answers.seconds = time.perf_counter() - began
    return answers


def ask(
    server: Serving,
    clients: int,
    seconds: float,
    make: Make = mixed,
    *,
    until: Callable[[], bool] | None = None,
) -> Answers:
    """Lets clients ask for so long, or until something has happened."""
    end, processor = time.perf_counter() + seconds, server.processor_seconds()
    answers = asyncio.run(
        _ask(
            server.address,
            clients,
            make,
            lambda: time.perf_counter() > end or (until is not None and until()),
        )
    )
    answers.processor_seconds = server.processor_seconds() - processor
    return answers


def check_statuses(answers: Answers, *allowed: int) -> None:
    """Raises RuntimeError where an answer was another one."""
    if wrong := {status: n for status, n in answers.statuses.items() if status not in allowed}:
        raise RuntimeError(f"answers with other statuses than {allowed}: {wrong}")


def compiled_since(server: Serving) -> int:
    """Programs that were compiled after the server was ready."""
    return int(server.metric("m6rec_programs")) - server.programs


class Study:
    """Folders of models, made when they are missing, and rows that were measured."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def model(self, name: str, late_layers_start: int = 0) -> Path:
        """The folder of a model."""
        folder = FOLDER / (f"{name}_late" if late_layers_start else name)
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)
            print(f"writing {folder}", flush=True)
            file = f"gin_configs/models/{name}.gin"
            write_folder(folder, file, late_layers_start=late_layers_start)
            (folder / "finished").touch()
        return folder

    def add(self, metrics: Mapping[str, float], model: str, split: str, name: str) -> None:
        """Prints and keeps figures."""
        self.rows += told_rows(
            {name: metrics},
            dataset=f"{model}, random requests",
            split=split,
            seed=None,
            gin_file=f"gin_configs/models/{model}.gin",
        )


def clients_study(study: Study, models: Sequence[str], seconds: float, turns: int) -> None:
    """Throughput and latencies, in batches and one at a time."""
    kinds = {"in batches": (), "one at a time": ("--gin.Scheduler.max_batch=1",)}
    for model in models:
        folder = study.model(model)
        runs: dict[tuple[int, str], list[dict[str, float]]] = collections.defaultdict(list)
        for _ in range(turns):
            for name, arguments in kinds.items():
                # Of 64 who chat with a large model on few cores some wait for minutes.
                with serving(folder, *arguments, "--gin.serve.timeout=300") as server:
                    ask(server, 2, 2.0)
                    for clients in CLIENTS:
                        answers = ask(server, clients, seconds)
                        check_statuses(answers, 200)
                        metrics = answers.metrics()
                        (chat,) = (own for path, own in answers.latencies.items() if "chat" in path)
                        metrics["chat_p50_milliseconds"] = 1000 * statistics.median(chat)
                        runs[clients, name].append(metrics)
                        print(f"  {name}, {clients}: {metrics}", flush=True)
                    assert compiled_since(server) == 0
        for clients in CLIENTS:
            found = {
                name: {
                    key: statistics.median(run[key] for run in runs[clients, name])
                    for key in runs[clients, name][0]
                }
                for name in kinds
            }
            alone = found["one at a time"]["requests_per_second"]
            for name, metrics in found.items():
                metrics["times_faster"] = metrics["requests_per_second"] / alone
                study.add(metrics, model, f"{clients} client{'s' * (clients > 1)}", name)


def saturation_study(study: Study, model: str, seconds: float) -> None:
    """Memory, statuses and programs under more load than there is room for."""
    with serving(study.model(model), "--gin.Scheduler.max_queue=64") as server:
        ask(server, 96, 10.0)
        samples: list[tuple[float, int]] = []
        began, following = time.perf_counter(), 0.0

        def sample() -> bool:
            nonlocal following
            if (now := time.perf_counter() - began) >= following:
                samples.append((now, server.resident_bytes()))
                following = now + max(0.2, seconds / 300)
            return False

        answers = ask(server, 96, seconds, until=sample)
        check_statuses(answers, 200, 429)
        compiled = compiled_since(server)
        status = server.stop()
    times, sizes = (np.array(column, float) for column in zip(*samples, strict=True))
    mib = sizes / 2**20
    third = len(mib) // 3
    metrics = {
        **answers.metrics(),
        "answered": answers.statuses[200],
        "refused_429": answers.statuses[429],
        "compiled_after_ready": compiled,
        "resident_mib_first_third": float(mib[:third].mean()),
        "resident_mib_last_third": float(mib[-third:].mean()),
        "resident_mib_per_minute": 60 * float(np.polyfit(times[third:], mib[third:], 1)[0]),
        "exit_status": status,
    }
    study.add(metrics, model, "saturation", f"96 clients, queue of 64, {seconds:.0f} s")


def start_study(study: Study, models: Sequence[str], turns: int) -> None:
    """Seconds until ready, and programs, with every job that there is."""
    for model in models:
        folder = study.model(model)
        with tempfile.TemporaryDirectory() as programs:
            runs = []
            for _ in range(1 + turns):
                with serving(folder, ALL_JOBS, programs=Path(programs)) as server:
                    runs.append(
                        {
                            "ready_seconds": server.ready_seconds,
                            "ready_processor_seconds": server.ready_processor_seconds,
                            "programs": server.programs,
                        }
                    )
        for name, own in (("cold", runs[:1]), ("warm", runs[1:])):
            medians = {key: statistics.median(run[key] for run in own) for key in own[0]}
            study.add(medians, model, "start", name)


def bank_study(study: Study, model: str, tasks: int, seconds: float, turns: int) -> None:
    """Requests of a thousand tasks in the same batches, against those of one."""
    folder = study.model(model)
    names = {"one": 1, f"{tasks:,}": tasks}
    bases = {}
    for name, number in names.items():
        bank = f"bank_{number}"
        if not (folder / bank).exists():
            write_large_bank(folder, bank, number)
        bases[name] = ("run", "--bank", bank, "--gin.PREPARED='data'")

    def of_tasks(number: int) -> Make:
        return lambda rng: score_request(rng, f"task{rng.integers(number)}")

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(turns):
        for name, number in names.items():
            with serving(folder, base=bases[name]) as server:
                ask(server, 8, 2.0, of_tasks(number))
                answers = ask(server, 16, seconds, of_tasks(number))
                check_statuses(answers, 200)
                runs[name].append(
                    {
                        **answers.metrics(),
                        "compiled_after_ready": compiled_since(server),
                        "ready_seconds": server.ready_seconds,
                    }
                )
                print(f"  {name}: {runs[name][-1]}", flush=True)
    found = {
        name: {key: statistics.median(run[key] for run in own) for key in own[0]}
        for name, own in runs.items()
    }
    one = found["one"]["requests_per_second"]
    for name, metrics in found.items():
        metrics["times_faster"] = metrics["requests_per_second"] / one
        study.add(metrics, model, "bank", f"{name} task{'s' * (name != 'one')}")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Load on a server over loopback.")
    parser.add_argument("study", choices=["clients", "saturation", "start", "bank"])
    parser.add_argument("--models", nargs="+", help="of gin_configs/models")
    parser.add_argument("--seconds", type=float, help="30; of saturation 600")
    parser.add_argument("--turns", type=int, default=2, help="servers of each kind")
    options = parser.parse_args(arguments)
    study = Study()
    seconds = options.seconds or 30.0
    if options.study == "clients":
        clients_study(study, options.models or ["mini", "small"], seconds, options.turns)
    elif options.study == "start":
        start_study(study, options.models or ["mini", "small"], options.turns)
    for model in options.models or ["mini"]:
        if options.study == "saturation":
            saturation_study(study, model, options.seconds or 600.0)
        elif options.study == "bank":
            bank_study(study, model, TASKS, seconds, options.turns)
    add_rows(results_path("serving_load"), study.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
