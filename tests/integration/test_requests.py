"""Requests as a user sends them: an index, results, a process that is killed half-way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.commands import ROOT, m6rec_each, python, succeeded

# Serving must not pay for it: seconds and gigabytes.
WITHOUT_TENSORFLOW = """
import sys
from m6rec_jax.cli import main
status = main(sys.argv[1:])
heavy = {"tensorflow", "seqio", "clu", "tensorflow_datasets"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else status)
"""
SKUS = [f"000{n}" for n in range(1, 8)]
NUMBER = 400
MALFORMED = {
    5: b'{"id": 5, "time": ',
    77: b'{"id": 77, "user": {"city": "K\xf6ln"}}',
    150: b'{"id": 150, "time": NaN, "history": [], "candidates": []}',
    151: b'{"id": 151, "time": 1717200000, "history": 7, "candidates": ["0001"]}',
    399: b'{"id": 399, "time": 1717200000, "history": [], "candidates": ["9999"]}',
}


def request(number: int) -> dict[str, Any]:
    """The odd ones come from customers that the shop knows, the others from new ones."""
    user: dict[str, Any] = {"city": "Faro"}
    if number % 2:
        user = {"id": ["ana", "ben", "chi", "dee"][number % 4], "age": 30}
    return {
        "id": number,
        "user": user,
        "time": "2024-06-01T10:00:00Z",
        "history": [
            {"item": SKUS[(number + n) % 7], "time": f"2024-05-{n + 1:02d}"}
            for n in range(number % 5)
        ],
        "candidates": [*SKUS[number % 7 :], {"name": "Moka pot", "kinds": ["coffee"], "price": 25}],
    }


@pytest.fixture(scope="module")
def trained(shop_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of the shop and a file of requests."""
    folder = shutil.copytree(shop_run, tmp_path_factory.mktemp("user") / "shop_run")
    with (folder / "requests.jsonl").open("wb") as file:
        for number in range(NUMBER):
            file.write(MALFORMED.get(number) or json.dumps(request(number)).encode())
            file.write(b"\n")
    return folder


def infer(*arguments: str) -> tuple[str, ...]:
    return ("infer", "--gin.MODEL_DIR=run", "--gin.infer_requests.chunk_size=8", *arguments)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()]


def test_killed_half_way_and_started_again(trained: Path) -> None:
    arguments = infer("--requests", "requests.jsonl", "--output", "scores.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-m", "m6rec_jax.cli", *arguments],
        cwd=trained,
        env=os.environ | {"M6REC_DATA_DIR": str(trained / "cache"), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    parts = trained / "scores.jsonl.parts"
    while len(list(parts.glob("*.json"))) < 5:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert not (trained / "scores.jsonl").exists()

    run = python(trained, WITHOUT_TENSORFLOW, *arguments)
    out = succeeded(run)
    assert "going on at row" in run.stderr
    assert out.startswith("400 requests: 395 answered (scores.jsonl), 5 rejected")
    rows = lines(trained / "scores.jsonl")
    assert [row["id"] for row in rows] == [n for n in range(NUMBER) if n not in MALFORMED]
    for row in rows:
        assert {name: row[name] for name in request(0)} == request(row["id"])
        assert len(row["probabilities"]) == len(row["candidates"])
        assert all(0 < p < 1 for p in row["probabilities"])
    rejected = lines(trained / "scores.rejected.jsonl")
    assert {row["row"]: row["kind"] for row in rejected} == {
        5: "invalid_json",
        77: "invalid_utf8",
        150: "invalid_json",
        151: "wrong_type",
        399: "unknown_item",
    }
    assert rejected[1]["raw"] == '{"id": 77, "user": {"city": "K\\xf6ln"}}'
    assert not (trained / "scores.jsonl.parts").exists()


def test_an_index_and_what_it_finds(trained: Path) -> None:
    rows = [request(number) | {"k": None, "exclude": None} for number in range(20)]
    rows[3] |= {"k": 7, "exclude": ["0001"]}
    for row in rows:
        del row["candidates"]
    pq.write_table(pa.Table.from_pylist(rows), trained / "requests.parquet")
    # A file of one's own is read beside the command's.
    sharded = ("--gin_file", "gin_configs/sharding/fully_sharded.gin")
    build = ["index", "build", "--gin.MODEL_DIR=run", "--output", "shop.index", *sharded]
    arguments = infer(
        *("--requests", "requests.parquet", "--output", "found.parquet", "--index", "shop.index"),
        "--gin.infer_requests.job=retrieval",
        *sharded,
    )
    (trained / "run2").symlink_to("run")  # the same model by another name
    again = [a.replace("found.", "again.").replace("DIR=run", "DIR=run2") for a in arguments]
    built, second, answered, renamed = m6rec_each(trained, build, build, [*arguments], again)
    assert "shop.index: 7 items, 8 numbers each" in succeeded(built)
    assert "is there already" in second.stderr
    assert "20 requests: 20 answered (found.parquet), 0 rejected" in succeeded(answered)
    for row, found in zip(rows, pq.read_table(trained / "found.parquet").to_pylist(), strict=True):
        # People buy the same wares again in this shop: only what the request excludes is hidden.
        assert set(found["item_ids"]) == set(SKUS) - set(row["exclude"] or ())
        assert found["scores"] == sorted(found["scores"], reverse=True)
    succeeded(renamed)
