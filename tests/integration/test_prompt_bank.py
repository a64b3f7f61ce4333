"""Several tasks tuned in one run, taken into a bank one by one, and served from it together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from m6rec_jax.bank.loading import load_bank
from m6rec_jax.engine.model_folder import load_model
from tests.integration.commands import failed, m6rec, m6rec_each, succeeded

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
Start.options = {'corner_shop_ctr': ('coffee', 'the')}
Start.prompts = 'matching'
VOCAB_SIZE = 640
TASK_FEATURE_LENGTHS = {'inputs': 96, 'targets': 96}
TRAIN_STEPS = 2
WARMUP_STEPS = 1
BATCH_SIZE = 8
EVAL_PERIOD = 2
BatchIterator.num_shards = 1
Logging.tensorboard = False
"""


@pytest.fixture(scope="module")
def trained(shop_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user") / "shop_run"
    shutil.copytree(shop_run, folder, ignore=shutil.ignore_patterns("run"))
    (folder / "train.gin").write_text(TRAIN)
    succeeded(m6rec(folder, "train", "--gin_file", "train.gin", "--gin.MODEL_DIR=run"))
    return folder


def test_from_a_run_to_a_served_bank(trained: Path) -> None:
    added, listing, as_json, inspected = map(
        succeeded,
        m6rec_each(
            trained,
            ["prompts", "add", "bank", "--from", "run"],
            ["prompts", "list", "bank"],
            ["prompts", "list", "bank", "--json"],
            ["prompts", "inspect", "bank", "corner_shop_ctr"],
        ),
    )
    assert added.splitlines() == ["bank/corner_shop_ctr", "bank/corner_shop_retrieval"]
    assert "option_adapter" in listing
    assert "prompt_adapter" in listing
    assert json.loads(as_json)["corner_shop_retrieval"]["settings"]["retrieval_dim"] == 8
    assert "validation/log_loss" in inspected
    assert "(intact)" in inspected

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
    ctr, retrieval = "--gin.TASK=corner_shop_ctr", "--gin.TASK=corner_shop_retrieval"
    asked = ["infer", "--requests", "requests.jsonl", "--gin.MODEL_DIR=run"]

    def commands(name: str, *where: str) -> list[list[str]]:
        model = ["--gin.MODEL_DIR=run", *where]
        return [
            [*asked, *where, ctr, "--output", f"{name}.jsonl"],
            ["index", "build", *model, retrieval, "--output", f"{name}.index"],
            *([["prompts", "remove", "served", "corner_shop_ctr"]] if where else []),
            [
                *(*asked, *where, retrieval, "--index", f"{name}.index"),
                *("--output", f"{name}_items.jsonl"),
            ],
        ]

    *ran, gone = m6rec_each(
        trained,
        ["prompts", "add", "served", "--from", "run"],
        *commands("run_answers"),
        *commands("bank_answers", "--gin.BANK=served"),
        [*asked, "--gin.BANK=served", ctr, "--output", "gone.jsonl"],
    )
    out = [succeeded(run) for run in ran]
    assert "2 requests: 2 answered" in out[1]
    assert "2 requests: 2 answered" in out[4]
    assert "has no task 'corner_shop_ctr' (did you mean 'corner_shop_retrieval'?)" in failed(gone)

    def answers(name: str) -> list[dict]:
        return [json.loads(line) for line in (trained / f"{name}.jsonl").open()]

    for own, expected in zip(answers("bank_answers"), answers("run_answers"), strict=True):
        np.testing.assert_allclose(own["probabilities"], expected["probabilities"], rtol=1e-4)
    both = zip(answers("bank_answers_items"), answers("run_answers_items"), strict=True)
    for own, expected in both:
        assert own["item_ids"] == expected["item_ids"]
        np.testing.assert_allclose(own["scores"], expected["scores"], rtol=1e-4)


def test_what_goes_wrong_is_said(trained: Path) -> None:
    add = ["prompts", "add", "other", "--from", "run"]
    remove = ["prompts", "remove", "other", "corner_shop_ctr"]
    first, again, removed, listing, missing = m6rec_each(
        trained, add, add, remove, ["prompts", "list", "other"], remove
    )
    succeeded(first)
    assert "already" in failed(again)
    succeeded(removed)
    assert "corner_shop_ctr" not in succeeded(listing)
    assert "its tasks: corner_shop_retrieval" in failed(missing)
    manifest = trained / "other" / "corner_shop_retrieval" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-200])
    rows = {
        "row 2 of the prompt bank, but": {"corner_shop_ctr": 2, "corner_shop_retrieval": 1},
        "no row of the prompt bank for 'corner_shop_retrieval'": {"corner_shop_ctr": 0},
        "did you mean 'corner_shop_retrieval'": {"corner_shop_ctr": 0, "corner_shop_retreval": 1},
    }
    train = ["train", "--gin_file", "train.gin", "--gin.MODEL_DIR=bad"]
    broken, nowhere, *trains = m6rec_each(
        trained,
        ["prompts", "inspect", "other", "corner_shop_retrieval"],
        ["prompts", "list", "nowhere"],
        *([*train, f"--gin.prompt_task_ids.ids={ids}"] for ids in rows.values()),
    )
    assert "manifest.json is damaged" in failed(broken)
    assert "no bank at" in failed(nowhere)
    for said, run in zip(rows, trains, strict=True):
        assert said in failed(run)
    assert not (trained / "bad" / "checkpoints").exists()
