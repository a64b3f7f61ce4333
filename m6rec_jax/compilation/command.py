"""`m6rec compile`: asks XLA's TPU compiler, in a process of its own, what a run would take."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from m6rec_jax.compilation.compile_report import CompileReport, describe_topology
from m6rec_jax.compilation.step_report import Memory, StepReport
from m6rec_jax.compilation.topologies import Topology, parse_topology
from m6rec_jax.errors import ConfigError
from m6rec_jax.io.processors import num_processors
from m6rec_jax.io.progress import progress_bar

STEPS = ("train", "score", "decode")
EVENT = "m6rec-compile-event "
_REFRESH_SECONDS = 0.5
_LOG_LINES = 12  # of the compiler's own log that an error shows


def compile_run(
    topology: str,
    *,
    slices: int = 1,
    model: str | None = None,
    tuning: str | None = None,
    sharding: str | None = None,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    steps: Sequence[str] = STEPS,
    hlo_folder: Path | None = None,
) -> CompileReport:
    """Compiles a run's steps for TPUs that need not be there.

    Args:
      topology: see `topologies.parse_topology`.
      slices: how many such slices.
      model, tuning, sharding: names of files in `gin_configs/models`, `tuning` and `sharding`.
        Where a model is named and nothing else sets RULES, sharding is 'fully_sharded'.
      gin_files, bindings: as for `m6rec train`; read after model and tuning, before sharding.
      steps: of `STEPS`.
      hlo_folder: where to write the optimised programs as text (None: nowhere).

    Raises:
      ConfigError: libtpu is missing, no such slice, no step, or settings that do not fit.
    """
    target = parse_topology(topology, slices)
    if not steps:
        raise ConfigError(f"--steps names none; known are {', '.join(STEPS)}")
    if unknown := [step for step in steps if step not in STEPS]:
        raise ConfigError(f"--steps {','.join(unknown)}: known are {', '.join(STEPS)}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "the TPU compiler is not installed: pip install 'm6rec_jax[compile]' (it needs no TPU)"
        )
    files = gin_files_of(model, tuning, sharding, gin_files)
    request = {
        "topology": target.name,
        "slices": slices,
        "gin_files": files,
        "default_sharding": default_sharding(model, sharding),
        "bindings": list(bindings),
        "steps": list(steps),
        "hlo": None if hlo_folder is None else str(hlo_folder),
    }
    name = " ".join(filter(None, (model, tuning))) or Path(gin_files[-1]).stem
    collected = _Collected(target, steps)
    made = _made()
    with progress_bar(
        total=len(steps),
        unit="step",
        disable=None,  # shown where somebody looks
        bar_format="{desc} {bar} {n}/{total} [{elapsed}]",
    ) as bar:
        for event in _events(request, collected, bar):
            collected.add(event, bar)
    run = collected.run | {"name": name, "bindings": list(bindings)}
    made |= {"load_after": os.getloadavg()[0], "versions": run.pop("versions")}
    return CompileReport(
        describe_topology(target),
        run,
        made,
        tuple(collected.reports),
        collected.left_out,
        tuple(collected.warnings),
    )


def gin_files_of(
    model: str | None,
    tuning: str | None,
    sharding: str | None,
    gin_files: Sequence[str],
) -> list[str]:
    """Which gin files a request reads, in order.

    The default of sharding is none of them: `worker.run` adds it where they do not set RULES.
    Raises ConfigError for neither a model nor a gin file.
    """
    if model is None and not gin_files:
        raise ConfigError("m6rec compile needs --model NAME or --gin_file FILE")
    if model is None and tuning is not None:
        raise ConfigError("--tuning goes with --model; a gin file includes its own tuning")
    files = [] if model is None else [f"gin_configs/models/{model}.gin"]
    if tuning is not None:
        files.append(f"gin_configs/tuning/{tuning}.gin")
    files.append(f"gin_configs/runs/compile{'_tuning' if tuning else ''}.gin")
    files += map(str, gin_files)
    if sharding is not None:
        files.append(f"gin_configs/sharding/{sharding}.gin")
    return files


def default_sharding(model: str | None, sharding: str | None) -> str | None:
    """The file of sharding rules where a model is named and no rules; else None."""
    if model is None or sharding is not None:
        return None
    return "gin_configs/sharding/fully_sharded.gin"


class _Collected:
    """What the worker has reported so far."""

    def __init__(self, topology: Topology, steps: Sequence[str]) -> None:
        self.topology = topology
        self.steps = steps
        self.run: dict[str, Any] = {}
        self.reports: list[StepReport] = []
        self.left_out: dict[str, str] = {}
        self.warnings: list[str] = []
        self.stage = "starting"
        self.step: str | None = None

    def add(self, event: Mapping[str, Any], bar: tqdm) -> None:
        """Takes an event.

        Raises:
          ConfigError: the event is an error.
        """
        values = {name: value for name, value in event.items() if name != "event"}
        match event["event"]:
            case "stage":
                self.stage = values["text"]
                bar.set_description_str(self.stage)
            case "run":
                self.run = values
            case "step":
                self.step = values["step"]
            case "left_out":
                self.left_out[values["step"]] = values["why"]
                bar.update()
            case "report":
                self.reports.append(StepReport.from_json(values["report"]))
                bar.update()
            case "warning":
                if values["text"] not in self.warnings:  # each step warns anew
                    self.warnings.append(values["text"])
            case "error" if "traceback" in values:
                raise ConfigError(
                    f"failed at {self.stage}: {values['message']}\n{values['traceback'].rstrip()}"
                )
            case "error":
                raise ConfigError(values["message"])

    def ended(self, status: int, log: str) -> None:
        """The worker ended on its own. Before its time, that is the report of the step it was at.

        Raises ConfigError if no step had begun.
        """
        died = status < 0
        how = f"signal {signal.Signals(-status).name}" if died else f"exit status {status}"
        ended = f"the TPU compiler ended itself ({how})" if died else f"compiling ended with {how}"
        known = {report.step for report in self.reports} | self.left_out.keys()
        if not set(self.steps) - known:
            return
        if self.step is None or not self.run:
            guess = ": no such slice, most likely" if died else ""
            raise ConfigError(f"{ended} at {self.stage}{guess}. Its last words:\n{log}")
        memory = Memory(available=self.topology.chip.hbm_bytes, needed=0)
        why = f"{ended} at {self.stage}. Its last words:\n{log}"
        self.reports.append(StepReport(self.step, memory, {}, error=why))


def _events(
    request: Mapping[str, Any], collected: _Collected, bar: tqdm
) -> Iterator[Mapping[str, Any]]:
    """Starts the worker and yields its events, until it ends."""
    with tempfile.TemporaryDirectory(prefix="m6rec-compile-") as folder:
        file, log = Path(folder) / "request.json", Path(folder) / "log"
        file.write_text(json.dumps(request), encoding="utf-8")
        with log.open("w") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", "m6rec_jax.compilation.worker", str(file)],
                env=_environment(),
                stdin=subprocess.PIPE,  # it ends when this closes, however this process ends
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(worker, lines), daemon=True)
        reader.start()
        try:
            while (line := _next(lines, bar)) is not None:
                if line.startswith(EVENT):
                    yield json.loads(line.removeprefix(EVENT))
            if status := worker.wait():
                collected.ended(status, _tail(log))
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            worker.wait()
            reader.join()
            if worker.stdin is not None:
                worker.stdin.close()


def _read(worker: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.Queue[str | None], bar: tqdm) -> str | None:
    """The next line; meanwhile the bar shows that time passes."""
    while True:
        try:
            return lines.get(timeout=_REFRESH_SECONDS)
        except queue.Empty:
            bar.refresh()


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        # JAX's own devices are not used, and must not be taken from a run that goes on.
        "JAX_PLATFORMS": "cpu",
        # libtpu locks the machine's TPUs, even where only its compiler is used.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        # It would ask Google Cloud's metadata server what machine this is.
        "TPU_SKIP_MDS_QUERY": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TPU_STDERR_LOG_LEVEL": "2",
    }


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:])


def _made() -> dict[str, Any]:
    cores = num_processors()
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{cores} cores, {platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0],
    }
