"""The foundation from nothing: which commands run, in which order, and what is not done again."""

from pathlib import Path

import gin
import pytest

from benchmarks import foundation, runs
from benchmarks.tuning import TASKS, settings_of
from m6rec_jax import configuration
from m6rec_jax.data.getting import sources
from m6rec_jax.pipeline.registration import evaluated_tasks
from tests.benchmarks.conftest import recorded

pytestmark = pytest.mark.usefixtures("no_gin")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    made: list[tuple[str, ...]] = []

    record = recorded(made, lambda call: {})

    def m6rec(*arguments: object) -> None:
        record(*arguments)
        if arguments[0] == "vocab":
            path = tmp_path / "data" / "foundation" / "vocabulary.model"
            path.parent.mkdir(parents=True)
            path.touch()

    monkeypatch.setattr(foundation, "m6rec", m6rec)
    monkeypatch.setattr(runs, "m6rec", m6rec)
    monkeypatch.setenv(sources.DATA_DIR_VARIABLE, str(tmp_path / "data"))
    return made


def test_every_source_is_fetched_and_prepared_before_the_vocabulary(calls, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "run"), "--gin.TRAIN_STEPS=3"]
    assert foundation.main(arguments) == 0
    verbs = [call[:2] for call in calls]
    place = verbs.index(("vocab", "train"))
    fetched = {call[2] for call in calls[:place] if call[:2] == ("data", "fetch")}
    assert fetched == {"sentence-encoder", "movielens-100k", "book-crossing", *foundation.TEXTS}
    assert fetched <= set(sources.public_datasets())
    prepared = [call[2] for call in calls[:place] if call[:2] == ("data", "prepare")]
    assert set(prepared) == {"movielens-100k", "book-crossing-small", *foundation.TEXTS}
    assert [call[0] for call in calls[place:]] == ["vocab", "train"]
    assert "--gin.TRAIN_STEPS=3" in calls[place + 1]
    # Again: the data are looked at, nothing is trained.
    done = len(calls)
    assert foundation.main(arguments) == 0
    assert {call[0] for call in calls[done:]} == {"data"}
    # What was trained so is not taken for the whole of it.
    assert foundation.main(arguments[:-1]) == 2
    assert "was begun with" in capsys.readouterr().err


def test_the_second_stage_goes_on_from_the_first(calls, tmp_path):
    arguments = ["--answers", "--first", str(tmp_path / "first"), "--output", str(tmp_path / "run")]
    assert foundation.main(arguments) == 0
    for verb in ("fetch", "prepare"):
        assert {("data", verb, name) for name in foundation.QUESTIONS} <= set(calls)
    first, second = (call for call in calls if call[0] == "train")
    assert first[2] == "pretrain"
    assert f"--gin.MODEL_DIR='{tmp_path / 'first'}'" in first
    assert second[2] == "answers"
    assert f"--gin.INITIAL_CHECKPOINT_PATH='{tmp_path / 'first'}'" in second
    assert f"--gin.MODEL_DIR='{tmp_path / 'run'}'" in second


def test_no_class_is_one_that_a_study_asks_for():
    """The second stage has other questions than the study, and reads films of training parts."""
    configuration.parse_config(
        foundation.RECIPES[foundation.ANSWERS_NAME].gin_files(),
        ["MODEL_DIR = 'x'", "INITIAL_CHECKPOINT_PATH = 'y'"],
    )
    rates = gin.query_parameter("mixture_rates.rates")
    tasks = {task.name: task for task in evaluated_tasks("foundation_answers")}
    asked = {task.dataset for task in tasks.values() if task.view == "labelled_texts"}
    assert asked == {"film-consensus", *foundation.QUESTIONS}
    # Sentences of reviews are among them: films are in the same part of every corpus.
    assert {task.split for task in tasks.values() if task.dataset in asked} == {"by_group"}
    assert set(rates) <= set(tasks)
    studied = set()
    for name in TASKS:
        with gin.unlock_config():
            configuration.parse_config(settings_of(name, "option")[0], ["MODEL_DIR = 'x'"])
        task = gin.query_parameter("%MIXTURE_OR_TASK_NAME")
        studied |= {(one.dataset, one.view) for one in evaluated_tasks(task)}
    assert not {(name, "labelled_texts") for name in asked} & studied


def test_the_vocabulary_reads_what_the_foundation_reads():
    """Every source of the mixture is one of the vocabulary's, with the splits of the tasks."""
    configuration.parse_config([foundation.VOCABULARY[1]])
    read = {(d, s) for d, s, _ in gin.query_parameter("train_on_prepared.sources")}
    shared = gin.query_parameter("train_on_prepared.shared")
    configuration.parse_config(foundation.RECIPES[foundation.NAME].gin_files(), ["MODEL_DIR = 'x'"])
    assert gin.query_parameter("vocabulary_file.shared") == shared == foundation.NAME
    tasks = evaluated_tasks("foundation")
    rates = gin.query_parameter("mixture_rates.rates")
    assert {(task.dataset, task.split) for task in tasks} == read
    assert set(rates) <= {task.name for task in tasks}
    assert not any("leave_one_out" in task.name for task in tasks)
    assert {task.kind for task in tasks} == {"language", "retrieval", "generation"}


def test_the_foundation_of_books_reads_no_behaviour_about_films(calls, tmp_path):
    """Neither its tasks nor what it is trained with name a data set of films' ratings."""
    name = foundation.BOOKS_NAME
    arguments = ["--books", "--output", str(tmp_path / "run")]
    assert foundation.main(arguments) == 0
    prepared = {call[2] for call in calls if call[:2] == ("data", "prepare")}
    assert foundation.RATED in prepared
    (trained,) = (call for call in calls if call[0] == "train")
    assert trained[2] == foundation.RECIPES[name].recipe
    configuration.parse_config(foundation.RECIPES[name].gin_files(), ["MODEL_DIR = 'x'"])
    tasks = evaluated_tasks(configuration.macro("MIXTURE_OR_TASK_NAME"))
    rates = gin.query_parameter("mixture_rates.rates")
    assert {task.dataset for task in tasks} == {*foundation.TEXTS, foundation.RATED}
    assert set(rates) <= {task.name for task in tasks}
