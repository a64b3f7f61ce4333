"""Whole commands, day by day: new events, a run that goes on with them, and whether it lost."""

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.commands import Finished, failed, m6rec_each, succeeded
from tests.integration.conftest import TRAIN
from tests.integration.test_commands import EVAL

EVENTS = """customer,sku,bought_at
ana,0002,2024-04-01T08:12:00Z
fay,0003,2024-04-01T09:30:00Z
ben,0099,2024-04-02T10:00:00Z
fay,0099,2024-04-02T11:00:00Z
"""
UPDATE = f"""{TRAIN}
include 'gin_configs/extras/update.gin'
INITIAL_CHECKPOINT_PATH = 'run'
TRAIN_STEPS = 2
"""
COMMANDS = {
    "nothing": ["data", "update", "shop"],
    "updated": ["data", "update", "day", "--gin_file", "prepare.gin"],
    "again": ["data", "update", "day", "--gin_file", "prepare.gin"],
    "train": ["train", "--gin_file", "update.gin", "--gin.MODEL_DIR=today"],
    "next": [
        *("train", "--gin_file", "update.gin", "--gin.MODEL_DIR=tomorrow"),
        "--gin.UPDATE='update_2'",
    ],
    "eval": [
        *("eval", "--gin_file", "eval.gin", "--gin.MODEL_DIR=today", "--against", "run"),
    ],
    "eval of the day": [
        *("eval", "--gin_file", "eval.gin", "--gin.MODEL_DIR=run", "--gin.SPLIT='update_1'"),
    ],
}


@pytest.fixture(scope="module")
def folder(shop_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's, where the shop's folder has got new files."""
    folder = shutil.copytree(shop_run, tmp_path_factory.mktemp("user") / "shop_run")
    (folder / "eval.gin").write_text(EVAL)
    (folder / "update.gin").write_text(UPDATE)
    shop = shutil.copytree(folder / "shop", folder / "day")
    spec = json.loads((shop / "dataset.json").read_text())
    for table in ("users", "items", "events"):
        spec[table]["file"] = f"{table}*.csv"
    (shop / "dataset.json").write_text(json.dumps(spec))
    (shop / "events_2.csv").write_text(EVENTS)
    (shop / "users_2.csv").write_text("customer,age,city,interests\nfay,40,Oslo,tea\n")
    (shop / "items_2.csv").write_text(
        "sku,name,price,kinds,in_stock\n0099,Teapot of glass,19.5,tea,true\n"
    )
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Finished]:
    """What each command printed."""
    return dict(zip(COMMANDS, m6rec_each(folder, *COMMANDS.values()), strict=True))


def test_a_day_is_added_once(folder: Path, ran: dict[str, Finished]) -> None:
    assert succeeded(ran["nothing"]) == "nothing is new\n"
    assert succeeded(ran["updated"]) == succeeded(ran["again"]) == "update_1\n"
    assert "all files of events are prepared" in ran["again"].stderr
    path = folder / "cache" / "corner-shop.per_user_temporal" / "prepare.json"
    assert json.loads(path.read_text())["counts"]["events"]["update_1"] == 4


def test_a_run_goes_on_with_it(folder: Path, ran: dict[str, Finished]) -> None:
    succeeded(ran["train"])
    steps = [json.loads(line)["step"] for line in (folder / "today/metrics.jsonl").open()]
    assert max(steps) == 2
    message = failed(ran["next"])
    assert "has no split 'update_2', only test, train, update_1, validation" in message


def test_it_is_compared_with_the_run_before(folder: Path, ran: dict[str, Finished]) -> None:
    evaluated = ran["eval"]
    assert evaluated.returncode in (0, 1), evaluated.stderr
    metrics = json.loads(evaluated.stdout[evaluated.stdout.index("{") :])
    gain = metrics["against/log_loss"] - metrics["log_loss"]
    assert metrics["gain"] == pytest.approx(gain, abs=1e-6)
    lost = metrics["gain"] < -2 * metrics["gain_error"]
    assert evaluated.returncode == int(lost)
    words = ("today is worse than run", "today is better than run", "today and run differ by no")
    assert sum(word in evaluated.stderr for word in words) == 1
    assert "log likelihood of corner_shop_ctr, test" in evaluated.stderr
    # The run before on what came after it.
    out = succeeded(ran["eval of the day"])
    assert json.loads(out[out.index("{") :])["num_examples"] >= 4
