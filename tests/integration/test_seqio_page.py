"""docs/seqio_tasks.md, followed: its files are written, its commands run, its requests asked."""

import contextlib
import json
import re
import shlex
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from m6rec_jax.export.folder import MANIFEST
from m6rec_jax.server.app import make_app
from m6rec_jax.serving.service import Service, ServiceOptions
from tests.integration.commands import ROOT, m6rec_each, python, succeeded
from tests.server.served import make_server

PAGE = (ROOT / "docs" / "seqio_tasks.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python)?\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
LINES = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
# So that it takes seconds; nothing else differs from the page.
SHORTER = {
    "train": ["--gin.TRAIN_STEPS=2", "--gin.WARMUP_STEPS=1", "--gin.EVAL_PERIOD=2"],
    "export": ["--rows", "3", "--platforms", "cpu"],
}
THINGS = ("blue mug", "red pan", "old chair", "white cup", "round table", "tall lamp")
KINDS = ("kitchen", "kitchen", "living room")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The user's folder, and what each kind of command printed."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "tasks").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for split in ("train", "validation", "test"):
        kinds = [f"kind of {thing}\t{KINDS[n % 3]}" for n, thing in enumerate(THINGS)]
        titles = [f"title of {thing}, made by hand\t{thing}" for thing in THINGS]
        for name, lines in (("kinds", kinds), ("titles", titles)):
            (folder / f"{name}.{split}.tsv").write_text("\n".join(lines) + "\n")
    printed = succeeded(python(folder, FILES["make_vocabulary.py"]))
    assert printed.strip() in FILES["catalogue.gin"], "the page says how many rows it has"
    subprocess.run(
        next(x for x in LINES if x.startswith("echo")), shell=True, cwd=folder, check=True
    )
    commands = [shlex.split(line)[1:] for line in LINES if line.startswith("m6rec")]
    commands = [[*own, *SHORTER.get(own[0], ())] for own in commands if own[0] != "serve"]
    runs = m6rec_each(folder, *commands)
    return folder, {own[0]: succeeded(run) for own, run in zip(commands, runs, strict=True)}


def test_the_metric_is_the_users(followed: tuple[Path, dict[str, str]]) -> None:
    folder, printed = followed
    metrics = json.loads(printed["eval"][printed["eval"].index("{") :])
    for task in ("kinds", "titles"):
        (path,) = (folder / "runs" / "catalogue" / "predictions").glob(f"{task}-test-*.parquet")
        rows = pq.read_table(path).to_pylist()
        assert len(rows) == metrics[f"{task}/num_examples"] == len(THINGS)
        right = [row["target"].lower() == row["prediction"].strip().lower() for row in rows]
        assert metrics[f"{task}/exact_match"] == sum(right) / len(right)
        likelihood = sum(row["target_log_probability"] for row in rows)
        loss = metrics[f"{task}/loss"] * metrics[f"{task}/num_tokens"]
        assert likelihood == pytest.approx(-loss, rel=1e-5)


def test_what_is_served_is_what_files_are_answered(followed: tuple[Path, dict[str, str]]) -> None:
    folder, _ = followed
    (answered,) = map(json.loads, (folder / "answers.jsonl").open())
    (expected,) = answered["texts"]
    service = Service.open(
        folder / "runs" / "catalogue", options=ServiceOptions(batch_sizes=(1,), continuous=True)
    )
    server = make_server(service)
    with contextlib.closing(server.scheduler), TestClient(make_app(server)) as client:
        requests = [shlex.split(line)[1:] for line in LINES if line.startswith("curl")]
        found = [
            client.post(address.partition("8000")[2], json=json.loads(body)).json()
            for address, _, body in requests
        ]
        models = client.get("/v1/models").json()["data"]
        nothing = client.post("/v1/write", json={"task": "kinds"})
        both_lines = {"model": "kinds", "prompt": "kind of\nred pan"}
        of_lines = client.post("/v1/completions", json=both_lines).json()
    assert [found[0]["texts"][0]["text"], found[1]["choices"][0]["text"]] == [expected] * 2
    assert of_lines["choices"][0]["text"] == expected, "lines are no behaviours here"
    assert {model["id"]: model["data_set"] for model in models}["kinds"] == ""
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (409, "missing_field")


def test_exports_were_checked_with_the_tasks_own_rows(
    followed: tuple[Path, dict[str, str]],
) -> None:
    for name in ("stablehlo", "saved_model"):
        manifest = json.loads((followed[0] / "exported" / name / MANIFEST).read_text())
        results = manifest["verified"]["results"].values()
        assert all(result["equal"] == 1 for result in results)
        assert sum(result["rows"] for result in results) >= 2 * 3


def test_serving_imports_no_tensorflow(followed: tuple[Path, dict[str, str]]) -> None:
    code = (
        "import sys; from m6rec_jax.serving.service import Service; "
        "s = Service.open('runs/catalogue'); "
        "s.accept({'input': 'kind of red pan'}, task='kinds').text; "
        "assert not {'tensorflow', 'seqio'} & set(sys.modules)"
    )
    succeeded(python(followed[0], code))
