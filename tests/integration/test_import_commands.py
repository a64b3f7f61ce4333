"""From plain sequences to a tuned retriever, with shipped gin files and no Python of the user's."""

import json
import random
import re
from pathlib import Path

import gin
import pytest

from m6rec_jax import cli
from m6rec_jax.configuration import macro, parse_config
from m6rec_jax.data.rendering.vocabulary_text import training_texts
from m6rec_jax.data.store.prepared import Prepared
from m6rec_jax.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("no_gin")

SMALL = """
TRAIN_STEPS = 2
WARMUP_STEPS = 1
BATCH_SIZE = 8
BatchIterator.num_shards = 1
Logging.tensorboard = False
"""


def test_sequences_to_retrieval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "cache"))
    words = ["soap", "brush", "comb", "towel", "cream", "oil", "salt", "wax", "mask", "foam"]
    draw = random.Random(0)
    folder = tmp_path / "bath-room"
    folder.mkdir()
    lines = ["item_id\ttitle", *(f"{i}\t{word}" for i, word in enumerate(words))]
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")
    lines = [" ".join(map(str, [f"u{u}", *draw.sample(range(10), 8)])) for u in range(24)]
    (folder / "sequences.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "small.gin").write_text(SMALL)

    def m6rec(*arguments: str) -> None:
        gin.clear_config()  # as a new process would
        assert cli.main(arguments) == 0, capsys.readouterr().err

    m6rec("data", "import", "sequences", "bath-room", "imported")
    m6rec("data", "check", "imported")
    m6rec("data", "prepare", "imported")
    assert "the latest 16 behaviours" in capsys.readouterr().err  # of 8 events on average
    m6rec("data", "prepare", "imported", "--gin.prepare.split=leave_one_out")
    vocabulary = "--gin.train_on_prepared.dataset=bath-room"
    m6rec("vocab", "train", vocabulary, "--gin.train_vocabulary.size=300")
    out, told = capsys.readouterr()
    assert re.search(r"rows of 32 \+ \d+ tokens hold nine histories in ten", out)
    assert "reading text: 100%" in told
    m6rec(
        *("train", "--recipe", "retrieval", "--model", "tiny", "--tuning", "option_adapter"),
        *("--data", "bath-room", "--gin_file", "small.gin", "--gin.MODEL_DIR=my runs/tuned"),
    )
    told = capsys.readouterr().err
    assert re.search(r"[\r\n]step 2, validation: .*ndcg@10 0\.\d+.*, the best so far\n", told)
    # The run knows its task, and how long its rows are.
    m6rec("eval", "--gin.MODEL_DIR=my runs/tuned", "--gin.Evaluator.limit=20")
    out = capsys.readouterr().out
    metrics = json.loads(out[out.index("{") :])
    assert 0.0 <= metrics["ndcg@10"] <= 1.0
    assert metrics["num_examples"] == 20  # of 24 users
    assert metrics["share_with_dropped_behaviours"] == metrics["share_of_cut_texts"] == 0.0
    # Once it has learnt weights, it is evaluated with them.
    m6rec("calibrate", "--gin.MODEL_DIR=my runs/tuned")
    assert "ndcg@10" in capsys.readouterr().out
    m6rec("eval", "--gin.MODEL_DIR=my runs/tuned", "--gin.Evaluator.limit=20")
    out = capsys.readouterr().out
    hybrid = json.loads(out[out.index("{") :])
    assert hybrid["num_examples"] == 20
    assert hybrid["two_towers/ndcg@10"] == metrics["ndcg@10"]
    # A model reads what items are, and never a place in a sequence as a time. Profile and context
    # are empty.
    prepared = Prepared.open(tmp_path / "cache", "bath-room", "leave_one_out")
    assert set(training_texts(prepared, ("next_items",))) == {"", *words}


def test_what_is_not_prepared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path))
    model = "gin_configs/models/tiny.gin"
    tuning = "gin_configs/tuning/option_adapter.gin"
    retrieval, pretrain = (f"gin_configs/data/any/{name}.gin" for name in ("retrieval", "pretrain"))
    parse_config([model, tuning, retrieval], ["DATASET=bath-room", "MODEL_DIR=runs/a"])
    assert macro("MIXTURE_OR_TASK_NAME") == "bath_room_leave_one_out_retrieval"
    parse_config([model, pretrain], ["DATASET=bath-room", "MODEL_DIR=runs/b"])
    for name in ("MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS"):
        with pytest.raises(DataError, match="m6rec data prepare bath-room"):
            macro(name)


def test_kinds_of_tasks_are_named() -> None:
    from tasks.own_data import own_task

    assert own_task("bath.tub", "ctr") == "bath_tub_ctr"
    with pytest.raises(ConfigError, match=r"tasks of 'bath tub', .* as those of bath\.tub"):
        own_task("bath tub", "ctr")
    assert own_task("bath.tub", "pretrain", split="leave_one_out").endswith("_out_pretrain")
    with pytest.raises(ConfigError, match=r"'retreival' is no kind .*did you mean 'retrieval'"):
        own_task("bath.tub", "retreival")
