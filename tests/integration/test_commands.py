"""Whole commands on a user's own shop: from CSV files to predictions, and how they fail."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import gin
import pyarrow.parquet as pq
import pytest

from m6rec_jax import cli
from m6rec_jax.checkpoints.checkpoint import open_checkpoint
from m6rec_jax.engine.model_folder import load_model
from m6rec_jax.io.locks import locked_folder
from m6rec_jax.training.metric_log import read_metrics
from tests.integration.commands import (
    ONE,
    SHOP,
    Finished,
    failed,
    m6rec,
    m6rec_each,
    started,
    succeeded,
)

EVAL = """
include 'gin_configs/commands/eval.gin'

import tasks.corner_shop

MIXTURE_OR_TASK_NAME = 'corner_shop_ctr'
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 96}
BATCH_SIZE = 4
"""
RUN = "--gin.MODEL_DIR=run"
COMMANDS = {
    "check": ["data", "check", "shop"],
    "doctor": ["doctor"],
    "params": ["params", "--gin_file", "train.gin", "--gin.MODEL_DIR=x"],
    "eval": ["eval", "--gin_file", "eval.gin", RUN],
    "infer": ["infer", "--gin_file", "eval.gin", RUN],
    "resumed": ["train", "--gin_file", "train.gin", RUN, "--gin.TRAIN_STEPS=5"],
    "misspelt": ["train", "--gin_file", "train.gin", RUN, "--gin.train.train_step=5"],
    "missing": ["train", "--gin_file", "trian.gin"],
    "vocabulary": ["vocab", "train", "--gin_file", "prepare.gin"],
    "other vocabulary": [
        *("vocab", "train", "--gin_file", "prepare.gin", "--gin.train_vocabulary.size=380")
    ],
    "show": ["data", "show", "corner-shop", "--rows", "1"],
    "clean": ["data", "check", "torn", "--clean", "mended"],
    "other size": [
        *("train", "--gin_file", "train.gin", "--gin.MODEL_DIR=other"),
        *("--gin.INITIAL_CHECKPOINT_PATH=run", "--gin.ModelConfig.embed_dim=48"),
    ],
}


@pytest.fixture(scope="module")
def folder(shop_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's."""
    folder = shutil.copytree(shop_run, tmp_path_factory.mktemp("user") / "shop_run")
    (folder / "eval.gin").write_text(EVAL)
    shutil.copytree(SHOP, folder / "torn")
    events = folder / "torn" / "events.csv"
    events.write_bytes(events.read_bytes().replace(b"ben,0004", b"ben,9999"))
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Finished]:
    """What each command printed."""
    return dict(zip(COMMANDS, m6rec_each(folder, *COMMANDS.values()), strict=True))


def test_commands_say_nothing_that_is_not_about_the_users_work(shop_run: Path) -> None:
    of_others = re.compile(r"absl|oneDNN|cuda|grpc|tensorflow|^[IWE]\d{4} ", re.I | re.M)
    at_start = re.compile(r"^(WARNING: All log messages|I\d{4} .*cudart_stub).*\n", re.M)
    for name in ("prepare", "train"):
        text = at_start.sub("", (shop_run / f"{name}.stderr").read_text())
        assert not of_others.search(text), text
    assert "validation on " in (shop_run / "train.stderr").read_text()


def test_what_is_there_is_reported(ran: dict[str, Finished]) -> None:
    out = succeeded(ran["check"])
    assert "20 events" in out
    assert "No errors." in out
    assert "devices" in succeeded(ran["doctor"])
    out = succeeded(ran["params"])
    assert "soft prompts" in out
    assert "of the backbone" in out


def test_rows_are_shown(ran: dict[str, Finished]) -> None:
    out = succeeded(ran["show"])
    assert re.search(r"\ngroups, row 0: user_id [a-e]\w+, .* time 17\d{8}", out)
    assert re.search(r"\n  history: \d+ texts, \d+ tokens\n +\d+  ", out)
    assert re.search(r"\ngroups: candidates has \d+ tokens in the middle", out)


def test_what_was_set_aside_is_no_error_any_more(folder: Path, ran: dict[str, Finished]) -> None:
    out = succeeded(ran["clean"])
    assert "The data set without them: mended" in out
    assert "--clean" not in out + ran["clean"].stderr


def test_a_vocabulary_is_not_overwritten_by_another_one(ran: dict[str, Finished]) -> None:
    succeeded(ran["vocabulary"])  # the same again
    message = failed(ran["other vocabulary"])
    assert "vocabulary.model holds another vocabulary" in message


