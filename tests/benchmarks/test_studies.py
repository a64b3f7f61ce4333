"""The gin files of every study fit together, and a run of one is made once."""

from pathlib import Path

import gin
import pytest

from benchmarks import edge, few_samples, foundation, movielens, runs, tuning
from benchmarks.job_list import JOBS
from benchmarks.metric_names import describe_metric
from m6rec_jax import configuration
from m6rec_jax.data.splitting.splits import Split
from m6rec_jax.errors import DataError
from m6rec_jax.model import ModelConfig
from m6rec_jax.model.layout import prompt_leaves
from m6rec_jax.pipeline.registration import evaluated_tasks

pytestmark = pytest.mark.usefixtures("no_gin")

GIVEN = ["MODEL_DIR='x'", "INITIAL_CHECKPOINT_PATH='y'"]


@pytest.mark.parametrize("name", JOBS)
def test_file_and_task_of_every_job(name: str) -> None:
    job = JOBS[name]
    configuration.parse_config(
        job.recipe.gin_files(), [*GIVEN, *job.recipe.bindings, *job.bindings]
    )
    (task,) = evaluated_tasks(configuration.macro("MIXTURE_OR_TASK_NAME"))
    assert task.name == job.task
    assert task.job.ranks_catalogue == job.is_retrieval
    assert gin.query_parameter("vocabulary_file.shared") == foundation.NAME
    if job.is_trained:
        assert configuration.macro("TRAINABLE") == "prompts"
    assert describe_metric(job.metrics[0])[2] != "none"


def test_no_two_jobs_have_rows_of_one_key() -> None:
    keys = [(job.model, job.dataset, job.task) for job in JOBS.values()]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("method", tuning.METHODS)
@pytest.mark.parametrize("task", tuning.TASKS)
def test_settings_of_tuning(task: str, method: str) -> None:
    files, settings = tuning.settings_of(task, method)
    configuration.parse_config(files, [*GIVEN, *settings])
    assert configuration.macro("TRAINABLE") == ("all" if method == "full" else "prompts")
    # A head has a word for every class; soft prompts only where the method has some.
    num_options = configuration.macro("NUM_OPTIONS")
    assert len(configuration.macro("INITIAL_OPTIONS")) == num_options
    if method == "lora":
        assert configuration.macro("NUM_PROMPTS") == 0
    else:
        assert configuration.macro("NUM_PROMPTS") >= num_options


def test_settings_of_few_samples() -> None:
    configuration.parse_config([few_samples.GIN_FILE], GIVEN)
    assert configuration.macro("NUM_OPTIONS") == len(few_samples.RATINGS)
    assert gin.query_parameter("Validation.best_metric") == "validation/auc"
    # What learns at a rate of its own is called so.
    names = prompt_leaves(ModelConfig())
    assert all(any(name in leaf for leaf in names) for name in configuration.macro("RATE_FACTORS"))
    configuration.parse_config([few_samples.PREPARE])
    assert "{awards}" in gin.query_parameter("PrepareOptions.template")["candidate"]
    split = Split.parse(few_samples.Sample(256, 2).split())
    assert split.arguments() == {"n": 256, "seed": 2, "history": "sampled"}


@pytest.mark.parametrize("name", edge.MODELS)
def test_settings_of_phone_models(name: str) -> None:
    model = edge.MODELS[name]
    files = runs.Recipe("pretrain", model.size, edge.DATASET).gin_files()
    extras = [edge.DISTILLATION] * bool(model.taught_by) + [edge.PRUNING] * bool(model.pruned_from)
    bindings = [*GIVEN, *model.bindings, "TEACHER='z'"] if model.taught_by else GIVEN
    if model.pruned_from:
        bindings = [*bindings, "PRUNING_END=600"]
    configuration.parse_config([*files, *extras], [*bindings, *model.bindings])
    assert configuration.macro("MODEL").config.share_layers == name.startswith("shared")
    assert {model.taught_by, model.pruned_from} <= {"", *edge.MODELS}


def test_settings_of_movielens() -> None:
    for job in movielens.JOBS.values():
        configuration.parse_config(job.recipe.gin_files(), [*GIVEN, *job.recipe.bindings])


def test_the_vocabulary_reads_what_the_foundation_reads() -> None:
    """Every source of the mixture is one of the vocabulary's, with the splits of the tasks."""
    configuration.parse_config([foundation.VOCABULARY[1]])
    read = {(d, s) for d, s, _ in gin.query_parameter("train_on_prepared.sources")}
    shared = gin.query_parameter("train_on_prepared.shared")
    configuration.parse_config(foundation.RECIPES[foundation.NAME].gin_files(), GIVEN[:1])
    assert gin.query_parameter("vocabulary_file.shared") == shared == foundation.NAME
    tasks = evaluated_tasks("foundation")
    assert {(task.dataset, task.split) for task in tasks} == read
    assert set(gin.query_parameter("mixture_rates.rates")) <= {task.name for task in tasks}
    assert not any("leave_one_out" in task.name for task in tasks)


def test_the_foundation_of_books_reads_no_behaviour_about_films() -> None:
    configuration.parse_config(foundation.RECIPES[foundation.BOOKS_NAME].gin_files(), GIVEN[:1])
    tasks = evaluated_tasks(configuration.macro("MIXTURE_OR_TASK_NAME"))
    assert {task.dataset for task in tasks} == {*foundation.TEXTS, foundation.RATED}


def test_a_run_is_made_once_and_keeps_its_seconds_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(runs, "m6rec", lambda *arguments: calls.append(arguments))
    recipe, folder = movielens.FOUNDATION, tmp_path / "run"
    seconds = runs.train(recipe, folder)
    assert seconds is not None
    assert runs.train(recipe, folder) == seconds
    assert len(calls) == 1
    interrupted = tmp_path / "interrupted"
    (interrupted / "checkpoints").mkdir(parents=True)
    assert runs.train(recipe, interrupted) is None
    with pytest.raises(DataError, match="was begun with"):
        runs.train(recipe, folder, ["--gin.TRAIN_STEPS=3"])
