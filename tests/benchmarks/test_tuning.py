"""The study of tuning: what is run, what is kept, and what follows from it."""

from pathlib import Path

import pytest

from benchmarks import tuning
from benchmarks.results_file import read_results
from m6rec_jax import configuration

pytestmark = pytest.mark.usefixtures("no_gin")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs made, `<task>-<method>-<seed>`."""
    runs: list[str] = []

    def tune(files, foundation, seed, folder, bindings):
        runs.append(folder.name)
        figures = dict.fromkeys(("auc", "log_loss", "accuracy"), 0.8 + seed / 100)
        return tuning.Run(figures, 0.01, 3.0, 40)

    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr(tuning, "results_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(tuning, "backbone_of", lambda path: path.name)
    return runs


@pytest.mark.parametrize("method", tuning.METHODS)
@pytest.mark.parametrize("task", tuning.TASKS)
def test_settings_of_every_run_fit_together(task: str, method: str) -> None:
    files, settings = tuning.settings_of(task, method)
    given = ["MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='y'"]
    configuration.parse_config(files, [*given, *settings])
    assert configuration.macro("TRAINABLE") == ("all" if method == "full" else "prompts")
    assert configuration.macro("TRAIN_STEPS") == (480 if task in tuning.TEXTS else 160)
    # A head has a word for every class; soft prompts only where the method has some.
    num_options = configuration.macro("NUM_OPTIONS")
    assert len(configuration.macro("INITIAL_OPTIONS")) == num_options
    if method == "lora":
        assert configuration.macro("NUM_PROMPTS") == 0
    else:
        assert configuration.macro("NUM_PROMPTS") >= num_options


def test_runs_are_made_once_and_compared(made, tmp_path: Path, capsys) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--seeds", "0", "1"]
    arguments += ["--methods", "full", "option"]
    assert tuning.main(arguments) == 0
    assert len(made) == len(set(made)) == 2 * 2 * len(tuning.TASKS)
    assert tuning.main(arguments) == 0
    assert len(made) == 2 * 2 * len(tuning.TASKS)
    rows = read_results(tmp_path / "tuning.json")
    means = {
        (row["method"], row["seed"]): row["value"]
        for row in rows
        if row["task"] == tuning.ALL_TASKS
    }
    assert means == {
        (method, seed): pytest.approx(0.8 + seed / 100)
        for method in ("full", "option")
        for seed in (0, 1)
    }
    # Rows of another foundation are not put beside them.
    assert tuning.main([*arguments, "--foundation", str(tmp_path / "other")]) == 2
    assert "has rows of the foundation base" in capsys.readouterr().err