def test_eval_and_infer(folder: Path, ran: dict[str, Finished]) -> None:
    out = succeeded(ran["eval"])
    metrics = json.loads(out[out.index("{") :])
    assert 0.0 <= metrics["auc"] <= 1.0
    assert metrics["log_loss"] > 0.0
    assert {"popularity/auc", "item_mean/log_loss", "user_and_item_mean/auc"} <= metrics.keys()
    succeeded(ran["infer"])
    (path,) = (folder / "run" / "predictions").glob("*.parquet")
    table = pq.read_table(path)
    assert {"user_id", "item_id", "label", "probability"} <= set(table.column_names)
    assert set(table.column("user_id").to_pylist()) <= {"ana", "ben", "chi", "dee", "eli"}
    assert all(0.0 <= p <= 1.0 for p in table.column("probability").to_pylist())


def test_a_model_folder_is_loaded_by_itself(shop_run: Path, tmp_path: Path) -> None:
    """Moved to another folder, without the data it was trained on."""
    shutil.copytree(shop_run / "run", tmp_path / "moved")
    loaded = load_model(tmp_path / "moved")
    assert loaded.template() is not None
    assert loaded.settings.tasks["corner_shop_ctr"].positive_classes == (1,)
    manifest = open_checkpoint(tmp_path / "moved").manifest
    assert manifest.vocabulary_fingerprint == loaded.vocabulary.fingerprint


def test_same_command_resumes(folder: Path, ran: dict[str, Finished]) -> None:
    succeeded(ran["resumed"])
    assert "(saved -> now): TRAIN_STEPS: 3 -> 5\n" in ran["resumed"].stderr
    lines = read_metrics(folder / "run")
    steps = [line["step"] for line in lines]
    assert max(steps) == 5
    assert steps == sorted(steps)
    assert any(line.get("validation/rows", 0) > 0 for line in lines)


def test_a_second_run_stays_out_of_a_folder(folder: Path) -> None:
    with locked_folder(folder / "run", "here"):
        message = failed(m6rec(folder, "train", "--gin_file", "train.gin", RUN))
    assert "another process is training in run" in message


# Its second batch cannot be read.
TORN = f"""
import itertools
from m6rec_jax.pipeline import task_rows
read, count = task_rows.next_rows, itertools.count()
def next_rows(iterator, end=None):
    if next(count):
        raise RuntimeError("torn in two")
    return read(iterator, end)
task_rows.next_rows = next_rows
{ONE}
"""


def test_commands_end_soon_after_an_error_while_data_are_read(folder: Path) -> None:
    """To destroy a tf.data pipeline whose threads wait for Python may take forever."""
    commands = (
        ["train", "--gin_file", "train.gin", "--gin.MODEL_DIR=torn_in_training"],
        ["eval", "--gin_file", "eval.gin", RUN, "--gin.BATCH_SIZE=2"],
    )
    with contextlib.ExitStack() as ended:
        running = [started(folder, TORN, *command) for command in commands]
        for run in running:
            ended.enter_context(run)
            ended.callback(run.kill)
        for run in running:
            assert run.stderr is not None
            assert any("RuntimeError: torn in two" in line for line in run.stderr)
            assert run.wait(timeout=10) == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("misspelt", ("train_step", "train_steps")),  # the closest name that exists
        ("missing", ("trian.gin",)),
        ("other size", ("32", "48")),
    ],
)
def test_wrong_settings(ran: dict[str, Finished], command: str, words: tuple[str, ...]) -> None:
    message = failed(ran[command])
    for word in words:
        assert word in message


# ---- bad data, in the process of the tests: nothing of the user's is imported


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the shop in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "cache"))
    yield shutil.copytree(SHOP, tmp_path / "shop")
    gin.clear_config()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    gin.clear_config()
    assert cli.main(["data", *arguments]) == cli.EXIT_USER_ERROR
    return capsys.readouterr().err


def test_an_empty_split(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shop / "dataset.json"
    content = path.read_text()
    assert '"train": 0.6' in content
    path.write_text(content.replace('"train": 0.6', '"train": 0.0'))
    message = refused(capsys, "prepare", "shop")
    assert "per_user_temporal" in message
    assert "configurable" not in message  # whose settings it was about helps nobody


def test_what_cannot_be_set_aside_is_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, old, new in (("events", b"ben,0004", b"ben,9999"), ("users", b",city", b",town")):
        path = shop / f"{file}.csv"
        path.write_bytes(path.read_bytes().replace(old, new))
    gin.clear_config()
    command = ["data", "check", "shop", "--clean", "mended"]
    assert cli.main(command) == cli.EXIT_USER_ERROR
    said = capsys.readouterr()
    assert "users.csv has no column 'city'" in said.out
    assert "--clean" not in said.err


@pytest.mark.parametrize("action", ["check", "prepare"])
def test_a_folder_that_nothing_describes(
    shop: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    (shop / "dataset.json").unlink()
    message = refused(capsys, action, "shop")
    for name in ("dataset.json", "corpus.json", "dialogues.json", "reviews.json"):
        assert name in message
    assert "--clean" not in message
    assert "nothing has no dataset.json" in refused(capsys, action, "nothing")
