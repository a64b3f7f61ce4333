"""The process that compiles: what it tells, and when it ends."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import gin
import jax
import pytest
from tqdm import tqdm

from m6rec_jax.compilation import command, worker
from m6rec_jax.compilation.compile_report import render_step
from m6rec_jax.compilation.step_report import StepReport
from m6rec_jax.compilation.topologies import Topology, parse_topology
from m6rec_jax.errors import ConfigError


@pytest.fixture
def run_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs the worker in this process, on its CPU for a slice of one chip; returns the events."""
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices()[:1])
    package = logging.getLogger("m6rec_jax")
    handlers = list(package.handlers)

    def run(
        *bindings: str, sharding: str | None = None, gin_files: tuple[str, ...] = ()
    ) -> tuple[int, list[dict[str, Any]]]:
        request = {
            "topology": "v5e:1x1",
            "slices": 1,
            "gin_files": command.gin_files_of("tiny", None, sharding, gin_files),
            "default_sharding": command.default_sharding("tiny", sharding),
            "bindings": bindings,
            "steps": ["train"],
            "hlo": None,
        }
        file = tmp_path / "request.json"
        file.write_text(json.dumps(request))
        status = worker.main([str(file)])
        lines = capsys.readouterr().out.splitlines()
        marked = [line for line in lines if line.startswith(command.EVENT)]
        return status, [json.loads(line.removeprefix(command.EVENT)) for line in marked]

    yield run
    package.handlers = handlers
    gin.clear_config()


@pytest.mark.parametrize(
    ("binding", "error"), [("BATCH_SIZE='a'", "TypeError: "), ("OPTIMIZER=3", "AttributeError: ")]
)
def test_settings_that_python_trips_over_are_told(
    run_worker: Any, binding: str, error: str
) -> None:
    status, events = run_worker(binding)
    assert status == 1
    assert events[-1]["event"] == "error"
    collected = command._Collected(parse_topology("v5e:1x1"), ("train",))
    with tqdm(disable=True) as bar:
        for event in events[:-1]:
            collected.add(event, bar)
        with pytest.raises(ConfigError, match=error) as told:
            collected.add(events[-1], bar)
    # Where it was, and where in the code.
    assert str(told.value).startswith("failed at v5e:1x1")
    assert "steps.py" in str(told.value)


@pytest.mark.parametrize(
    ("sharding", "own", "bound", "splits_parameters"),
    [
        (None, "", False, True),  # the default, as without a file
        ("data_parallel", "RULES = @fully_sharded()", False, False),
        ("fully_sharded", "", False, True),
        (None, "RULES = @data_parallel()", False, False),
        (None, "", True, False),
    ],
)
def test_a_runs_file_does_not_undo_the_sharding(
    run_worker: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    sharding: str | None,
    own: str,
    bound: bool,
    splits_parameters: bool,
) -> None:
    """runs/train.gin, which it includes, sets RULES = None."""
    monkeypatch.setattr(worker, "make_program", lambda *_: "nothing to do")
    file = tmp_path / "run.gin"
    file.write_text(
        "import m6rec_jax.sharding\n"
        "include 'gin_configs/runs/pretrain.gin'\n"
        f"MIXTURE_OR_TASK_NAME = 'a'\nTRAIN_STEPS = 500\n{own}\n"
        "TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 8}\n"
    )
    # A setting of the default's may be changed, though the run's own file has it not.
    changes = ("SCOPED_VMEM_KIB=14336",) if splits_parameters else ()
    changes += ("RULES=@data_parallel()",) if bound else ()
    status, events = run_worker(
        *changes, "MODEL_DIR='b'", sharding=sharding, gin_files=(str(file),)
    )
    assert status == 0, events
    (told,) = (event for event in events if event["event"] == "run")
    assert ("embed" in dict(told["rules"])) == splits_parameters
    is_default = not own and not bound
    assert told["gin_files"][-1].startswith("gin_configs/sharding/") == (
        is_default or bool(sharding)
    )


def test_a_step_that_xla_refuses_is_a_report(
    run_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the other steps is not lost with it."""
    monkeypatch.setattr(worker, "_compiled", lambda lowered: (None, "INVALID_ARGUMENT: no layout"))
    lengths = "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 8}"
    status, events = run_worker(lengths, "BATCH_SIZE=8")
    assert status == 0, events[-1]
    (told,) = (event["report"] for event in events if event["event"] == "report")
    report = StepReport.from_json(told)
    assert not report.fits
    text = render_step(report)
    assert "does NOT compile: XLA refuses it: INVALID_ARGUMENT: no layout" in text
    assert "GiB" not in text


def test_the_compiler_ends_with_whoever_asked(tmp_path: Path) -> None:
    """Even one that is killed without a chance to stop it."""
    request = tmp_path / "request.json"
    request.touch()
    program = (  # reads a request that never comes, as a stand-in for a long compilation
        "import pathlib, sys, time\n"
        "from m6rec_jax.compilation import worker\n"
        "pathlib.Path.read_text = lambda *_, **__: time.sleep(300)\n"
        f"worker.main([{str(request)!r}])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert process.stdin is not None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.stdin.close()
    assert process.wait(timeout=60) == 1
