"""A file of requests with answers, from nothing but that file to a model that answers it."""

import json
from pathlib import Path

from tests.integration.commands import m6rec_each, succeeded

TRAIN = [
    *("train", "--recipe", "scoring", "--model", "tiny", "--tuning", "option_adapter"),
    *("--data", "films", "--gin.DATA_SPLIT=by_column", "--gin.VOCABULARY_SPLIT=by_column"),
    "--gin.MODEL_DIR=run",
    *("--gin.TRAINABLE=all", "--gin.TRAIN_STEPS=3", "--gin.WARMUP_STEPS=1", "--gin.BATCH_SIZE=4"),
    *("--gin.EVAL_PERIOD=3", "--gin.BatchIterator.num_shards=1", "--gin.Logging.tensorboard=False"),
]


def test_from_a_file_to_answers(tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {
                "user": f"Likes {('cats', 'dogs')[number % 2]}, and the number {number}.",
                "candidates": ["A film about cats"],
                "answers": [number % 2 == 0],
            }
        )
        for number in range(120)
    ]
    lines[2], lines[4] = '{"user": ', json.dumps({"user": "Ana", "candidates": ["A film"]})
    (tmp_path / "films.jsonl").write_text("\n".join(lines) + "\n")
    imported, prepared, vocabulary, trained, evaluated, inferred = m6rec_each(
        tmp_path,
        ["data", "import", "requests", "films.jsonl", "films"],
        ["data", "prepare", "films", "--gin.prepare.split=by_column"],
        [
            *("vocab", "train", "--gin.train_on_prepared.dataset=films"),
            *("--gin.train_on_prepared.split=by_column", "--gin.train_vocabulary.size=300"),
        ],
        TRAIN,
        ["eval", "--gin.MODEL_DIR=run"],
        ["infer", "--gin.MODEL_DIR=run", "--requests", "films.jsonl", "--output", "scores.jsonl"],
    )
    told = succeeded(imported)
    assert "118 requests" in told
    assert "left out, all of them in films/rejected.jsonl" in told
    assert "line 3: not JSON" in told
    assert succeeded(prepared).strip().endswith("cache/films.by_column")
    succeeded(vocabulary)
    succeeded(trained)
    out = succeeded(evaluated)
    metrics = json.loads(out[out.index("{") :])
    assert {"auc", "log_loss", "item_mean/auc", "user_mean/auc"} <= set(metrics)
    assert succeeded(inferred).startswith("120 requests: 119 answered (scores.jsonl), 1 rejected")
    answers = [json.loads(line) for line in (tmp_path / "scores.jsonl").open()]
    assert all(0 < row["probabilities"][0] < 1 for row in answers)
