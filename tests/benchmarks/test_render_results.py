"""`docs/results.md` is made of the result files and of nothing else."""

import os
import re
import socket
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import provenance, render_results, results_file
from benchmarks.result_tables import Tables
from m6rec_jax.errors import DataError

STAMP = {"command": "python -m x", "commit": "abc", "hardware": "a CPU", "date": "2026-01-02"}


def row(**changes: Any) -> dict[str, Any]:
    known = {"model": "FM", "gin_file": None, "config": "c", "dataset": "d", "split": "s"}
    return known | {"seed": 1, "metric": "auc", "value": 0.5} | STAMP | changes


def line(table: str, model: str) -> list[str]:
    (found,) = [part for part in table.splitlines() if part.startswith(f"| {model}")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_mean_and_spread_over_seeds() -> None:
    values = [0.70, 0.71, 0.75]
    rows = [row(seed=seed, value=value) for seed, value in enumerate(values)]
    losses = [
        row(seed=seed, value=1 - value, metric="log_loss") for seed, value in enumerate(values)
    ]
    rows += [*losses, row(model="LR", value=0.6), row(model="LR", value=0.4, metric="log_loss")]
    table = Tables("x", rows).table(["auc", "log_loss"])
    spread = statistics.stdev(values)
    # The better log loss is the lower one; a single seed has no spread; the best stands last.
    assert line(table, "FM")[1:] == [f"**0.7200 ± {spread:.4f}**", f"**0.2800 ± {spread:.4f}**"]
    assert line(table, "LR")[1:] == ["0.6000", "0.4000"]
    assert table.index("LR") < table.index("FM")


def test_figures_and_a_metric_by_a_key_of_the_rows() -> None:
    found = ((64, "FM", 0.5), (1024, "FM", 0.7), (1024, "LR", 0.71))
    rows = [row(samples=n, split=f"few_{n}", model=m, value=v) for n, m, v in found]
    rows[0]["baselines"] = {"mean": 0.3}
    tables = Tables("x", rows)
    table = tables.table_by("samples", "auc")
    assert "| model | 64 | 1,024 |" in table
    assert line(table, "FM")[1:] == ["0.5000", "0.7000"]
    assert line(table, "LR")[1:] == ["–", "**0.7100**"]
    assert tables.figure("FM", "auc", split="few_64") == "0.5000"
    assert tables.figure("FM", "auc", split="few_64", baseline="mean") == "0.3000"
    assert tables.has("few_64", model="FM")
    assert not tables.has("few_64", model="LR")
    for wrong in (
        lambda: tables.table(["auc"]),  # of two splits
        lambda: tables.table(["mrr"], split="few_64"),
        lambda: tables.table_by("sample", "auc"),
        lambda: tables.figure("SVD", "auc", split="few_64"),
        lambda: tables.comparison("likes", ["auc"]),
    ):
        with pytest.raises(DataError, match=r"x\.md"):
            wrong()


def test_pages_and_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "results", tmp_path / "docs" / "results.md"

    def run(*flags: str) -> int:
        return render_results.main(["--results", str(folder), "--output", str(output), *flags])

    results_file.add_rows(folder / "a.json", [row()])
    results_file.add_rows(folder / "b.json", [row(value=0.8)])
    (folder / "a.md").write_text('# A\n{# page: speed.md #}\n{{ table(["auc"]) }}')
    (folder / "b.md").write_text('# B\n## Detail\nFM reaches {{ figure("FM", "auc") }}.')
    (folder / "summary.md").write_text(
        '{{ of("a").figure("FM", "auc") }}{% if of("c").has() %}c{% endif %}'
    )
    assert run("--check") == 1  # not written yet, and a check writes nothing
    assert not output.exists()
    assert run() == 0
    assert run("--check") == 0
    text = output.read_text()
    assert text.index("\n0.5000\n") < text.index("## B\n") < text.index("### Detail\n")
    assert "FM reaches 0.8000." in text
    assert line(output.with_name("speed.md").read_text(), "FM")[1] == "0.5000"
    results_file.add_rows(folder / "a.json", [row(value=0.9)])
    assert run("--check") == 1
    assert "0.9000" in capsys.readouterr().err
    for wrong in ("no title", "# T\n{{ tabel() }}", "# T\n{{ table( }}"):
        (folder / "b.md").write_text(wrong)
        assert run() == 2
        assert "b.md" in capsys.readouterr().err


def test_a_rerun_replaces_all_rows_of_its_run_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    results_file.add_rows(path, [row(), row(metric="log_loss"), row(seed=2), row(model="LR")])
    results_file.add_rows(path, [row(value=0.75, commit="def")])
    rows = results_file.read_results(path)
    found = [(r["model"], r["seed"], r["metric"], r["value"], r["commit"]) for r in rows]
    assert found == [
        ("FM", 2, "auc", 0.5, "abc"),
        ("LR", 1, "auc", 0.5, "abc"),
        ("FM", 1, "auc", 0.75, "def"),
    ]
    assert results_file.runs_in(path) == {results_file.run_key(one) for one in rows}


@pytest.mark.parametrize("change", [{"value": float("nan")}, {"config": None}, {"seed": 1}])
def test_a_bad_row_is_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match="row 1"):
        results_file.add_rows(path, [row(), row(seed=2) | change])
    assert not path.exists()


def test_provenance_names_the_machine_but_not_whose_it_is() -> None:
    text = provenance.hardware_description()
    assert re.search(r", \d+ cores?, \d+ GiB; ", text)
    assert "numpy " in text
    assert socket.gethostname() not in text
    assert os.sep not in text.replace("CPU @", "")
    for word, portable in (
        ("--gin_file=gin_configs/x.gin", "--gin_file=gin_configs/x.gin"),
        (f"--output={provenance.ROOT / 'runs' / 'a'}", "--output=runs/a"),
        ("--gin.MODEL_DIR='/home/someone/model'", "--gin.MODEL_DIR='model'"),
        ("gs://bucket/model", "gs://bucket/model"),
    ):
        assert provenance.portable(word) == portable


def test_committed_result_files_keep_to_the_schema() -> None:
    for path in sorted(results_file.RESULTS.glob("*.json")):
        for result in results_file.read_results(path):
            gin_file = result["gin_file"]
            assert gin_file is None or (provenance.ROOT / gin_file).exists(), gin_file
            assert provenance.portable(result["command"]) == result["command"]


def test_a_line_compares_means_over_seeds() -> None:
    rows = []
    for seed, ours in ((0, 0.6), (1, 0.8)):
        row = {"model": "M", "gin_file": None, "config": "c", "dataset": "d1", "split": "t"}
        row |= {"seed": seed, "metric": "auc", "value": ours, "ours": ours, "job": "likes"}
        rows.append(row | {"baselines": {"weak": 0.1, "strong": 0.5 + seed / 10}})
    text = Tables("x", rows).comparison("likes", ["auc"])
    spread = float(np.std([0.6, 0.8], ddof=1))
    line = next(line for line in text.splitlines() if line.startswith("| d1"))
    assert f"0.7000 ± {spread:.4f}" in line
    assert "strong 0.5500 ± 0.0707" in line
    assert "+27.3%" in line
    assert "weak 0.1000" in line
