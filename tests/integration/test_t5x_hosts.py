"""t5x on two hosts that are folders here, by tpu_scripts and the run of docs/t5x.md."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.checkpoints.t5x_files import checkpoint_folder, open_t5x
from tests.integration.commands import ROOT, m6rec_each
from tests.integration.page import follow
from tests.integration.test_pages import before_t5x
from tests.several_devices import free_port
from tests.t5x_bridge.needs_t5x import REASON
from tests.tpu_scripts.calls import succeeded, until
from tests.tpu_scripts.conftest import make_world
from tests.tpu_scripts.world import World, program

pytest.importorskip("t5x", reason=REASON, exc_type=ImportError)
pytestmark = pytest.mark.timeout(1800)

FOUNDATION = 20
M6REC = f"{sys.executable} -m m6rec_jax.cli"
# Makes environments whose m6rec is this Python's, with the code that install.sh brought.
PYTHON = f"""#!/bin/bash
case "$1 $2" in
  "-c "*) echo 3.11 ;;
  "-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    cat >"$3/bin/m6rec" <<'M6REC'
#!/bin/bash
[[ $1 == --version ]] && exec echo m6rec_jax
export JAX_PROCESS_ID=${{STUB_HOST##*-}} PYTHONPATH=$HOME/m6rec
exec {M6REC} "$@"
M6REC
    chmod +x "$3/bin/m6rec"
    ;;
esac
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A slice of two hosts with the page's files, its data in a bucket, and its foundation."""
    made = make_world(tmp_path_factory.mktemp("t5x"))
    follow(before_t5x(made.home), made.home)
    made.write("workers", 2)
    made.write("states.json", ["ACTIVE"])
    program(made.folder / "host_bin" / "python3.11", PYTHON)
    program(made.bin / "m6rec", f'#!/bin/sh\nPYTHONPATH={ROOT} exec {M6REC} "$@"\n')
    staged = ("--staging=cache", "--data-set=shop", "--data=gs://bucket/data", "--no-vocabulary")
    succeeded(made.run("stage_data", *staged, "--", "--gin.PrepareOptions.group_size=2"))
    names = ("shop", "train", "eval", "infer")
    files = [word for name in names for word in ("--include", f"{name}.gin")]
    succeeded(made.run("install", "--t5x", *files))
    yield made
    made.kill_runs()


def launch(world: World, program: str, **settings: object) -> None:
    """Starts a program on both hosts, which find each other as processes of one machine do."""
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": 2,
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
    }
    succeeded(
        world.run(
            "launch",
            "--data=gs://bucket/data",
            *(f"--env={name}={value}" for name, value in variables.items()),
            "--",
            program,
            f"--gin_file={program.removeprefix('t5x.')}.gin",
            "--gin.join_processes.cluster=none",
            *(f"--gin.{name}={value}" for name, value in settings.items()),
        )
    )


def ended(world: World, how: str) -> None:
    until(lambda: "running" not in world.run("launch", "--status").stdout, within=500)
    told = world.run("launch", "--status").stdout
    assert told.count(how) == 2, told + log(world, 0)[-5000:] + log(world, 1)[-5000:]


def log(world: World, host: int) -> str:
    path = world.folder / "hosts" / f"pod-{host}" / "m6rec-runs" / "m6rec" / "log"
    return path.read_text() if path.exists() else ""


def tensors(run: Path) -> dict[str, np.ndarray]:
    """Of its newest checkpoint."""
    files = open_t5x(checkpoint_folder(run))
    return {name: files.read(name) for name in files.found}


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.split("_")[1]) for path in run.glob("checkpoint_*[0-9]"))


def test_trained_stopped_resumed_evaluated_and_inferred(world: World) -> None:
    run, foundation = world.home / "ctr", world.home / "foundation_t5x"
    start = {
        "MODEL_DIR": run,
        "INITIAL_CHECKPOINT_PATH": foundation / f"checkpoint_{FOUNDATION}",
        "train.stats_period": 1,
    }
    launch(world, "t5x.train", TRAIN_STEPS=10_000_000, **start)
    first = f"[{FOUNDATION + 1}] collection=train class"
    until(lambda: first in log(world, 0) or "running" not in status(world), within=500)
    succeeded(world.run("launch", "--stop"))
    assert status(world).count("stopped") == 2, log(world, 0)[-5000:]
    assert "ended with status 143" in log(world, 0)
    assert "ended with status 143" in log(world, 1)
    stopped = saved(run)[-1]
    assert stopped > FOUNDATION

    # The first step is that of the built-in trainer, which reads two shards.
    out = m6rec_each(
        world.home,
        [
            *("train", "--gin_file", "tune.gin", "--gin.MODEL_DIR=tune_2"),
            *("--gin.INITIAL_CHECKPOINT_PATH=foundation", "--gin.BatchIterator.num_shards=2"),
        ],
    )
    succeeded(out[0])
    ours = json.loads((world.home / "tune_2" / "metrics.jsonl").read_text().splitlines()[0])
    (loss,) = re.findall(re.escape(first) + r".*?, loss=([\d.]+)", log(world, 0))
    assert float(loss) == pytest.approx(ours["loss"], abs=1e-5)

    launch(world, "t5x.train", TRAIN_STEPS=stopped + 5, **start)
    ended(world, "finished")
    steps = re.findall(r"\[(\d+)\] collection=train class", log(world, 0).split("t5x.train")[-1])
    assert [int(step) for step in steps] == list(range(stopped + 1, stopped + 6))
    checkpoint = run / f"checkpoint_{stopped + 5}"
    # No row was lost or read twice.
    launch(
        world, "t5x.train", TRAIN_STEPS=stopped + 5, **start | {"MODEL_DIR": world.home / "whole"}
    )
    ended(world, "finished")
    whole = tensors(world.home / "whole")
    for name, values in tensors(run).items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)

    launch(world, "t5x.eval", CHECKPOINT_PATH=checkpoint, EVAL_OUTPUT_DIR=world.home / "evaluated")
    ended(world, "finished")
    launch(world, "t5x.infer", CHECKPOINT_PATH=checkpoint, INFER_OUTPUT_DIR=world.home / "inferred")
    ended(world, "finished")
    (metrics,) = (world.home / "evaluated").rglob("corner_shop_ctr-metrics.jsonl")
    theirs = json.loads(metrics.read_text().splitlines()[-1])
    converted, evaluated = m6rec_each(
        world.home,
        ["convert", "--from", "t5x_bridge:ctr", "--to", "ctr_m6rec"],
        ["eval", "--gin_file", "m6rec_eval.gin", "--gin.MODEL_DIR=ctr_m6rec"],
    )
    succeeded(converted)
    out = succeeded(evaluated)
    ours = json.loads(out[out.index("{") :])
    assert theirs.pop("step") == stopped + 5
    assert theirs == pytest.approx({name: ours[name] for name in theirs}, abs=1e-6)
    (predicted,) = (world.home / "inferred").glob("corner_shop_ctr-score.jsonl-*-00001")
    assert len(predicted.read_text().splitlines()) == ours["num_examples"]


def status(world: World) -> str:
    return world.run("launch", "--status").stdout


def test_a_name_that_gin_does_not_know_is_not_tried_again(world: World) -> None:
    launch(world, "t5x.eval", **{"no_such.setting": 1})
    ended(world, "failed 2")
    assert "no_such" in log(world, 0)
