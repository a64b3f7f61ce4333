"""Several tasks tuned in one run, taken into a bank one by one, and served from it together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.bank.loading import load_bank
from m6rec_jax.engine.model_folder import load_model
from tests.integration.test_commands import PREPARE, SHOP, failed, m6rec, succeeded

TASK = """
import seqio
from m6rec_jax.pipeline.registration import register_recommendation_tasks

register_recommendation_tasks("corner_shop", dataset="corner-shop")
seqio.MixtureRegistry.add(
    "corner_shop_tasks", ["corner_shop_ctr", "corner_shop_retrieval"], default_rate=1.0
)
"""

TRAIN = """
include 'gin_configs/models/tiny.gin'
include 'gin_configs/tuning/option_adapter.gin'
include 'gin_configs/runs/finetune_mixture.gin'

import tasks.corner_shop

MIXTURE_OR_TASK_NAME = 'corner_shop_tasks'
NUM_OPTIONS = 2
NUM_PROMPTS = 4
RETRIEVAL_DIM = 8
PromptConfig.num_tasks = 2
PromptConfig.task_num_options = (2, 0)
PromptConfig.task_num_prompts = (4, 3)
prompt_task_ids.ids = {'corner_shop_ctr': 0, 'corner_shop_retrieval': 1}
train.initial_options = {'corner_shop_ctr': ('city', 'years')}
train.initial_prompts = 'matching'
VOCAB_SIZE = 640
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 96}
TRAIN_STEPS = 2
WARMUP_STEPS = 1
BATCH_SIZE = 8
EVAL_PERIOD = 2
BatchIterator.num_shards = 1
train.tensorboard = False
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    shutil.copytree(SHOP, folder / "shop")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "corner_shop.py").write_text(TASK)
    (folder / "prepare.gin").write_text(PREPARE)
    (folder / "train.gin").write_text(TRAIN)
    succeeded(m6rec(folder, "data", "prepare", "shop", "--gin_file", "prepare.gin"))
    succeeded(m6rec(folder, "vocab", "train", "--gin_file", "prepare.gin"))
    succeeded(m6rec(folder, "train", "--gin_file", "train.gin", "--gin.MODEL_DIR=run"))
    return folder


def test_from_a_run_to_a_served_bank(trained: Path) -> None:
    out = succeeded(m6rec(trained, "prompts", "add", "bank", "--from", "run"))
    assert out.splitlines() == ["bank/corner_shop_ctr", "bank/corner_shop_retrieval"]
    table = succeeded(m6rec(trained, "prompts", "list", "bank"))
    assert "option_adapter" in table
    assert "prompt_adapter" in table
    listed = json.loads(succeeded(m6rec(trained, "prompts", "list", "bank", "--json")))
    assert listed["corner_shop_retrieval"]["settings"]["retrieval_dim"] == 8
    report = succeeded(m6rec(trained, "prompts", "inspect", "bank", "corner_shop_ctr"))
    assert "validation/log_loss" in report
    assert "(intact)" in report

    bank, loaded = load_bank(trained / "bank", trained / "run"), load_model(trained / "run")
    template = bank.template("corner_shop_ctr")
    assert template is not None
    history, candidates = [["ann, 30 years old"]] * 2, [["Bread", "Tea, hot"]] * 2
    both = ["corner_shop_ctr"] * 2
    np.testing.assert_allclose(
        bank.scorer().score_requests(history, candidates, both),
        loaded.scorer("corner_shop_ctr").score_requests(history, candidates),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        bank.retriever("corner_shop_retrieval").embed_users(history),
        loaded.retriever("corner_shop_retrieval").embed_users(history),
        atol=1e-4,
    )


def test_commands_answer_from_a_bank(trained: Path) -> None:
    """As from the run, whose prompts they are; tasks that are not asked for do not matter."""
    succeeded(m6rec(trained, "prompts", "add", "served", "--from", "run"))
    rows = [
        {
            "user": {"city": "Faro"},
            "time": "2024-06-01T10:00:00Z",
            "behaviours": [{"item": "0002", "time": "2024-05-01"}][:number],
            "candidates": ["0001", "0003"],
        }
        for number in (0, 1)
    ]
    (trained / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_run, of_bank = ("--gin.MODEL_DIR=run",), ("--gin.MODEL_DIR=run", "--gin.BANK=served")
    found = {}
    for where, arguments in (("of_run", of_run), ("of_bank", of_bank)):
        asked = ("infer", *arguments, "--requests", "requests.jsonl")
        output, index = f"{where}.jsonl", f"{where}.index"
        out = succeeded(m6rec(trained, *asked, "--gin.TASK=corner_shop_ctr", "--output", output))
        assert "2 requests: 2 answered" in out
        task = "--gin.TASK=corner_shop_retrieval"
        succeeded(m6rec(trained, "index", "build", *arguments, task, "--output", index))
        if where == "of_bank":
            succeeded(m6rec(trained, "prompts", "remove", "served", "corner_shop_ctr"))
        items = (task, "--index", index, "--output", f"{where}_items.jsonl")
        succeeded(m6rec(trained, *asked, *items))
        files = (trained / output, trained / f"{where}_items.jsonl")
        scored, retrieved = ([json.loads(line) for line in file.open()] for file in files)
        found[where] = (
            [row["probabilities"] for row in scored],
            [row["item_ids"] for row in retrieved],
            [row["scores"] for row in retrieved],
        )
    assert found["of_bank"][1] == found["of_run"][1]
    for part in (0, 2):
        for own, expected in zip(found["of_bank"][part], found["of_run"][part], strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-4)
    gone = (*of_bank, "--gin.TASK=corner_shop_ctr", "--requests", "requests.jsonl")
    said = failed(m6rec(trained, "infer", *gone, "--output", "gone.jsonl"))
    assert "knows no task 'corner_shop_ctr': corner_shop_retrieval" in said


def test_what_goes_wrong_is_said(trained: Path) -> None:
    succeeded(m6rec(trained, "prompts", "add", "other", "--from", "run"))
    again = failed(m6rec(trained, "prompts", "add", "other", "--from", "run"))
    assert "already" in again
    succeeded(m6rec(trained, "prompts", "remove", "other", "corner_shop_ctr"))
    assert "corner_shop_ctr" not in succeeded(m6rec(trained, "prompts", "list", "other"))
    missing = failed(m6rec(trained, "prompts", "remove", "other", "corner_shop_ctr"))
    assert "its tasks: corner_shop_retrieval" in missing
    manifest = trained / "other" / "corner_shop_retrieval" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-200])
    broken = failed(m6rec(trained, "prompts", "inspect", "other", "corner_shop_retrieval"))
    assert "manifest.json is damaged" in broken
    assert "no bank at" in failed(m6rec(trained, "prompts", "list", "nowhere"))
    again = ("train", "--gin_file", "train.gin", "--gin.MODEL_DIR=bad")
    for ids, said in (
        ({"corner_shop_ctr": 2, "corner_shop_retrieval": 1}, "row 2 of the prompt bank, but"),
        ({"corner_shop_ctr": 0}, "no row of the prompt bank for 'corner_shop_retrieval'"),
        ({"corner_shop_ctr": 0, "corner_shop_retreval": 1}, "did you mean 'corner_shop_retrieval'"),
    ):
        assert said in failed(m6rec(trained, *again, f"--gin.prompt_task_ids.ids={ids}"))
    assert not (trained / "bad" / "checkpoints").exists()
