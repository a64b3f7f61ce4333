"""Compiles the steps of a run for a TPU slice, in a process of its own.

    python -m m6rec_jax.compilation.worker REQUEST.json

`compilation.command` starts it: libtpu ends the process for some impossible slices, and nothing
here may touch devices that the machine does have. What happens is reported on the standard output,
an event a line, each a JSON object after `EVENT`; a step's report as soon as it is made.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from m6rec_jax import configuration
from m6rec_jax.compilation.advice import Setup, advise
from m6rec_jax.compilation.command import EVENT
from m6rec_jax.compilation.step_report import (
    Memory,
    StepReport,
    measure,
    program_text,
    too_large,
)
from m6rec_jax.compilation.steps import (
    Program,
    StepSettings,
    make_program,
    rules_of,
)
from m6rec_jax.compilation.topologies import Topology, parse_topology
from m6rec_jax.errors import M6RecError
from m6rec_jax.sharding import compiler_options, make_mesh


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 2 for an error the user can mend, 1 for any other."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    logging.getLogger("m6rec_jax").addHandler(_WarningEvents(logging.WARNING))
    try:
        run(request)
    except M6RecError as error:
        report_event("error", message=str(error))
        return 2
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        report_event("error", message=words, traceback=traceback.format_exc())
        return 1
    return 0


class _WarningEvents(logging.Handler):
    """Reports the package's warnings, for nobody reads this process's standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        report_event("warning", text=record.getMessage())


def _end_with_parent() -> None:
    """Ends this process once nobody holds its standard input, compiling or not."""
    # Not by `sys.stdin`, whose lock a thread that waits would keep while the interpreter ends.
    while os.read(0, 1024):
        pass
    os._exit(1)


def report_event(event: str, **values: Any) -> None:
    """Reports to the parent process."""
    print(EVENT + json.dumps({"event": event, **values}), flush=True)


def run(request: dict[str, Any]) -> None:
    """Compiles what a request asks for.

    Args:
      request: `topology`, `slices`, `gin_files`, `default_sharding` (a gin file that is read after
        those if they and the bindings leave RULES None; or None), `bindings`, `steps`, and `hlo`,
        the folder to write the optimised text to (or None).
    """
    report_event("stage", text="settings")
    files, default = request["gin_files"], request["default_sharding"]
    if default is not None:
        # Read first it decides nothing, and its macros may be bound.
        configuration.parse_config([default, *files], request["bindings"])
        if configuration.macro("RULES", None) is None:
            files = [*files, default]
    configuration.parse_config(files, request["bindings"])
    settings = StepSettings()
    topology = parse_topology(request["topology"], request["slices"])
    report_event("stage", text=str(topology))
    mesh = make_mesh(devices=topology.devices())
    rules = rules_of(settings)
    report_event(
        "run",
        gin_files=files,
        mesh=dict(mesh.shape),
        rules=rules,
        rows=settings.rows(mesh),
        source_length=settings.lengths[0],
        target_length=settings.lengths[1],
        trainable=settings.trainable,
        accumulation_steps=settings.accumulation_steps,
        compiler_options=compiler_options("tpu"),
        versions={name: _version(name) for name in ("jax", "jaxlib", "libtpu", "flax")},
    )
    for name in request["steps"]:
        report_event("step", step=name)
        program = make_program(name, settings, mesh)
        if isinstance(program, str):
            report_event("left_out", step=name, why=program)
            continue
        report = _compile(program, settings, topology, mesh, hlo_folder=request["hlo"])
        report = dataclasses.replace(report, advice=advise(report, _setup(settings, mesh, program)))
        report_event("report", report=report.to_json())


def _compile(
    program: Program,
    settings: StepSettings,
    topology: Topology,
    mesh: Mesh,
    *,
    hlo_folder: str | None,
) -> StepReport:
    """The report of a step; of one that is too large, what it would need."""
    report_event("stage", text=f"tracing {program.name}")
    begin = time.perf_counter()
    lowered = program.lower(mesh, rules_of(settings))
    traced, traced_cpu = time.perf_counter(), time.process_time()
    report_event("stage", text=f"compiling {program.name}")
    compiled, message = _compiled(lowered)
    seconds, cpu_seconds = time.perf_counter() - traced, time.process_time() - traced_cpu
    if compiled is None:
        needed = too_large(message)
        memory = Memory(
            available=topology.chip.hbm_bytes, needed=needed or 0, arguments=program.argument_bytes
        )
        report = StepReport(
            program.name,
            memory,
            dataclasses.asdict(program.flops),
            # Steps before and after it have reports of their own.
            error=f"XLA refuses it: {message}"
            if needed is None
            else "it needs more memory than a device has",
        )
    else:
        report_event("stage", text=f"reading {program.name}")
        if hlo_folder is not None:
            file = Path(hlo_folder) / f"{program.name}.hlo"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(program_text(compiled), encoding="utf-8")
        report = measure(
            program.name,
            compiled,
            topology,
            program.flops,
            loop_trips=program.loop_trips,
            arguments=program.argument_bytes,
        )
    return dataclasses.replace(
        report,
        trace_seconds=traced - begin,
        compile_seconds=seconds,
        compile_cpu_seconds=cpu_seconds,
    )


def _compiled(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, str]:
    """The compiled step, or XLA's message why there is none."""
    try:
        return lowered.compile(compiler_options=compiler_options("tpu") or None), ""
    except jax.errors.JaxRuntimeError as error:
        return None, str(error)


def _setup(settings: StepSettings, mesh: Mesh, program: Program) -> Setup:
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * settings.accumulation_steps
    rows = settings.rows(mesh)
    at_once = configuration.bound("language_modelling_loss.chunk_length", 0) == 0
    logits = rows // shares * settings.lengths[1] * settings.config.vocab_size * 4
    return Setup(
        mesh=dict(mesh.shape),
        rows=rows,
        accumulation_steps=settings.accumulation_steps,
        remat=settings.config.remat,
        trainable=settings.trainable,
        frozen_dtype=settings.frozen_dtype,
        logits_bytes=logits if at_once and settings.writes else 0,
        shards_parameters=program.shards_parameters,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
