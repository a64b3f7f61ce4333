"""Several tasks tuned in one run, taken into a bank one by one, and served from it together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.integration.commands import Finished, failed, m6rec_each, succeeded

TRAIN = """
include 'gin_configs/models/tiny.gin'
include 'gin_configs/tuning/option_adapter.gin'
include 'gin_configs/recipes/mixture.gin'

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


TRAINING = ["train", "--gin_file", "train.gin"]
MODEL = "--gin.MODEL_DIR=run"
SERVED = "--gin.BANK=served"
CTR, RETRIEVAL = "--gin.TASK=corner_shop_ctr", "--gin.TASK=corner_shop_retrieval"
ASKED = ["infer", "--requests", "requests.jsonl", MODEL]


def asked_of(name: str, *where: str) -> dict[str, list[str]]:
    """Scores, an index, and what it finds; of a bank whose scoring task has gone meanwhile."""
    gone = ["prompts", "remove", "served", "corner_shop_ctr"]
    return {
        f"{name} scores": [*ASKED, *where, CTR, "--output", f"{name}.jsonl"],
        f"{name} index": ["index", "build", MODEL, *where, RETRIEVAL, "--output", f"{name}.index"],
        **({"remove served": gone} if where else {}),
        f"{name} items": [
            *(*ASKED, *where, RETRIEVAL, "--index", f"{name}.index"),
            *("--output", f"{name}_items.jsonl"),
        ],
    }


WRONG_IDS = {
    "gives 'corner_shop_ctr' the row 2": {"corner_shop_ctr": 2, "corner_shop_retrieval": 1},
    "gives 'corner_shop_retrieval' the row None": {"corner_shop_ctr": 0},
    "did you mean 'corner_shop_retrieval'": {"corner_shop_ctr": 0, "corner_shop_retreval": 1},
}
COMMANDS = {
    "train": [*TRAINING, MODEL],
    "add": ["prompts", "add", "bank", "--from", "run"],
    "list": ["prompts", "list", "bank"],
    "json": ["prompts", "list", "bank", "--json"],
    "inspect": ["prompts", "inspect", "bank", "corner_shop_ctr"],
    "add served": ["prompts", "add", "served", "--from", "run"],
    **asked_of("run"),
    **asked_of("bank", SERVED),
    "gone": [*ASKED, SERVED, CTR, "--output", "gone.jsonl"],
    **{
        said: [*TRAINING, "--gin.MODEL_DIR=bad", f"--gin.prompt_task_ids.ids={ids}"]
        for said, ids in WRONG_IDS.items()
    },
}


@pytest.fixture(scope="module")
def folder(shop_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user") / "shop_run"
    shutil.copytree(shop_run, folder, ignore=shutil.ignore_patterns("run"))
    (folder / "train.gin").write_text(TRAIN)
    rows = [
        {
            "user": {"city": "Faro"},
            "time": "2024-06-01T10:00:00Z",
            "history": [{"item": "0002", "time": "2024-05-01"}][:number],
            "candidates": ["0001", "0003"],
        }
        for number in (0, 1)
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Finished]:
    """What each command printed."""
    return dict(zip(COMMANDS, m6rec_each(folder, *COMMANDS.values()), strict=True))


def test_from_a_run_to_a_bank(ran: dict[str, Finished]) -> None:
    succeeded(ran["train"])
    added, listing = succeeded(ran["add"]), succeeded(ran["list"])
    assert added.splitlines() == [
        "bank/corner_shop_ctr.safetensors",
        "bank/corner_shop_retrieval.safetensors",
    ]
    assert "option_adapter" in listing
    assert "prompt_adapter" in listing
    as_json = json.loads(succeeded(ran["json"]))
    assert as_json["corner_shop_retrieval"]["settings"]["retrieval_dim"] == 8
    inspected = succeeded(ran["inspect"])
    assert "validation/log_loss" in inspected


def test_commands_answer_from_a_bank(folder: Path, ran: dict[str, Finished]) -> None:
    """As from the run, whose prompts they are; tasks that are not asked for do not matter."""
    for name in ("add served", *asked_of("run"), *asked_of("bank", SERVED)):
        out = succeeded(ran[name])
        assert "2 requests: 2 answered" in out or "scores" not in name
    message = failed(ran["gone"])
    assert "has no task 'corner_shop_ctr' (did you mean 'corner_shop_retrieval'?)" in message

    def answers(name: str) -> list[dict]:
        return [json.loads(line) for line in (folder / f"{name}.jsonl").open()]

    for own, expected in zip(answers("bank"), answers("run"), strict=True):
        np.testing.assert_allclose(own["probabilities"], expected["probabilities"], rtol=1e-4)
    for own, expected in zip(answers("bank_items"), answers("run_items"), strict=True):
        assert own["item_ids"] == expected["item_ids"]
        np.testing.assert_allclose(own["scores"], expected["scores"], rtol=1e-4)


def test_what_goes_wrong_is_said(folder: Path, ran: dict[str, Finished]) -> None:
    for said in WRONG_IDS:
        assert said in failed(ran[said])
    assert not (folder / "bad" / "checkpoints").exists()
