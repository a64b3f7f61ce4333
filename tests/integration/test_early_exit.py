"""Early exit on a user's shop: training, `m6rec calibrate`, and a model that serves with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.engine.task_settings import ExitSettings
from tests.integration.commands import Finished, failed, m6rec_each, succeeded

TASK = "corner_shop_ctr"
TRAIN = """
include 'train.gin'

ModelConfig.exit_losses = 'rising'
ModelConfig.num_decoder_layers = 3
Validation.evaluate = None
Validation.best_metric = None
"""
CALIBRATE = f"""
include 'gin_configs/commands/calibrate.gin'

import tasks.corner_shop

MIXTURE_OR_TASK_NAME = '{TASK}'
TASK_FEATURE_LENGTHS = {{'inputs': 96, 'targets': 96}}
calibrate.batch_size = 4
"""
COMMANDS = {
    "train": ["train", "--gin_file", "exits.gin", "--gin.MODEL_DIR=exits"],
    "calibrate": ["calibrate", "--gin_file", "calibrate.gin", "--gin.MODEL_DIR=exits"],
    "loose": [
        *("calibrate", "--gin_file", "calibrate.gin", "--gin.MODEL_DIR=exits"),
        *("--max_loss", "0.99"),
    ],
    "export": ["export", "exits", "--output", "exported", "--split", "validation"],
    "phone": [
        *("export", "exits", "--output", "phone", "--split", "validation"),
        *("--format", "litert", "--precision", "float32"),
    ],
    "export again": ["export", "exits", "--output", "exported"],
    "not trained for it": ["calibrate", "--gin_file", "calibrate.gin", "--gin.MODEL_DIR=run"],
    "no exits": [
        *("calibrate", "--gin_file", "calibrate.gin", "--gin.MODEL_DIR=exits"),
        "--gin.MIXTURE_OR_TASK_NAME=corner_shop_embeddings",
    ],
}


@pytest.fixture(scope="module")
def folder(shop_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(shop_run, tmp_path_factory.mktemp("user") / "shop_run")
    (folder / "exits.gin").write_text(TRAIN)
    (folder / "calibrate.gin").write_text(CALIBRATE)
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Finished]:
    return dict(zip(COMMANDS, m6rec_each(folder, *COMMANDS.values()), strict=True))


def test_a_calibrated_model_serves_with_early_exit(
    folder: Path, ran: dict[str, Finished], caplog: pytest.LogCaptureFixture
) -> None:
    lines = [json.loads(line) for line in (folder / "exits" / "metrics.jsonl").open()]
    assert any("classification/loss_over_exits" in line for line in lines)
    succeeded(ran["train"])
    assert f"{TASK}: auc " in succeeded(ran["calibrate"])
    succeeded(ran["loose"])
    path = folder / "exits" / "inference" / "early_exit.json"
    values = json.loads(path.read_text())
    chosen = values["tasks"][TASK]
    # With all the quality to lose, nothing is cheaper than the first layer.
    assert (chosen["depth"], chosen["mean_exits"], chosen["num_exits"]) == (1, 1.0, 3)

    model = load_model(folder / "exits")
    own = model.settings.tasks[TASK]
    assert own.exits == ExitSettings(chosen["threshold"], 1)
    history, texts = [["city: Faro."]], [["tea", "a kettle"]]
    early = model.scorer().score_requests(history, texts)[0]
    whole = model.scorer(early_exit=False).score_requests(history, texts)[0]
    assert np.abs(early - whole).max() > 0
    calibrated = model.fingerprint()
    # An export has the same exits; it was checked on rows of the shop.
    assert "score: " in succeeded(ran["export"])
    assert "exported exists" in failed(ran["export again"])
    assert f"score {TASK}: " in succeeded(ran["phone"])
    manifest = json.loads((folder / "exported" / "export.json").read_text())
    (score,) = (one for one in manifest["programs"] if one["name"] == "score")
    assert "exit_depth" in score["inputs"]

    # Of another step it is of no use.
    path.write_text(json.dumps(values | {"step": 1}))
    model = load_model(folder / "exits")
    assert model.settings.tasks[TASK].exits is None
    assert "was made for step 1, not 3" in caplog.text
    assert model.fingerprint() != calibrated
    np.testing.assert_array_equal(model.scorer().score_requests(history, texts)[0], whole)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("not trained for it", ("run has", "ModelConfig.exit_losses = 'rising'")),
        ("no exits", ("corner_shop_embeddings", "exits for scoring")),
    ],
)
def test_what_cannot_exit_early(
    ran: dict[str, Finished], command: str, words: tuple[str, ...]
) -> None:
    message = failed(ran[command])
    for word in words:
        assert word in message
