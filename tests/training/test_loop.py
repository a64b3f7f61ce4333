"""`train`: what it leaves behind, best checkpoints, early stopping, starting from other weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from m6rec_jax.checkpoints.checkpoint import list_steps, open_checkpoint
from m6rec_jax.errors import CheckpointError, ConfigError, DataError, M6RecError
from m6rec_jax.model.config import PromptConfig
from m6rec_jax.objectives import Sum, window_means
from m6rec_jax.sharding import MESH_AXES
from m6rec_jax.training import loop
from m6rec_jax.training.metric_log import read_metrics
from m6rec_jax.training.optimizers import adamw
from m6rec_jax.training.step_loop import RMS_PREFIX
from tests.training.toy_run import copied, toy_config, toy_train


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("pretrained")
    result, _ = toy_train(folder, 4, eval_period=2)
    return result, folder


def test_what_a_run_leaves_behind(pretrained: Any) -> None:
    result, folder = pretrained
    assert {"checkpoints", "config.gin", "metrics.jsonl"} <= {p.name for p in folder.iterdir()}
    lines = read_metrics(folder)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4]
    assert [line["step"] for line in lines if "validation/loss" in line] == [2, 4]
    training = next(line for line in lines if "loss" in line)
    assert {"examples_per_second", "tokens_per_second", "gradient_norm"} <= training.keys()
    assert 0 < result.goodput["goodput"] < 1
    parts = [v for k, v in result.goodput.items() if k.startswith("seconds/") and "total" not in k]
    assert sum(parts) <= result.goodput["seconds/total"]


def test_sizes_of_what_trains_are_logged_with_every_checkpoint(pretrained: Any) -> None:
    result, folder = pretrained
    lines = [line for line in read_metrics(folder) if any(k.startswith(RMS_PREFIX) for k in line)]
    assert lines[-1]["step"] == 4
    trained = {"params": result.state.params, "prompts": result.state.prompts}
    for name, leaf in copied(trained).items():
        size = np.sqrt(np.mean(np.square(leaf.astype(np.float64))))
        # Sums of a few thousand squares in float32.
        np.testing.assert_allclose(lines[-1].pop(RMS_PREFIX + name), size, rtol=1e-5, err_msg=name)
    assert lines[-1].keys() == {"step"}


def test_nothing_to_do_when_the_run_is_complete(pretrained: Any) -> None:
    result, folder = pretrained
    again, batches = toy_train(folder, 4)
    assert again.step == 4
    assert again.stopped_by is None
    for name, value in copied(result.state).items():
        np.testing.assert_array_equal(copied(again.state)[name], value, err_msg=name)
    assert batches.num_batches == 4, "no batch was read beyond the saved position"


def test_initial_backbone_is_frozen_and_stored_once(pretrained: Any, tmp_path: Path) -> None:
    result, folder = pretrained
    tuned, _ = toy_train(
        tmp_path, 8, trainable="prompts", initial_checkpoint_path=str(folder), keep_checkpoints=1
    )
    for name, value in copied(result.state.params).items():
        np.testing.assert_array_equal(copied(tuned.state.params)[name], value, err_msg=name)
    assert any(
        (copied(tuned.state.prompts)[name] != value).any()
        for name, value in copied(result.state.prompts).items()
    )
    sizes = {
        name for line in read_metrics(tmp_path) for name in line if name.startswith(RMS_PREFIX)
    }
    assert sizes
    assert all(name.startswith(f"{RMS_PREFIX}prompts/") for name in sizes)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    backbones = [name for name in names if name.startswith("params-")]
    assert len(backbones) == 1
    assert names == ["8", *backbones]
    assert not (tmp_path / "checkpoints" / "8" / "params").exists()
    again, _ = toy_train(tmp_path, 9, trainable="prompts")
    assert again.step == 9
    for name, value in copied(result.state.params).items():
        np.testing.assert_array_equal(copied(again.state.params)[name], value, err_msg=name)


def test_a_frozen_backbone_in_bfloat16(pretrained: Any, tmp_path: Path) -> None:
    result, folder = pretrained
    settings = {"trainable": "prompts", "frozen_dtype": "bfloat16"}
    toy_train(tmp_path, 2, **settings, initial_checkpoint_path=str(folder))
    tuned, _ = toy_train(tmp_path, 3, **settings)
    assert tuned.step == 3
    for name, value in copied(result.state.params).items():
        rounded = value.astype("bfloat16")
        np.testing.assert_array_equal(copied(tuned.state.params)[name], rounded, err_msg=name)
    tensors = open_checkpoint(tmp_path).manifest.tensors
    assert {spec.dtype for spec in tensors["params"].values()} == {"bfloat16"}
    assert {spec.dtype for spec in tensors["prompts"].values()} == {"float32"}


def test_matching_prompts_are_taken_over(
    pretrained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result, folder = pretrained
    prompts = PromptConfig(
        num_prompts=6, num_options=2, head="option", adapter_rank=2, special_token_ids=(1, 2)
    )
    with caplog.at_level(logging.INFO, "m6rec_jax"):
        tuned, _ = toy_train(
            tmp_path,
            1,
            model=toy_config(prompts=prompts),
            optimizer=adamw(0.0),
            trainable="prompts",
            initial_checkpoint_path=str(folder),
            initial_prompts="matching",
        )
    saved, now = copied(result.state.prompts), copied(tuned.state.prompts)
    for name in now:
        if now[name].shape == saved[name].shape:
            np.testing.assert_array_equal(now[name], saved[name], err_msg=name)
        else:
            assert "soft_prompts" in name
    assert "new: ['bank/soft_prompts" in caplog.text


def test_an_optimizer_that_keeps_the_weights_begins_with_those_of_the_checkpoint(
    pretrained: Any, tmp_path: Path
) -> None:
    """As schedule-free ones do."""
    result, folder = pretrained
    back = optax.GradientTransformation(
        lambda params: params,
        lambda _, kept, params: (jax.tree.map(lambda a, b: a - b, kept, params), kept),
    )
    given = {"initial_checkpoint_path": str(folder), "initial_prompts": "all"}
    tuned, _ = toy_train(tmp_path, 1, trainable="prompts", optimizer=back, **given)
    saved, now = copied(result.state.prompts), copied(tuned.state.prompts)
    for name in saved:
        np.testing.assert_allclose(now[name], saved[name], atol=1e-6, err_msg=name)


def test_best_checkpoint_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    """Of equal figures the newest is the best, but no better than the one before."""
    figures = {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.9, 10: 0.6}
    settings: dict[str, Any] = {
        "evaluate": lambda model, variables, step: {"auc": figures[step]},
        "eval_period": 2,
        "checkpoint_period": 100,
        "keep_checkpoints": 1,
        "best_metric": "validation/auc",  # the most is best, as its name says
        "early_stopping_patience": 3,
    }
    result, _ = toy_train(tmp_path, 40, **settings)
    assert result.stopped_by == "early stopping"
    assert result.step == 10
    assert result.best_step == 8
    assert list_steps(tmp_path / "checkpoints") == [8, 10]
    assert open_checkpoint(tmp_path).manifest.extra["best"] == {
        "name": "validation/auc",
        "mode": "max",
        "best": 0.9,
        "best_step": 8,
        "waited": 3,
        "newest": 10,
    }
    again, _ = toy_train(tmp_path, 40, **settings)
    assert again.step == 10
    assert again.stopped_by == "early stopping"


def test_the_loss_of_the_whole_part_is_not_overwritten(tmp_path: Path) -> None:
    """Tasks of texts report a loss, too, perhaps of fewer rows."""
    toy_train(tmp_path, 1, eval_period=1, evaluate=lambda *_: {"loss": 99.0, "perplexity": 3.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (figures,) = (line for line in lines if "validation/perplexity" in line)
    assert 0 < figures["validation/loss"] < 50


def test_a_validation_that_fails_loses_no_training(tmp_path: Path) -> None:
    """It is made up for before training goes on, from the checkpoint that it left."""
    figures: list[float | None] = [0.5, None, 0.9, 0.6]

    def evaluate(*_: Any) -> dict[str, float]:
        if (figure := figures.pop(0)) is None:
            raise DataError("all labels are the same")
        return {"auc": figure}

    settings: dict[str, Any] = {
        "evaluate": evaluate,
        "eval_period": 3,
        "checkpoint_period": 100,
        "best_metric": "validation/auc",
    }
    with pytest.raises(DataError, match="all labels are the same"):
        toy_train(tmp_path, 8, **settings)
    assert list_steps(tmp_path / "checkpoints") == [3, 6]
    result, _ = toy_train(tmp_path, 8, **settings, keep_checkpoints=1)
    assert (result.step, result.best_step, figures) == (8, 6, [])
    assert list_steps(tmp_path / "checkpoints") == [6, 8]


def test_metrics_are_means_over_what_was_counted() -> None:
    one, none = Sum(np.float32(3.0), np.float32(4.0)), Sum(np.float32(0.0), np.float32(0.0))
    window = [
        {"loss": np.float32(1.0), "classification/accuracy": one, "contrastive/accuracy": none},
        {"loss": np.float32(3.0), "classification/accuracy": none, "contrastive/accuracy": none},
    ]
    assert window_means(window, ()) == {"loss": 2.0, "classification/accuracy": 0.75}


def test_resume_refuses_another_best_metric(tmp_path: Path) -> None:
    """A loss of 0.7 is no AUC to be beaten."""
    settings: dict[str, Any] = {
        "evaluate": lambda model, variables, step: {"auc": 0.5 + step / 100},
        "eval_period": 2,
        "checkpoint_period": 1,
        "keep_checkpoints": 1,
    }
    # Steps that were saved while nothing was followed have no figure.
    toy_train(tmp_path, 2, **settings)
    toy_train(tmp_path, 4, **settings, best_metric="validation/auc", best_mode="max")
    for other in (
        {"best_metric": "validation/loss", "best_mode": "min"},
        {"best_metric": "validation/auc", "best_mode": "min"},
    ):
        with pytest.raises(CheckpointError, match=r"has followed validation/auc \(max\) so far"):
            toy_train(tmp_path, 6, **settings, **other)
    result, _ = toy_train(tmp_path, 7, **settings, best_metric="validation/auc", best_mode="max")
    assert result.best_step == 7
    toy_train(tmp_path, 8, **settings)


def test_best_metric_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'validation/auk' is not among .* validation/loss"):
        toy_train(tmp_path, 2, eval_period=1, best_metric="validation/auk")
    assert list_steps(tmp_path / "checkpoints") == [1]
    result, _ = toy_train(tmp_path, 2, eval_period=1, best_metric="validation/loss")
    assert result.best_step is not None
    with pytest.raises(ConfigError, match="'validation/auk' is not among"):
        toy_train(
            tmp_path / "first", 2, eval_period=2, best_metric="validation/auk", validate_first=True
        )
    assert list_steps(tmp_path / "first" / "checkpoints") == []


def test_divergence_is_reported_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(M6RecError, match="training has diverged"):
        toy_train(tmp_path, 4, optimizer=adamw(float("nan")), checkpoint_period=3)
    assert list_steps(tmp_path / "checkpoints") == []


def test_accumulation_must_divide_every_devices_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 rows over 4 devices are 2 for each, which 4 steps do not divide, though they divide 8."""
    mesh = AbstractMesh((2, 2, 1), MESH_AXES)
    monkeypatch.setattr(loop, "make_mesh", lambda: mesh)
    with pytest.raises(ConfigError, match=r"into 16 parts: 4 devices share .* in 4 accumulation"):
        toy_train(tmp_path, 1, accumulation_steps=4)
    assert not (tmp_path / "checkpoints").exists()


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    pytest.importorskip("clu")
    toy_train(tmp_path, 2, tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_new_run_may_be_validated_before_its_first_step(tmp_path: Path) -> None:
    figures = {0: 0.9, 2: 0.5, 4: 0.6}
    settings: dict[str, Any] = {
        "evaluate": lambda model, variables, step: {"auc": figures[step]},
        "eval_period": 2,
        "checkpoint_period": 4,
        "best_metric": "validation/auc",
        "best_mode": "max",
        "validate_first": True,
    }
    # Of a run that was killed before its first checkpoint.
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "validation/auc": 0.9}\n')
    result, _ = toy_train(tmp_path, 4, **settings)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [(line["step"], line["validation/auc"]) for line in lines if "validation/auc" in line]
    assert told == [(0, 0.9), (2, 0.5), (4, 0.6)]
    assert result.best_step == 4, "there is no checkpoint of the start"
    figures |= {6: 0.7}
    toy_train(tmp_path, 6, **settings)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation/auc" in line] == [0, 2, 4, 6]
