"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gin
import numpy as np
import pytest

from m6rec_jax import cli
from m6rec_jax.checkpoints.checkpoint import list_steps, open_checkpoint
from m6rec_jax.checkpoints.trees import flatten
from m6rec_jax.errors import CheckpointError
from m6rec_jax.training import loop
from m6rec_jax.training.metric_log import read_metrics
from tests.training import toy_run
from tests.training.toy_run import toy_train

STEPS = 10
ROOT = Path(__file__).resolve().parents[2]


def everything(state: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten(state).items()}


def assert_bit_equal(state: Any, other: Any) -> None:
    one, two = everything(state), everything(other)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def assert_same_batches(digests: Mapping[int, str], unbroken: Mapping[int, str]) -> None:
    for index in range(STEPS):
        if index in digests:
            assert digests[index] == unbroken[index], f"batch {index}"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("unbroken")
    result, batches = toy_train(folder, STEPS)
    return result, batches, folder


def test_killed_and_resumed(unbroken: Any, tmp_path: Path) -> None:
    """Killed right after a checkpoint began to be written (step 8)."""
    result, batches, _ = unbroken
    killed = subprocess.run(
        [sys.executable, toy_run.__file__, str(tmp_path), str(STEPS), "9"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    steps = list_steps(tmp_path / "checkpoints")
    assert steps[-1] in (4, 8)

    _, resumed = toy_train(tmp_path, STEPS)
    digests = resumed.digests
    assert min(digests) == steps[-1], "batches before the checkpoint are not read again"
    assert_same_batches(digests, batches.digests)
    # Restoring at the end of training compares the parameters on disk.
    again, _ = toy_train(tmp_path, STEPS)
    assert again.step == STEPS
    assert_bit_equal(again.state, result.state)
    lines = [line["step"] for line in read_metrics(tmp_path) if "loss" in line]
    assert lines == [2, 4, 6, 8, 10], "no step is logged twice"


def test_signal_saves_and_leaves(
    unbroken: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped between two regular checkpoints, so that batches must be skipped on resuming."""
    result, batches, _ = unbroken

    def stop(model: Any, variables: Any, step: int) -> dict[str, float]:
        if step == 6:
            signal.raise_signal(signal.SIGINT)
        return {}

    handler = signal.getsignal(signal.SIGINT)
    first, before = toy_train(
        tmp_path, STEPS, evaluate=stop, eval_period=2, validation=lambda *a, **k: []
    )
    assert first.stopped_by == "SIGINT"
    assert signal.getsignal(signal.SIGINT) == handler
    # The signal came during the validation after step 6, so it was seen after step 7.
    assert first.step == 7
    assert list_steps(tmp_path / "checkpoints") == [4, 7]
    assert "same command again" in capsys.readouterr().err
    second, after = toy_train(tmp_path, STEPS)
    assert second.step == STEPS
    assert second.stopped_by is None
    assert_same_batches({**before.digests, **after.digests}, batches.digests)
    assert_bit_equal(second.state, result.state)


def test_a_run_that_was_stopped_is_not_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By scripts, which see the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train", lambda: SimpleNamespace(stopped_by="SIGINT"))
    text = "import m6rec_jax.training.loop\ntrain.model = @M6Rec()\ntrain.model_dir = %MODEL_DIR\n"
    Path("run.gin").write_text(text)
    assert cli.main(["train", "--gin_file", "run.gin", "--gin.MODEL_DIR=run"]) == 130
    gin.clear_config()


@pytest.mark.parametrize(
    ("untuned", "signal_at", "step"), [(True, 1, 0), (False, 3, 6), (False, 7, 10)]
)
def test_a_signal_ends_a_validation(
    untuned: bool, signal_at: int, step: int, tmp_path: Path
) -> None:
    """Validations may take longer than a preempted machine has left."""
    asked: list[int] = []
    settings: dict[str, Any] = {
        "eval_period": 3,
        "validate_first": untuned,
        "best_metric": "validation/loss",
        "early_stopping_patience": 3,
    }

    def batches(*_: Any, **__: Any) -> Any:
        for number, batch in enumerate(toy_run.toy_validation()):
            asked.append(number)
            if len(asked) == signal_at:  # of the first, the second or the last validation
                signal.raise_signal(signal.SIGTERM)
            yield batch

    unbroken, _ = toy_train(tmp_path / "unbroken", STEPS, **settings)
    run = tmp_path / "run"
    result, _ = toy_train(run, STEPS, validation=batches, **settings)
    assert (result.stopped_by, result.step) == ("SIGTERM", step)
    assert len(asked) == signal_at, "no batch more was read"
    assert list_steps(run / "checkpoints")[-1:] == ([] if untuned else [step])
    second, _ = toy_train(run, STEPS, **settings)
    assert (second.step, second.stopped_by) == (unbroken.step, unbroken.stopped_by)
    assert_bit_equal(second.state, unbroken.state)
    # As if no signal had come: the best step, how long it is ago, and every figure.
    manifests = [open_checkpoint(folder).manifest for folder in (tmp_path / "unbroken", run)]
    assert manifests[0].extra == manifests[1].extra
    validated = [
        [line for line in read_metrics(folder) if "validation/loss" in line]
        for folder in (tmp_path / "unbroken", run)
    ]
    assert validated[0] == validated[1]


def test_resume_needs_the_same_shards(unbroken: Any) -> None:
    _, _, folder = unbroken
    with pytest.raises(CheckpointError, match=r"started with 4 data .* with 2.* Set it back to 4"):
        toy_train(folder, STEPS + 1, num_shards=2)


def test_resume_refuses_another_size(unbroken: Any) -> None:
    _, _, folder = unbroken
    config = toy_run.toy_config(mlp_dim=48)
    with pytest.raises(CheckpointError) as caught:
        toy_train(folder, STEPS + 1, model=config)
    message = str(caught.value)
    assert "params/decoder/layers/mlp/wi_0/kernel" in message
    assert "float32[1,16,32]" in message
    assert "float32[1,16,48]" in message
    assert "mlp_dim: 32 -> 48" in message


def test_resume_refuses_another_choice_of_what_trains(unbroken: Any) -> None:
    _, _, folder = unbroken
    config = (folder / "config.gin").read_text()
    gin.bind_parameter("Logging.period", 7)
    try:
        with pytest.raises(CheckpointError, match="trainable = 'all', now it is 'prompts'"):
            toy_train(folder, STEPS + 1, trainable="prompts")
    finally:
        gin.clear_config()
    assert (folder / "config.gin").read_text() == config, "of the run that made the checkpoints"


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    run, new, other = tmp_path / "run", tmp_path / "new", "b" * 64
    toy_train(run, 1, vocabulary_fingerprint="a" * 64)
    with pytest.raises(CheckpointError, match=r"another vocabulary \(fingerprint aaaaaaaaaaaaaaaa"):
        toy_train(run, 2, vocabulary_fingerprint=other)
    with pytest.raises(CheckpointError, match="another vocabulary"):
        toy_train(new, 1, vocabulary_fingerprint=other, initial_checkpoint_path=str(run))
