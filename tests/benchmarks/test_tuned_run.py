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


OWN = {"foundation": "aa", "bindings": ["TRAIN_STEPS=480"], "train_steps": 480}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"foundation": "bb"}, r"has rows of the foundation bb, but .* is aa"),
        ({"bindings": []}, r"made with no gin bindings, but .* given --gin\.TRAIN_STEPS=480"),
        ({"bindings": ["B=2", "A=1"]}, r"made with --gin\.B=2 --gin\.A=1, but"),
        ({"train_steps": 240}, r"has rows of 240 steps, but .* TRAIN_STEPS = 480"),
    ],
)
def test_rows_made_otherwise_are_refused(
    tmp_path: Path, other: dict[str, object], message: str
) -> None:
    path = tmp_path / "x.json"
    tuned_run.refuse_others(path, [OWN, OWN], tmp_path, OWN)
    with pytest.raises(DataError, match=message):
        tuned_run.refuse_others(path, [OWN, OWN | other], tmp_path, OWN)
    # What need not be alike.
    asked = {name: value for name, value in OWN.items() if name not in other}
    if "foundation" in asked:
        tuned_run.refuse_others(path, [OWN, OWN | other], tmp_path, asked)


def test_conditions_are_those_of_the_files_and_bindings(tmp_path: Path) -> None:
    name = str(tmp_path / "run.gin")
    Path(name).write_text("TRAIN_STEPS = 240\nRATE = 1.0\n")
    found = tuned_run.conditions_of("aa", [name], ["--gin.RATE=0.5"])
    first = found.pop("configuration")
    assert found == {"foundation": "aa", "bindings": ["RATE=0.5"], "train_steps": 240}
    found = tuned_run.conditions_of("aa", [name], ["--gin.TRAIN_STEPS=480"], ["--gin.RATE=2.0"])
    assert found.pop("configuration") != first
    assert found == OWN
