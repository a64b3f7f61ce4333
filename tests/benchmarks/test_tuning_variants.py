"""Variants of the study of tuning: what is run, and that test parts are left alone."""

import re
from pathlib import Path

import gin
import pytest

from benchmarks import tuning_variants as variants
from benchmarks.results_file import read_results
from benchmarks.tuned_run import Run
from benchmarks.tuning import files_of
from m6rec_jax import configuration

pytestmark = pytest.mark.usefixtures("no_gin")

Made = list[tuple[list[str], list[str]]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Files and bindings of the runs made; each has its best AUC half-way."""
    runs: Made = []

    def tune(files, foundation, seed, folder, bindings, *, tested):
        assert not tested
        # It is bound in gin between quotes.
        assert folder.parent == tmp_path / "runs"
        assert re.fullmatch(r"[\w.-]+", folder.name)
        runs.append((list(files), list(bindings)))
        return Run({}, [(10, 0.6), (20, 0.7), (30, 0.65)], 0.01, 3.0, 20)

    monkeypatch.setattr(variants, "tune", tune)
    monkeypatch.setattr(variants, "results_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(variants, "backbone_of", lambda path: path.name)
    return runs


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_settings_exist_and_the_studys_own_value_is_among_them(name: str) -> None:
    variant = variants.VARIANTS[name]
    unused = ["MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='y'"]
    seen = set()
    configuration.parse_config(files_of("movielens_ctr", variant.method), unused)
    seen.add(gin.config_str())
    for value in variant.values:
        changed = [f"{variant.setting}={value}"]
        configuration.parse_config(files_of("movielens_ctr", variant.method), [*unused, *changed])
        seen.add(gin.config_str())
    # A default that no file names is told anew.
    own = 1 if variant.setting == "PromptConfig.adapter_scale" else 0
    assert len(seen) == len(variant.values) + own


def test_runs_are_made_once(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--variants", "rate_option"]
    arguments += ["--tasks", "movielens_ctr", "--output", str(tmp_path / "runs")]
    assert variants.main(arguments) == 0
    assert [bindings for _, bindings in made] == [
        [f"LEARNING_RATE={value}"] for value in ("1e-2", "3e-2", "1e-1", "3e-1")
    ]
    assert variants.main(arguments) == 0
    assert len(made) == 4
    rows = read_results(tmp_path / "tuning_variants.json").rows
    assert {(row["metric"], row["value"], row["split"]) for row in rows} == {
        ("auc", 0.7, "validation")
    }
    assert [row["at"] for row in rows] == ["1e-2", "3e-2", "1e-1", "3e-1"]
    assert variants.main([*arguments[:1], str(tmp_path / "other"), *arguments[2:]]) == 2
    assert "a study is of one foundation" in capsys.readouterr().err


def test_a_run_that_stands_under_another_setting_is_not_made_again(
    made: Made, tmp_path: Path
) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--output", str(tmp_path / "runs")]
    arguments += ["--tasks", "movielens_ctr", "--variants", "rate_option", "prompts_option"]
    assert variants.main(arguments) == 0
    own = ("LEARNING_RATE=3e-2", "TASK_PROMPTS=16")  # of the study
    bindings = [binding for _, [binding] in made]
    assert {own[0], "TASK_PROMPTS=8", "TASK_PROMPTS=32"} < set(bindings)
    assert own[1] not in bindings
    rows = read_results(tmp_path / "tuning_variants.json").rows
    first, second = (
        row
        for row in rows
        if f"{row['setting']}={row['at']}" in own and row["task"] == row["dataset"]
    )
    differing = {key for key in first if first[key] != second[key]}
    assert differing == {"model", "setting", "at"}


def test_what_a_run_starts_from_is_not_its_best(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        variants, "tune", lambda *args, **kwargs: Run({}, [(0, 0.9), (10, 0.6)], 0.01, 3.0, 10)
    )
    arguments = ["--foundation", str(tmp_path / "base"), "--output", str(tmp_path / "runs")]
    arguments += ["--tasks", "movielens_ctr", "--variants", "rate_full"]
    assert variants.main(arguments) == 0
    rows = read_results(tmp_path / "tuning_variants.json").rows
    assert {row["value"] for row in rows} == {0.6}
