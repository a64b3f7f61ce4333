"""The study of tuning: what is run, what is kept, and what follows from it."""

from collections.abc import Iterator
from pathlib import Path

import gin
import pytest

from benchmarks import tuning
from benchmarks.provenance import ROOT
from benchmarks.results_file import read_results
from m6rec_jax import configuration


@pytest.fixture(autouse=True)
def no_gin() -> Iterator[None]:
    """Leaves no setting behind."""
    yield
    gin.clear_config()


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


def test_runs_are_made_once_and_compared(made, tmp_path: Path) -> None:
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
    assert tuning.main([*arguments, "--tasks", "movielens_ctr", "--force"]) == 0
    assert len(made) == 2 * 3 * (len(tuning.TASKS) + 1)


def test_one_study_is_of_one_foundation(made, tmp_path: Path, capsys) -> None:
    assert tuning.main(["--foundation", str(tmp_path / "base"), "--seeds", "0"]) == 0
    assert tuning.main(["--foundation", str(tmp_path / "other"), "--seeds", "1"]) == 2
    assert "a study is of one foundation" in capsys.readouterr().err
    assert all(seed == 0 for _, _, seed in made)


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


def test_rows_of_older_settings_are_no_seeds_of_new_ones(
    made, tmp_path: Path, capsys, monkeypatch
) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--tasks", "movielens_ctr"]
    arguments += ["--methods", "option", "prompt", "--seeds"]
    assert tuning.main([*arguments, "0"]) == 0
    files_of = tuning.files_of
    (tmp_path / "later.gin").write_text("LEARNING_RATE = 0.5\n")

    def later(task: str, method: str) -> list[str]:
        return files_of(task, method) + [str(tmp_path / "later.gin")] * (method == "prompt")

    monkeypatch.setattr(tuning, "files_of", later)
    # That of option tuning is as it was.
    assert tuning.main([*arguments, "1"]) == 2
    assert "made before a gin file of theirs changed" in capsys.readouterr().err
    assert made[2:] == [("movielens_ctr", "option", 1)]
    assert tuning.main([*arguments, "0", "--force"]) == 0


def test_one_table_is_of_one_budget(made, tmp_path: Path, capsys) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--tasks", "movielens_ctr"]
    arguments += ["--methods", "option", "--seeds"]
    assert tuning.main([*arguments, "0"]) == 0
    (row, *_) = read_results(tmp_path / "tuning.json").rows
    assert (row["bindings"], row["train_steps"]) == ([], 160)
    # Neither are rows that stand taken for those asked for, nor others put beside them.
    for seed in "01":
        assert tuning.main([*arguments, seed, "--gin.TRAIN_STEPS=480"]) == 2
        said = capsys.readouterr().err
        assert "made with no gin bindings, but this study is given --gin.TRAIN_STEPS=480" in said
    assert made == [("movielens_ctr", "option", 0)]
    (tmp_path / "tuning.json").unlink()
    assert tuning.main([*arguments, "1", "--gin.TRAIN_STEPS=480"]) == 0
    (row, *_) = read_results(tmp_path / "tuning.json").rows
    assert (row["bindings"], row["train_steps"]) == (["TRAIN_STEPS=480"], 480)


def test_steps_that_the_files_no_longer_have(made, tmp_path: Path, capsys, monkeypatch) -> None:
    arguments = ["--foundation", str(tmp_path / "base"), "--tasks", "movielens_ctr"]
    arguments += ["--methods", "option", "--seeds"]
    assert tuning.main([*arguments, "0"]) == 0
    files_of = tuning.files_of
    (tmp_path / "later.gin").write_text("TRAIN_STEPS = 300\n")
    later = lambda *run: [*files_of(*run), str(tmp_path / "later.gin")]  # noqa: E731
    monkeypatch.setattr(tuning, "files_of", later)
    assert tuning.main([*arguments, "1"]) == 2
    said = "has rows of 160 steps, but the gin files now say TRAIN_STEPS = 300"
    assert said in capsys.readouterr().err
    # Methods of a task are compared by steps.
    arguments[arguments.index("option")] = "prompt"
    assert tuning.main([*arguments, "0"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("curve", "steps"),
    [([(10, 0.6), (20, 0.861)], 20), ([(10, 0.861), (20, 0.5)], 10), ([(10, 0.859)], None)],
)
def test_steps_to_90_percent(curve: tuning.Curve, steps: int | None) -> None:
    assert tuning.steps_to_share(curve, full=0.9) == steps


def test_unknown_arguments_are_refused(made, capsys) -> None:
    assert tuning.main(["TRAIN_STEPS=3"]) == 2
    assert "unrecognized argument: TRAIN_STEPS=3" in capsys.readouterr().err
    assert not made


def test_steps_to_a_share_of_what_full_fine_tuning_gains() -> None:
    curve = [(0, 0.55), (10, 0.68), (20, 0.7)]
    assert tuning.steps_to_share(curve, full=0.7) == 10
    assert tuning.steps_to_share(curve, full=0.55) == 0
    assert tuning.steps_to_share(curve, full=0.9) is None
    assert tuning.steps_to_share(curve, full=0.45) is None, "nothing was gained"
