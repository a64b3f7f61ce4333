"""The study of tuning: what is run, what is kept, and what follows from it."""

from pathlib import Path

import pytest

from benchmarks import tuning
from benchmarks.provenance import ROOT
from benchmarks.results_file import read_results
from m6rec_jax import configuration

pytestmark = pytest.mark.usefixtures("no_gin")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """The runs made; option tuning reaches 90% of full fine-tuning's gain, prompts do not."""
    runs: list[tuple[str, str, int]] = []

    def make_run(task, method, seed, foundation, folder, bindings):
        runs.append((task, method, seed))
        figures = dict.fromkeys(tuning.TASKS[task], 0.8 + seed / 100)
        curve = {"full": [(20, 0.6), (40, 0.7)], "option": [(20, 0.679), (40, 0.68)]}
        return tuning.Run(figures, curve.get(method, [(20, 0.5), (40, 0.5)]), 0.01, 3.0, 40)

    monkeypatch.setattr(tuning, "make_run", make_run)
    monkeypatch.setattr(tuning, "results_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(tuning, "backbone_of", lambda path: path.name)
    return runs


@pytest.mark.parametrize("method", tuning.METHODS)
@pytest.mark.parametrize("task", tuning.TASKS)
def test_files_of_every_run_fit_together(task: str, method: str) -> None:
    files = tuning.files_of(task, method)
    assert all((ROOT / file).is_file() for file in files)
    configuration.parse_config(files, ["MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='y'"])
    trainable = configuration.macro("TRAINABLE")
    assert trainable == ("all" if method == "full" else "prompts")
    # A head has a word for every class or none; soft prompts only where the method has some.
    words, num_options = configuration.macro("INITIAL_OPTIONS"), configuration.macro("NUM_OPTIONS")
    assert len(words) == (0 if method in tuning.WITHOUT_WORDS else num_options)
    if method in ("linear_probe", "adapter", "lora"):
        assert configuration.macro("NUM_PROMPTS") == 0
    else:
        assert configuration.macro("NUM_PROMPTS") >= num_options


def test_runs_are_made_once_and_compared(made, tmp_path: Path, capsys) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--seeds", "0", "1"]
    arguments += ["--methods", "full", "option", "prompt"]
    assert tuning.main(arguments) == 0
    assert len(made) == len(set(made)) == 2 * 3 * len(tuning.TASKS)
    assert tuning.main(arguments) == 0
    assert len(made) == 2 * 3 * len(tuning.TASKS)
    rows = read_results(tmp_path / "tuning.json").rows
    (row,) = (
        row
        for row in rows
        if (row["task"], row["method"], row["seed"], row["metric"])
        == ("film_plots_genre", "option", 1, "auc")
    )
    assert row["value"] == 0.81
    # 90% of 0.7 - 0.5 over chance is 0.68.
    assert row["steps_to_90_percent"] == 40
    assert row["curve"] == [[20, 0.679], [40, 0.68]]
    means = [row for row in rows if row["task"] == tuning.ALL_TASKS]
    assert {(row["method"], row["seed"]) for row in means} == {
        (method, seed) for method in ("full", "option", "prompt") for seed in (0, 1)
    }
    assert {row["steps_to_90_percent"] for row in means if row["method"] == "prompt"} == {None}
    # Neither are rows that stand taken for those asked for, nor others put beside them.
    assert tuning.main([*arguments, "--gin.TRAIN_STEPS=480"]) == 2
    assert "given --gin.TRAIN_STEPS=480" in capsys.readouterr().err


def test_commands_side_by_side_leave_nothing_out(made, tmp_path: Path, monkeypatch) -> None:
    """What follows from all rows is made of those that another command wrote meanwhile, too."""
    tasks = list(tuning.TASKS)
    arguments = ["--foundation", str(tmp_path / "base"), "--seeds", "0", "--methods", "full"]
    make_run = tuning.make_run

    def while_another_ends(*run):
        monkeypatch.setattr(tuning, "make_run", make_run)
        assert tuning.main([*arguments, "--tasks", *tasks[1:]]) == 0
        return make_run(*run)

    monkeypatch.setattr(tuning, "make_run", while_another_ends)
    assert tuning.main([*arguments, "--tasks", tasks[0]]) == 0
    means = [
        r for r in read_results(tmp_path / "tuning.json").rows if r["task"] == "mean over tasks"
    ]
    assert [row["method"] for row in means] == ["full"]


def test_steps_to_a_share_of_what_full_fine_tuning_gains() -> None:
    curve = [(0, 0.55), (10, 0.68), (20, 0.7)]
    assert tuning.steps_to_share(curve, full=0.7) == 10
    assert tuning.steps_to_share(curve, full=0.55) == 0
    assert tuning.steps_to_share(curve, full=0.9) is None
    assert tuning.steps_to_share(curve, full=0.45) is None, "nothing was gained"
