"""One run of tuning: what is read from its folder, and that rows are of one foundation."""

import json
from pathlib import Path

import pytest

from benchmarks import tuned_run
from m6rec_jax.errors import DataError


def test_curve_is_read_from_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 5, "loss": 1.0}, {"step": 5, "validation/auc": 0.51234567}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert tuned_run.read_curve(path) == [(5, 0.512346)]
    path.write_text('{"step": 5, "loss": 1.0}\n')
    with pytest.raises(DataError, match="EVAL_PERIOD larger than TRAIN_STEPS"):
        tuned_run.read_curve(path)


def test_rows_of_another_foundation_are_refused(tmp_path: Path) -> None:
    rows = [{"foundation": "aa"}, {"foundation": "bb"}]
    tuned_run.refuse_others(tmp_path / "x.json", rows[:1], tmp_path, "aa")
    with pytest.raises(DataError, match="rows of the foundation bb"):
        tuned_run.refuse_others(tmp_path / "x.json", rows, tmp_path, "aa")
