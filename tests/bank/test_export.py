"""Tasks are taken out of a run one by one, each with what its kind trains and nothing else."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from m6rec_jax.bank.export import add_prompts, export_prompts
from m6rec_jax.bank.folder import BankFolder
from m6rec_jax.checkpoints.fingerprint import backbone_fingerprint, fingerprint
from m6rec_jax.checkpoints.manifest import RunDescription
from m6rec_jax.checkpoints.store import CheckpointStore
from m6rec_jax.checkpoints.trees import flatten, nested
from m6rec_jax.engine.model_folder import InferenceSettings, restore_model, save_assets
from m6rec_jax.engine.task_settings import ExitSettings, TaskSettings
from m6rec_jax.errors import CheckpointError, ConfigError
from m6rec_jax.model import PromptConfig
from m6rec_jax.model.layout import prompt_leaves
from tests.bank.conftest import Backbone, random_params

PROMPTS = PromptConfig(
    num_tasks=3,
    num_prompts=6,
    num_options=5,
    head="option",
    adapter_rank=3,
    retrieval_dim=4,
    task_num_prompts=(6, 4, 3),
    task_num_options=(5, 2, 0),
    task_adapter_ranks=(3, 1, 2),
)
TASKS = {
    "shop_stars": TaskSettings(0, (3, 4), kind="scoring", prepared="shop.by_time"),
    "shop_ctr": TaskSettings(1, (1,), 0.25, kind="scoring", prepared="shop.by_time"),
    "shop_next": TaskSettings(2, kind="retrieval", prepared="films.last", candidate_length=7),
}
STEP = 40


@pytest.fixture(scope="module")
def run(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained three tasks at once, with its metrics."""
    folder = tmp_path_factory.mktemp("run")
    config = backbone.config.replace(prompts=PROMPTS)
    rng = np.random.default_rng(5)
    prompts = nested(
        {
            name: rng.normal(size=leaf.shape).astype(np.float32)
            for name, leaf in prompt_leaves(config).items()
        }
    )
    # The frozen backbone may be held in bfloat16; it is the same one.
    frozen = jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), backbone.params)
    description = RunDescription(config, backbone.vocabulary.fingerprint, "prompts", 4)
    with CheckpointStore(folder / "checkpoints") as store:
        trees = {"params": frozen, "prompts": prompts}
        store.save(STEP, trees, data={}, run=description, frozen=("params",))
    settings = InferenceSettings(48, 24, TASKS)
    specs = {"shop.by_time": {"name": "shop"}, "films.last": {"name": "films"}}
    save_assets(folder, backbone.vocabulary, settings, specs)
    lines = [
        {"step": 20, "validation/shop_ctr/auc": 0.5},
        {"step": STEP, "loss": 1.0},
        {"step": STEP, "validation/loss": 2.0, "validation/shop_ctr/auc": 0.75},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4')
    return folder


def test_every_task_by_itself(run: Path, backbone: Backbone) -> None:
    found = {prompts.manifest.task: prompts for prompts in export_prompts(run)}
    assert list(found) == sorted(TASKS)
    expected = {
        "shop_stars": PromptConfig(num_prompts=6, num_options=5, head="option", adapter_rank=3),
        "shop_ctr": PromptConfig(num_prompts=4, num_options=2, head="option", adapter_rank=1),
        "shop_next": PromptConfig(num_prompts=3, adapter_rank=2, retrieval_dim=4),
    }
    for name, prompts in found.items():
        manifest = prompts.manifest
        assert manifest.prompts == expected[name]
        assert manifest.model_config == backbone.config.replace(prompts=expected[name])
        leaves = prompt_leaves(manifest.model_config)
        shapes = {tensor: leaf.of_task().shape for tensor, leaf in leaves.items()}
        assert {tensor: values.shape for tensor, values in prompts.tensors.items()} == shapes
        assert manifest.backbone_fingerprint == backbone_fingerprint(backbone.params)
        assert manifest.prompts_fingerprint == fingerprint(prompts.tensors)
        assert manifest.source == {"run": str(run), "task": name, "step": STEP}
        assert manifest.settings == dataclasses.replace(
            TASKS[name],
            task_id=0,
            num_options=expected[name].num_options,
            retrieval_dim=expected[name].retrieval_dim,
            source_length=48,
            target_length=24,
        )
        assert manifest.dataset_spec == {"name": "films" if name == "shop_next" else "shop"}
    assert found["shop_ctr"].manifest.method == "option_adapter"
    assert found["shop_next"].manifest.method == "prompt_adapter"
    assert found["shop_ctr"].manifest.metrics == {
        "validation/auc": 0.75,
    }
    assert found["shop_next"].manifest.metrics == {}


def test_the_right_rows_and_slices(run: Path) -> None:
    stacked = flatten(stacked_prompts(run))
    (prompts,) = export_prompts(run, ["shop_ctr"])
    own = prompts.tensors
    soft = stacked["bank/soft_prompts"]
    np.testing.assert_array_equal(own["bank/soft_prompts"], soft[1, 2:])  # the last four
    adapter = "encoder/layers/mlp/adapter"
    np.testing.assert_array_equal(own[f"{adapter}/wi"], stacked[f"{adapter}/wi"][:, 1, :, :1])
    np.testing.assert_array_equal(own[f"{adapter}/wo"], stacked[f"{adapter}/wo"][:, 1, :1])
    np.testing.assert_array_equal(own[f"{adapter}/scale"], stacked[f"{adapter}/scale"][:, 1])


def stacked_prompts(run: Path) -> dict[str, np.ndarray]:
    from m6rec_jax.engine.model_folder import restore_model

    return jax.tree.map(np.asarray, restore_model(run).variables["prompts"])


def test_a_step_that_was_better_is_named(
    run: Path, backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a run that ended by patience, the last step is not the one that was tested."""
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    config = backbone.config.replace(prompts=PROMPTS)
    best = {"name": "validation/auc", "mode": "max", "best": 0.75, "best_step": STEP, "waited": 1}
    description = RunDescription(
        config, backbone.vocabulary.fingerprint, "prompts", 4, extra={"best": best}
    )
    trees = {"params": backbone.params, "prompts": restore_model(run).variables["prompts"]}
    with CheckpointStore(copied / "checkpoints") as store:
        store.save(STEP + 20, trees, data={}, run=description, frozen=("params",))
    with caplog.at_level(logging.WARNING, logger="m6rec_jax.checkpoints"):
        (found,) = export_prompts(copied, ["shop_ctr"])
    assert found.manifest.source["step"] == STEP + 20
    said = f"took step {STEP + 20}, the newest; by validation/auc step {STEP} was better (0.75)"
    assert caplog.text.count(said) == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="m6rec_jax.checkpoints"):
        restore_model(copied)  # as evaluation and inference do
    assert caplog.text.count(said) == 1
    caplog.clear()
    (found,) = export_prompts(copied, ["shop_ctr"], step=STEP)
    assert found.manifest.source["step"] == STEP
    assert "was better" not in caplog.text


def test_early_exits_come_along(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    exits = {"step": STEP, "tasks": {"shop_ctr": {"threshold": 0.9, "depth": 1}}}
    (copied / "inference" / "early_exit.json").write_text(json.dumps(exits))
    add_prompts(tmp_path / "bank", copied)
    settings = {name: BankFolder(tmp_path / "bank").read(name).manifest.settings for name in TASKS}
    assert settings["shop_ctr"].exits == ExitSettings(0.9, 1)
    assert settings["shop_next"].exits is None


def test_into_a_bank(run: Path, bank_path: Path, tmp_path: Path) -> None:
    added = add_prompts(tmp_path / "bank", run)
    assert [path.stem for path in added] == sorted(TASKS)
    with pytest.raises(ConfigError, match=r"--name x is for one task, but .* has 3: shop_ctr"):
        add_prompts(tmp_path / "bank", run, name="x")
    add_prompts(tmp_path / "bank", run, tasks=["shop_ctr"], name="clicks")
    bank = BankFolder(tmp_path / "bank")
    assert bank.names() == ["clicks", *sorted(TASKS)]
    # Where one of several cannot be added, none is.
    for name in ("shop_ctr", "shop_next"):
        bank.remove(name)
    with pytest.raises(ConfigError, match="a task 'shop_stars' already"):
        add_prompts(bank.path, run)
    assert bank.names() == ["clicks", "shop_stars"]
    # The run has the backbone of the other bank's tasks.
    add_prompts(bank.path, bank_path / "ctr.safetensors")


def test_clear_errors(run: Path, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="no task 'shop_cvr': shop_ctr"):
        export_prompts(run, ["shop_cvr"])
    assert [p.manifest.task for p in export_prompts(run, ["shop_ctr"])] == ["shop_ctr"]
    with pytest.raises(CheckpointError, match=f"no checkpoint of step 7 .* {STEP}"):
        export_prompts(run, step=7)
    with pytest.raises(CheckpointError, match="no such folder"):
        add_prompts(tmp_path / "bank", tmp_path / "nowhere")
    assert not (tmp_path / "bank").exists()
    folder = tmp_path / "plain"
    config = backbone.config.replace(num_encoder_layers=1)
    description = RunDescription(config, backbone.vocabulary.fingerprint, "all", 4)
    with CheckpointStore(folder / "checkpoints") as store:
        trees = {"params": random_params(config, 0), "prompts": {}}
        store.save(1, trees, data={}, run=description)
    settings = InferenceSettings(48, 24, {"plain": TaskSettings(kind="scoring")})
    save_assets(folder, backbone.vocabulary, settings)
    with pytest.raises(ConfigError, match="'plain' has no prompts in"):
        export_prompts(folder)
    # As of a converted checkpoint.
    save_assets(folder, backbone.vocabulary, InferenceSettings(48, 24))
    with pytest.raises(ConfigError, match=r"plain was trained on no task"):
        add_prompts(tmp_path / "bank", folder)
    assert not (tmp_path / "bank").exists()
