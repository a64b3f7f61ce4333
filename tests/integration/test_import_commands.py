"""From plain sequences to a tuned retriever, with shipped gin files and no Python of the user's."""

import json
import random
from pathlib import Path

import gin
import pytest
import seqio

from m6rec_jax import cli
from m6rec_jax.configuration import macro, parse_config
from m6rec_jax.data.prepared import Prepared
from m6rec_jax.data.vocabulary_text import training_texts
from m6rec_jax.errors import ConfigError, DataError

GIN = "gin_configs/examples/next_item"
SMALL = """
include 'gin_configs/models/tiny.gin'
VOCAB_SIZE = 640
TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 32}
TRAIN_STEPS = 2
WARMUP_STEPS = 1
BATCH_SIZE = 8
BatchIterator.num_shards = 1
Logging.tensorboard = False
"""


@pytest.fixture(autouse=True)
def no_gin():
    yield
    gin.clear_config()


def test_sequences_to_retrieval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "cache"))
    words = ["soap", "brush", "comb", "towel", "cream", "oil", "salt", "wax", "mask", "foam"]
    draw = random.Random(0)
    folder = tmp_path / "bath-room"
    folder.mkdir()
    (folder / "items.tsv").write_text("".join(f"{i}\t{word}\n" for i, word in enumerate(words)))
    lines = [" ".join(map(str, [f"u{u}", *draw.sample(range(10), 5)])) for u in range(24)]
    (folder / "sequences.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "small.gin").write_text(SMALL)

    def m6rec(*arguments: str) -> None:
        gin.clear_config()  # as a new process would
        assert cli.main(arguments) == 0, capsys.readouterr().err

    data = "--gin.DATA=bath-room"
    m6rec("data", "import", "sequences", "bath-room", "imported")
    m6rec("data", "check", "imported")
    m6rec("data", "prepare", "imported", "--gin_file", f"{GIN}_prepare.gin", data)
    size = "--gin.train_vocabulary.size=300"
    m6rec("vocab", "train", "--gin_file", f"{GIN}_prepare.gin", data, size)
    small = ("--gin_file", "small.gin", data)
    m6rec(
        *("train", "--gin_file", f"{GIN}_retrieval.gin", *small, "--gin.MODEL_DIR=tuned"),
        # Evaluated once, below.
        "--gin.Validation.evaluate=None",
        "--gin.Validation.best_metric=None",
        "--gin.EVAL_PERIOD=None",
    )
    capsys.readouterr()
    lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 64, 'targets': 32}"
    evaluated = ("eval", "--gin_file", f"{GIN}_retrieval_eval.gin", data, lengths)
    m6rec(*evaluated, "--gin.MODEL_DIR=tuned", "--gin.BATCH_SIZE=8")
    out = capsys.readouterr().out
    metrics = json.loads(out[out.index("{") :])
    assert 0.0 <= metrics["ndcg@10"] <= 1.0
    assert metrics["num_examples"] == 24  # every user's last item
    # A model reads what items are, and never a place in a sequence as a time. Profile and context
    # are empty.
    prepared = Prepared.open(tmp_path / "cache", "bath-room", "leave_one_out")
    assert set(training_texts(prepared, ("next_items",))) == {"", *words}


def test_pretraining_reads_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path))
    parse_config([f"{GIN}_pretrain.gin"], ["DATA=bath-room", "MODEL_DIR=runs/backbone"])
    assert macro("MIXTURE_OR_TASK_NAME") == "bath_room_leave_one_out_pretrain"
    source = seqio.TaskRegistry.get("bath_room_leave_one_out_generation").source
    with pytest.raises(DataError, match="m6rec data prepare bath-room --gin"):
        source.num_input_examples("train")


def test_kinds_of_tasks_are_named() -> None:
    from tasks.own_data import own_task

    assert own_task("bath.room", "ctr") == "bath_room_ctr"
    assert own_task("bath.room", "pretrain", split="leave_one_out").endswith("_out_pretrain")
    with pytest.raises(ConfigError, match=r"'retreival' is no kind .*did you mean 'retrieval'"):
        own_task("bath.room", "retreival")
