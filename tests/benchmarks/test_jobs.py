"""The study of jobs: what is run, from which foundation, and what stands in its rows."""

from pathlib import Path

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import explanation_examples, foundation, job_baselines, jobs, movielens
from benchmarks.comparison_table import comparison_table
from benchmarks.job_list import JOBS, SINGLES, WITHOUT_TOWERS, ZERO_SHOT
from benchmarks.metric_names import describe_metric
from benchmarks.provenance import ROOT
from benchmarks.results_file import add_rows, read_results
from m6rec_jax import configuration
from m6rec_jax.pipeline.registration import evaluated_tasks
from tests.benchmarks.conftest import bindings_of, recorded

pytestmark = pytest.mark.usefixtures("no_gin")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands made; every figure of an evaluation of seed s is 0.5 + s / 100."""
    made: list[tuple[str, ...]] = []

    def figures_of(call: tuple[str, ...]) -> dict[str, float]:
        bound = bindings_of(call)
        folder = Path(bound["MODEL_DIR"]).name
        value = 0.5 + int(folder[-1]) / 100 if folder[-1].isdigit() else 0.25
        # With weights it is of the hybrid.
        value += 0.2 * any(
            other[0] == "calibrate" and bindings_of(other)["MODEL_DIR"] == bound["MODEL_DIR"]
            for other in made
        )
        job = next(job for job in JOBS.values() if job.eval_gin_file == call[2])
        own = bound.get("MIXTURE_OR_TASK_NAME")
        tasks = [t for t in job.tests if own in (None, t, job.compared_with.get(t))]
        # As the evaluator names them.
        figures = {
            f"{task}/{metric}" if len(tasks) > 1 else metric: value
            for task in tasks
            for metric in job.tests[task].metrics
        }
        return figures | {"popularity/auc": 0.4, "chance/auc": 0.3}

    record = recorded(made, figures_of)

    def m6rec(*arguments: object) -> None:
        record(*arguments)
        if arguments[0] == "infer":
            rows = [
                {"source": f"loved A|B\nFilm {n}", "prefix": "because", "written": f"text {n}."}
                for n in range(99)
            ]
            table = pa.Table.from_pylist([row | {"reference": "So."} for row in rows])
            pq.write_table(table, arguments[-1])

    def baselines_of(gin_file: str, bindings: tuple[str, ...]) -> dict[str, dict[str, float]]:
        made.append(("baselines", gin_file))
        names = ("auc", "log_loss", "bleu_4", "novelty", "movielens_100k_titles/rouge_1")
        return {"weak": dict.fromkeys(names, 0.1), "strong": dict.fromkeys(names, 0.9)}

    for module in (jobs, movielens, foundation, explanation_examples):
        monkeypatch.setattr(module, "m6rec", m6rec)
    monkeypatch.setattr(foundation, "prepare_data", lambda: None)
    monkeypatch.setattr(job_baselines, "baselines_of", baselines_of)
    monkeypatch.setattr(explanation_examples, "EXAMPLES", tmp_path / "examples.md")
    monkeypatch.setattr(jobs, "results_path", lambda name: tmp_path / f"{name}.json")
    monkeypatch.setattr(jobs, "backbone_of", lambda path: path.name)
    monkeypatch.setattr(jobs, "prepare_data", lambda inspired: inspired is not None)
    return made


def run(tmp_path: Path, *arguments: str) -> int:
    fixed = ["--foundation", str(tmp_path / "base"), "--output", str(tmp_path / "runs")]
    return jobs.main([*fixed, *arguments])


def rows_in(tmp_path: Path) -> list[dict]:
    return list(read_results(tmp_path / "jobs.json").rows)


@pytest.mark.parametrize("name", [*JOBS, *SINGLES])
def test_files_and_tasks_of_every_job_fit_together(name: str) -> None:
    job = JOBS.get(name) or SINGLES[name]
    steps = ["MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='y'"]
    configuration.parse_config([job.eval_gin_file], ["MODEL_DIR='x'", *job.eval_bindings])
    tested = {task.name for task in evaluated_tasks(configuration.macro("MIXTURE_OR_TASK_NAME"))}
    lengths = configuration.macro("TASK_FEATURE_LENGTHS")
    shared = gin.query_parameter("vocabulary_file.shared")
    if job.gin_file is not None:
        configuration.parse_config([job.gin_file], [*steps, *job.bindings])
        assert configuration.macro("TASK_FEATURE_LENGTHS") == lengths
        assert gin.query_parameter("vocabulary_file.shared") == shared
        assert configuration.macro("TRAINABLE") == "prompts"
    if job.hybrid:
        of_task = f"MIXTURE_OR_TASK_NAME='{job.hybrid}'"
        configuration.parse_config([job.eval_gin_file], ["MODEL_DIR='x'", of_task])
        (task,) = evaluated_tasks(configuration.macro("MIXTURE_OR_TASK_NAME"))
        assert task.job.ranks_catalogue
    assert set(job.tests) <= tested
    assert shared == foundation.NAME


def test_no_two_jobs_have_rows_of_one_key() -> None:
    keys = [(job.model, t.dataset, task) for job in JOBS.values() for task, t in job.tests.items()]
    assert len(keys) == len(set(keys))
    assert all(own in SINGLES for own in JOBS["all_jobs"].compared_with.values())
    assert set(JOBS["all_jobs"].compared_with) == set(JOBS["all_jobs"].tests)


def test_the_single_runs_read_as_many_rows_as_the_run_of_all_jobs() -> None:
    configuration.parse_config([JOBS["all_jobs"].gin_file], ["MODEL_DIR='x'"])
    steps = configuration.macro("TRAIN_STEPS")
    rates = gin.query_parameter("mixture_rates.rates")
    of_single: dict[str, float] = {}
    for task, own in JOBS["all_jobs"].compared_with.items():
        of_single[own] = of_single.get(own, 0) + rates[task]
    total = sum(rates.values())
    for own, rate in of_single.items():
        assert steps * rate / total == pytest.approx(bound_steps(own), rel=0.02)


def bound_steps(own: str) -> int:
    (steps,) = (b for b in SINGLES[own].bindings if "TRAIN_STEPS" in b)
    return int(steps.split("=")[1])


def test_rows_stand_beside_baselines_and_are_made_once(calls, tmp_path: Path) -> None:
    arguments = ["--jobs", "explanation", "--seeds", "0", "3", "--gin.TRAIN_STEPS=5"]
    assert run(tmp_path, *arguments) == 0
    job = JOBS["explanation"]
    training = [call for call in calls if call[0] == "train"]
    assert [call[2] for call in training] == [job.gin_file] * 2
    for call, seed in zip(training, (0, 3), strict=True):
        bound = bindings_of(call)
        assert bound["INITIAL_CHECKPOINT_PATH"] == str((tmp_path / "base").resolve())
        assert (bound["train.seed"], bound["BatchIterator.seed"]) == (str(seed), str(seed))
        assert bound["TRAIN_STEPS"] == "5"
    # The baselines and the untuned foundation are measured once for all seeds.
    expected = ["train", "eval", "baselines", "eval", "infer", "train", "eval"]
    assert [call[0] for call in calls] == expected
    rows = {(row["metric"], row["seed"]): row for row in rows_in(tmp_path)}
    row = rows["bleu_4", 3]
    assert (row["ours"], row["value"]) == (0.53, 0.53)
    assert row["baselines"] == {"weak": 0.1, "strong": 0.9, ZERO_SHOT: 0.25}
    assert (row["job"], row["dataset"], row["gin_file"]) == (
        *("explanation", "movielens-100k"),
        job.gin_file,
    )
    # Only the foundation has a figure of this.
    assert rows["usr", 0]["baselines"] == {ZERO_SHOT: 0.25}
    done = len(calls)
    assert run(tmp_path, *arguments) == 0
    assert len(calls) == done


def test_ten_explanations_are_drawn_by_a_seed(calls, tmp_path: Path) -> None:
    assert run(tmp_path, "--jobs", "explanation", "--seeds", "0") == 0
    (asked,) = (call for call in calls if call[0] == "infer")
    assert bindings_of(asked)["MODEL_DIR"].endswith("explanation-0")
    page = (tmp_path / "examples.md").read_text()
    drawn = sorted(np.random.default_rng(0).choice(99, 10, replace=False).tolist())
    assert [line for line in page.splitlines() if "*written*" in line] == [
        f"| *written* | **because text {number}.** |" for number in drawn
    ]
    assert page.count("| *history* | loved A\\|B |") == 10
    assert page.count("| *reference* | because So. |") == 10


def test_nothing_is_trained_for_zero_shot(calls, tmp_path: Path) -> None:
    assert run(tmp_path, "--jobs", "movielens_zero_shot", "--seeds", "0", "1") == 0
    assert [call[0] for call in calls] == ["calibrate", "eval"]
    assert bindings_of(calls[0])["MODEL_DIR"] == str((tmp_path / "base").resolve())
    (row,) = (row for row in rows_in(tmp_path) if row["metric"] == "auc")
    assert row["seed"] is None
    assert row["baselines"] == {"popularity": 0.4, "chance": 0.3}
    assert row["gin_file"] == JOBS["movielens_zero_shot"].eval_gin_file


def test_a_job_may_be_asked_of_another_foundation(calls, tmp_path: Path, capsys) -> None:
    books, name = tmp_path / "books", "movielens_zero_shot_books"
    asked = ["--jobs", "movielens_zero_shot", name, "--seeds", "0", "--books", str(books)]
    assert run(tmp_path, *asked) == 0
    assert f"left out: {name}: there is no {books}" in capsys.readouterr().out
    books.mkdir()
    # Neither refuses the rows of the other, whichever was there first.
    for _ in range(2):
        assert run(tmp_path, *asked) == 0
    folders = [(call[0], Path(bindings_of(call)["MODEL_DIR"]).name) for call in calls]
    asked_each = ("calibrate", "eval")
    assert folders == [(what, of) for of in ("base", "books") for what in asked_each]
    for calibrates, evaluates in (calls[:2], calls[2:]):
        assert bindings_of(calibrates)["SPLIT"] == "validation"
        learnt = Path(evaluates[-1])
        assert learnt.name == "movielens_100k_zero_shot_scaling.gin"
        assert learnt.parent == Path(bindings_of(calibrates)["MODEL_DIR"]) / "inference"
    rows = [row for row in rows_in(tmp_path) if row["metric"] == "auc"]
    assert [(row["foundation_name"], row["foundation"], row["model"]) for row in rows] == [
        ("foundation", "base", f"M6-Rec mini, {JOBS['movielens_zero_shot'].model}"),
        ("foundation_books", "books", f"M6-Rec mini, {JOBS[name].model}"),
    ]
    (tmp_path / "others").mkdir()
    other = [*asked[:-1], str(tmp_path / "others")]
    assert run(tmp_path, *other) == 2
    assert "has rows of the foundation books" in capsys.readouterr().err
    # Tables of other jobs stay as they are.
    assert run(tmp_path, "--foundation", str(tmp_path / "others"), "--jobs", "explanation") == 0


def test_the_run_of_all_jobs_is_compared_with_single_runs_of_its_seed(calls, tmp_path) -> None:
    assert run(tmp_path, "--jobs", "all_jobs", "--seeds", "1") == 0
    trained = [bindings_of(call).get("MIXTURE_OR_TASK_NAME") for call in calls if "train" in call]
    assert trained == [None, *SINGLES]
    rows = rows_in(tmp_path)
    assert {row["split"] for row in rows} == set(JOBS["all_jobs"].tests)
    # The stub's figure is that of the folder, which ends in the seed.
    assert [row["baselines"] for row in rows] == [{"a run of its own": 0.51}] * len(rows)


def test_retrieval_is_tested_as_the_hybrid_that_was_calibrated(calls, tmp_path: Path) -> None:
    arguments = ["--jobs", "conversation", "--seeds", "1", "--inspired", str(tmp_path)]
    assert run(tmp_path, *arguments) == 0
    made = [call for call in calls if call[0] != "baselines"]
    hybrids = ["calibrate", "eval"] * 2
    assert [call[0] for call in made] == ["train", "eval", "eval", *hybrids]
    folder = bindings_of(made[0])["MODEL_DIR"]
    assert [bindings_of(call)["MODEL_DIR"] == folder for call in made] == [
        *(True, True),
        *(False, *[True] * 4),  # the second evaluation is of the foundation, untuned
    ]
    assert ["--gin.Reranking.towers=False" in call for call in made[-4:]] == [*(0, 0), *(1, 1)]
    # What is not retrieved is not written anew.
    assert bindings_of(made[-1])["MIXTURE_OR_TASK_NAME"] == "inspired_retrieval"
    rows = [row for row in rows_in(tmp_path) if row["metric"] in ("recall@1", "perplexity")]
    tuned = "M6-Rec mini, option-adapter tuning"
    assert {(row["model"], row["split"]): row["ours"] for row in rows} == {
        (f"{tuned}; hybrid", "inspired_retrieval"): pytest.approx(0.71),
        (f"{tuned}; the two towers alone", "inspired_retrieval"): pytest.approx(0.51),
        (tuned, "inspired_replies"): pytest.approx(0.51),
    }
    # Both beside the same baselines, though one evaluation had several tasks and one had not.
    assert [row["baselines"] for row in rows if row["split"] == "inspired_retrieval"] == [
        {ZERO_SHOT: 0.25, WITHOUT_TOWERS: pytest.approx(0.71)},
        {ZERO_SHOT: 0.25},
    ]
    done = len(calls)
    assert run(tmp_path, *arguments) == 0
    assert len(calls) == done


def test_one_table_is_of_one_budget(calls, tmp_path: Path, capsys) -> None:
    job = ("--jobs", "explanation", "--seeds")
    assert run(tmp_path, *job, "0", "--gin.TRAIN_STEPS=5") == 0
    assert run(tmp_path, "--jobs", "movielens_zero_shot", "--seeds", "0") == 0  # trains nothing
    rows = {row["split"]: row for row in rows_in(tmp_path)}
    trained = rows["movielens_100k_explanations"]
    assert (trained["bindings"], trained["train_steps"]) == (["TRAIN_STEPS=5"], 5)
    assert "bindings" not in rows["movielens_100k_zero_shot"]
    done = len(calls)
    for seed, bindings in (("0", ()), ("1", ()), ("1", ("--gin.TRAIN_STEPS=6",))):
        assert run(tmp_path, *job, seed, *bindings) == 2
        assert "made with --gin.TRAIN_STEPS=5, but" in capsys.readouterr().err
    assert len(calls) == done
    # Nor is what was trained with other bindings taken for a run of another study.
    (tmp_path / "jobs.json").unlink()
    assert run(tmp_path, *job, "0") == 0
    folders = {bindings_of(call)["MODEL_DIR"] for call in calls if call[0] == "train"}
    assert len(folders) == 2
    (trained, *_) = rows_in(tmp_path)
    assert trained["bindings"] == []
    path = tmp_path / "jobs.json"
    path.write_text(
        path.read_text().replace(f'"train_steps": {trained["train_steps"]}', '"train_steps": 7')
    )
    assert run(tmp_path, *job, "1") == 2
    assert "has rows of 7 steps, but the gin files now say" in capsys.readouterr().err


def test_a_line_compares_means_over_seeds(tmp_path: Path) -> None:
    row = {"model": "ours", "gin_file": "a.gin", "dataset": "d", "split": "t", "job": "j"}
    rows = [
        {**row, "seed": seed, "metric": metric, "value": value, "ours": value, "baselines": known}
        for metric, values, of_seed in (
            ("perplexity", (8.0, 10.0), lambda s: {"kNN": 12.0, "foundation": 17.0 + 2 * s}),
            ("novelty", (0.5, 0.5), lambda s: {}),
        )
        for seed, value in enumerate(values)
        for known in [of_seed(seed)]
    ]
    path = tmp_path / "r.json"
    made = {"command": "c", "commit": "0", "hardware": "h", "date": "2026-11-25"}
    add_rows(path, [row | made for row in rows])
    same, _, head, _, *lines = comparison_table(read_results(path).rows).splitlines()
    assert same == "d, `t`: [`a.gin`](../a.gin), ours; 2 seeds, 2026-11-25."
    assert head.startswith("| metric | ours | best baseline |")
    # A baseline that was measured once has no spread.
    assert lines == [
        "| perplexity | 9.00 ± 1.41 | kNN 12.00 | +25.0% | foundation 18.00 ± 1.41 |",
        "| novelty | 0.500 ± 0.000 | – |  | – |",
    ]


def test_every_figure_that_is_kept_has_a_name() -> None:
    for job in JOBS.values():
        for test in job.tests.values():
            # The main figure must be one that can be better or worse.
            assert describe_metric(test.metrics[0])[2] != "none"
        assert (ROOT / job.eval_gin_file).is_file()
