"""`m6rec compile`: its files, its errors, its report; and, where libtpu is there, a slice."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from m6rec_jax import cli
from m6rec_jax.compilation import command
from m6rec_jax.compilation.advice import Setup, advise
from m6rec_jax.compilation.compile_report import CompileReport, describe_topology
from m6rec_jax.compilation.step_report import CollectiveGroup, Memory, StepReport
from m6rec_jax.compilation.topologies import GIB, parse_topology
from m6rec_jax.errors import ConfigError

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="XLA's TPU compiler is not installed: pip install 'm6rec_jax[compile]'",
)
V5E = parse_topology("v5e:4x4")


def test_gin_files_of_a_model_come_before_a_runs_own() -> None:
    assert command.gin_files_of("xl", None, None, ()) == [
        "gin_configs/models/xl.gin",
        "gin_configs/runs/compile.gin",
    ]
    assert command.gin_files_of("xl", "option", "data_parallel", ("mine.gin",)) == [
        "gin_configs/models/xl.gin",
        "gin_configs/tuning/option.gin",
        "gin_configs/runs/compile_tuning.gin",
        "mine.gin",
        "gin_configs/sharding/data_parallel.gin",  # a run's own file sets RULES
    ]
    # A run's own file says how it is sharded, or the worker adds what is usual.
    assert command.gin_files_of("xl", None, None, ("run.gin",))[-1] == "run.gin"
    assert command.gin_files_of(None, None, None, ("run.gin",)) == [
        "gin_configs/runs/compile.gin",
        "run.gin",
    ]
    with pytest.raises(ConfigError, match="needs --model NAME or --gin_file FILE"):
        command.gin_files_of(None, None, None, ())
    with pytest.raises(ConfigError, match="--tuning goes with --model"):
        command.gin_files_of(None, "option", None, ("run.gin",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:4x4x4", "--model", "xl"], "a slice of v5e has 2 axes"),
        (["--topology", "v5e:4x4"], "needs --model NAME"),
        (["--topology", "v5e:4x4", "--model", "xl", "--steps", "train,fly"], "--steps fly"),
        (["--topology", "v5e:4x4", "--model", "xl", "--slices", "0"], "--slices 0: at least 1"),
        (
            ["--topology", "v5e:4x4", "--model", "xl", "--steps", ","],
            "--steps names none; known are train, score, decode",
        ),
        (["--topology", "v5e:4x4", "--model", "xl", "--json", "."], "is a folder; name a file"),
        (
            ["--topology", "v5e:4x4", "--model", "xl", "--json", f"{__file__}/report.json"],
            "report.json cannot be written",
        ),
    ],
)
def test_errors_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert cli.main(["compile", *arguments]) == 2
    assert message in capsys.readouterr().err


def step(**changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "step": "train",
        "memory": Memory(16 * GIB, 4 * GIB, 3 * GIB, 2 * GIB, 10**6, {"params": GIB, "batch": 8}),
        "model_flops": {"towers": 900, "attention": 60, "head": 40, "prompts": 0},
        "executed_flops": 1100,
        "memory_bytes": 10**9,
        "collectives": (
            CollectiveGroup("all-gather", "layer loop", True, False, 12, 3000, 900),
            CollectiveGroup("all-reduce", "layer loop", False, False, 3, 300, 100),
            CollectiveGroup("all-reduce", "outside", False, True, 1, 100, 100),
        ),
        "synchronous": (("all-reduce", "jit(step)/layers/norm", 100),),
        "seconds": {
            "compute": 0.02,
            "memory": 0.03,
            "links": 0.01,
            "slices": 0.0,
            "exposed": 0.001,
            "step": 0.031,
        },
        "utilisation": 0.4,
        "bound": "memory",
        "compile_seconds": 30.0,
        "compile_cpu_seconds": 40.0,
        "trace_seconds": 2.0,
    }
    return StepReport(**(values | changes))


def report(*steps: StepReport) -> CompileReport:
    run = {
        "name": "xl",
        "rows": 64,
        "source_length": 512,
        "target_length": 128,
        "trainable": "all",
        "mesh": {"data": 1, "fsdp": 16, "tensor": 1},
        "rules": [["batch", ["data", "fsdp"]], ["embed", "fsdp"]],
    }
    return CompileReport(describe_topology(V5E), run, {"date": "2026-01-01"}, steps, {"score": "x"})


def test_a_report_is_json() -> None:
    written = report(step(), step(step="decode", error="it aborts", advice=("a", "b")))
    written = dataclasses.replace(written, warnings=("axis 'heads' is copied",))
    values = json.loads(written.to_json())
    # A worker hands its reports on in the same form.
    read = tuple(StepReport.from_json(one) for one in values.pop("steps"))
    assert list(read) == [
        dataclasses.replace(one, advice=list(one.advice), unknown_loops=[]) for one in written.steps
    ]
    assert CompileReport(steps=read, **values).render() == written.render()
    assert "\nwarning: axis 'heads' is copied\n" in written.render()


def test_the_text_tells_all_of_it() -> None:
    text = report(step()).render()
    for part in (
        "v5e:4x4 (16 chips in all), xl: 64 rows of 512 + 128 tokens, trains all",
        "mesh data 1, fsdp 16, tensor 1; rules batch → data+fsdp, embed → fsdp",
        "4.00 of 16.00 GiB a device, 75% to spare",
        "1.100e+03 executed, 1.000e+03 the model's own (towers 90%, attention 6%, head 4%): 1.10",
        "in the layer loop 0.00 GB, 90% of it asynchronous",
        "12 × all-gather, layer loop, asynchronous",
        "1 × all-reduce between slices, outside, synchronous",
        "not asynchronous: 0.0 MB all-reduce jit(step)/layers/norm",
        "31.0 ms a step, bound by memory, utilisation 40%",
        "score: left out, x",
    ):
        assert part in text, part


SETUP = Setup(
    mesh={"data": 1, "fsdp": 16, "tensor": 1},
    rows=64,
    accumulation_steps=1,
    remat="dots",
    trainable="all",
    frozen_dtype=None,
    logits_bytes=0,
    shards_parameters=True,
)


def test_nothing_is_advised_where_all_is_well() -> None:
    assert advise(step(), SETUP) == ()
    # Collectives that nothing hides, of a model so small that nobody waits for them.
    small = CollectiveGroup("all-reduce", "layer loop", False, False, 3, 9, 9)
    assert advise(step(collectives=(small,)), SETUP) == ()


def test_a_single_chip_is_not_told_to_share() -> None:
    memory = Memory(16 * GIB, 20 * GIB, arguments={"params": 12 * GIB})
    one_chip = dataclasses.replace(SETUP, mesh={"data": 1, "fsdp": 1, "tensor": 1})
    advice = advise(step(memory=memory), one_chip)
    assert advice[0].startswith("the chip holds params 12.0 GiB: take a slice of several chips")
    assert not any("2d" in text or "every device" in text for text in advice)


@pytest.mark.parametrize(
    ("report_changes", "setup_changes", "advised"),
    [
        # Parameters fill the memory of every device.
        (
            {"memory": Memory(16 * GIB, 20 * GIB, arguments={"params": 12 * GIB})},
            {"shards_parameters": False},
            ["fully_sharded.gin", "remat = 'full'", "ACCUMULATION_STEPS = 2", "larger slice"],
        ),
        (
            {"memory": Memory(16 * GIB, 20 * GIB, arguments={"params": 12 * GIB})},
            {"mesh": {"data": 4, "fsdp": 4, "tensor": 1}, "remat": "full", "rows": 16},
            ["give fsdp more devices", "larger slice"],
        ),
        # Activations do.
        (
            {"memory": Memory(16 * GIB, 20 * GIB, arguments={"params": GIB, "batch": 9 * GIB})},
            {"remat": "none", "logits_bytes": 3 * GIB},
            ["chunk_length", "remat = 'dots'", "ACCUMULATION_STEPS = 2", "larger slice"],
        ),
        (
            {"memory": Memory(16 * GIB, 20 * GIB, arguments={"params": 12 * GIB})},
            {"trainable": "prompts", "rows": 16, "remat": "full"},
            ["all devices sharing", "FROZEN_DTYPE = 'bfloat16'", "larger slice"],
        ),
        ({"step": "decode", "memory": Memory(16 * GIB, 15 * GIB)}, {}, ["lower BATCH_SIZE"]),
        ({"executed_flops": 1500}, {"remat": "full"}, ["1.50 times", "remat = 'dots'"]),
        ({"executed_flops": 3000}, {}, ["3.00 times", "devices repeat"]),
        (
            {
                "collectives": (
                    CollectiveGroup("all-reduce", "layer loop", False, False, 3, 9, 9),
                ),
                "seconds": {"exposed": 0.01, "step": 0.031},
            },
            {},
            ["only 0% of the bytes", "jit(step)/layers/norm"],
        ),
        ({"bound": "communication"}, {}, ["more rows a device"]),
    ],
)
def test_what_to_change(
    report_changes: dict[str, Any], setup_changes: dict[str, Any], advised: list[str]
) -> None:
    found = advise(step(**report_changes), dataclasses.replace(SETUP, **setup_changes))
    told = " ".join(found)
    places = [told.find(part) for part in advised]
    assert -1 not in places, (advised, found)


def worker_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> None:
    """Lets a program of Python's stand in for the worker."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(f"import os, sys\nEVENT = {command.EVENT!r}\n{program}")
    real = command.subprocess.Popen
    monkeypatch.setattr(
        command.subprocess,
        "Popen",
        lambda argv, **options: real([sys.executable, str(stand_in)], **options),
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


RUN = (
    '"event": "run", "mesh": {"data": 1}, "rules": [], "rows": 4, "source_length": 8, '
    '"target_length": 4, "trainable": "all", "versions": {}'
)


def test_a_compiler_that_ends_itself_at_the_slice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = (
        'print(EVENT + \'{"event": "stage", "text": "v5e:4x4"}\', flush=True)\n'
        "print('check failed: bad slice', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    worker_of(monkeypatch, tmp_path, program)
    with pytest.raises(ConfigError, match=r"SIGABRT\) at v5e:4x4") as caught:
        command.compile_run("v5e:4x4", model="tiny")
    assert "check failed: bad slice" in str(caught.value)


def test_a_compiler_that_ends_itself_at_a_step_loses_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = json.dumps({"event": "report", "report": step().to_json()})
    program = (
        f"print('noise')\nprint(EVENT + '{{{RUN}}}')\n"
        f'print(EVENT + \'{{"event": "step", "step": "train"}}\')\nprint(EVENT + {done!r})\n'
        'print(EVENT + \'{"event": "step", "step": "score"}\', flush=True)\nos.abort()\n'
    )
    worker_of(monkeypatch, tmp_path, program)
    found = command.compile_run("v5e:4x4", model="tiny")
    assert [one.step for one in found.steps] == ["train", "score"]
    assert found.steps[0] == StepReport.from_json(json.loads(json.dumps(step().to_json())))
    assert "SIGABRT" in found.steps[1].error
    assert not found.fits
    assert "score: does NOT compile" in found.render()


def test_an_error_of_pythons_is_not_the_compilers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the worker could not tell of itself, such as a package that it lacks."""
    worker_of(monkeypatch, tmp_path, "import no_such_package\n")
    with pytest.raises(ConfigError, match="compiling ended with exit status 1 at starting") as told:
        command.compile_run("v5e:4x4", model="tiny")
    assert "No module named 'no_such_package'" in str(told.value)
    assert "no such slice" not in str(told.value)


def test_warnings_of_the_worker_are_told_once_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = json.dumps({"event": "warning", "text": "axis 'heads' is replicated"})
    done = json.dumps({"event": "report", "report": step().to_json()})
    program = (
        f"print(EVENT + '{{{RUN}}}')\n"
        f'print(EVENT + \'{{"event": "step", "step": "train"}}\')\n'
        f"print(EVENT + {warning!r})\nprint(EVENT + {warning!r})\nprint(EVENT + {done!r})\n"
    )
    worker_of(monkeypatch, tmp_path, program)
    file = tmp_path / "new" / "folder" / "report.json"
    arguments = ["--topology", "v5e:4x4", "--model", "tiny", "--steps", "train"]
    assert cli.main(["compile", *arguments, "--json", str(file)]) == 0
    assert capsys.readouterr().out.count("warning: axis 'heads' is replicated") == 1
    assert json.loads(file.read_text())["warnings"] == ["axis 'heads' is replicated"]


@needs_libtpu
def test_a_slice_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, for a tiny model on four chips of a v5e."""
    file = tmp_path / "report.json"
    hlo = tmp_path / "hlo"
    arguments = ["--topology", "v5e:2x2", "--model", "tiny", "--json", str(file), "--hlo", str(hlo)]
    bindings = ["--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}"]
    assert cli.main(["compile", *arguments, "--steps", "train,score", *bindings]) == 0
    out = capsys.readouterr().out
    assert "train: fits" in out
    assert "score: left out, the model has no head" in out
    found = json.loads(file.read_text())
    (train,) = (StepReport.from_json(one) for one in found["steps"])
    assert 1.0 <= train.flops_ratio < 1.4
    assert {group.kind for group in train.collectives if group.place == "layer loop"}
    assert (hlo / "train.hlo").read_text().startswith("HloModule jit_step")
    assert found["made"]["versions"]["libtpu"]


@needs_libtpu
def test_a_slice_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compile", "--topology", "v5e:3x5", "--model", "tiny"]) == 2
    assert "v5e:3x5" in capsys.readouterr().err
