"""Result files: schema, merging, provenance."""

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from benchmarks import provenance, results_file
from m6rec_jax.errors import DataError

STAMP = {"command": "c", "commit": "abc", "hardware": "h", "date": "2026-01-02"}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "model": "FM",
        "gin_file": None,
        "config": "defaults",
        "dataset": "d",
        "split": "s",
        "seed": 1,
        "metric": "auc",
        "value": 0.5,
    } | changes


def add(path: Path, *rows: dict[str, Any], **changes: str) -> results_file.Results:
    return results_file.add_rows(path, [STAMP | changes | row for row in rows])


def test_a_rerun_replaces_all_rows_of_its_run_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    add(path, row(), row(metric="log_loss"), row(seed=2), row(model="LR"))
    results = add(path, row(value=0.75))
    found = [(r["model"], r["seed"], r["metric"], r["value"]) for r in results.rows]
    assert found == [("FM", 2, "auc", 0.5), ("LR", 1, "auc", 0.5), ("FM", 1, "auc", 0.75)]
    assert results_file.read_results(path).rows == results.rows
    assert results.runs == {("FM", "d", "s", 1), ("FM", "d", "s", 2), ("LR", "d", "s", 1)}


def test_older_rows_keep_their_own_provenance(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    add(path, row())
    results = add(path, row(seed=2), commit="def", date="2026-01-03")
    assert [(r["commit"], r["date"]) for r in results.rows] == [
        ("abc", "2026-01-02"),
        ("def", "2026-01-03"),
    ]
    on_disk = json.loads(path.read_text())
    assert on_disk["commit"] == "def"
    assert on_disk["rows"][0]["commit"] == "abc"
    # What is as the file says is not said again.
    assert "commit" not in on_disk["rows"][1]
    assert "command" not in on_disk["rows"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "finite"),
        ({"config": None}, "neither a 'gin_file'"),
        ({"gin_file": "/home/x.gin"}, "relative to the repository"),
        ({"gin_file": "../x.gin"}, "relative to the repository"),
    ],
)
def test_a_bad_row_is_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match="row 1.*" + message):
        add(path, row(), row(seed=2) | change)
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        (json.dumps({"rows": [row()]}), "command, commit, date, hardware missing"),
        (json.dumps({**STAMP, "rows": [row(), {"model": "FM"}]}), "row 1: dataset, .* missing"),
        (json.dumps({**STAMP, "rows": [row(), row()]}), "row 1: .* stands in row 0"),
    ],
)
def test_a_damaged_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        results_file.parse_results(text, "x")


def test_hardware_names_the_machine_but_not_whose_it_is() -> None:
    text = provenance.hardware_description()
    assert re.search(r", \d+ cores?, ", text)
    assert " GiB; " in text
    assert "numpy " in text
    assert socket.gethostname() not in text
    assert os.sep not in text.replace("CPU @", "")


def test_what_is_not_installed_has_no_version() -> None:
    told = provenance.versions(["no-such-library", "numpy"])
    assert re.fullmatch(r"Python [\d.]+, numpy \S+", told)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--gin_file=gin_configs/x.gin", "--gin_file=gin_configs/x.gin"),
        (str(provenance.ROOT / "runs" / "a"), "runs/a"),
        (f"--output={provenance.ROOT / 'runs' / 'a'}", "--output=runs/a"),
        ("/somewhere/bin/m6rec", "m6rec"),
        ("/home/someone/data", "data"),
        ("--gin.MODEL_DIR='/home/someone/model'", "--gin.MODEL_DIR='model'"),
        ("a b", "a b"),
        ("gs://bucket/model", "gs://bucket/model"),
    ],
)
def test_commands_name_no_local_path(word: str, expected: str) -> None:
    assert provenance.portable(word) == expected


def test_committed_result_files_keep_to_the_schema() -> None:
    for path in sorted(results_file.RESULTS.glob("*.json")):
        for result in results_file.read_results(path).rows:
            gin_file = result["gin_file"]
            assert gin_file is None or (provenance.ROOT / gin_file).exists(), gin_file
            assert provenance.portable(result["command"]) == result["command"]
