"""The tasks of public data sets: registered without data, in short files of a namespace package."""

import importlib
from pathlib import Path

import gin
import pytest
import seqio

from m6rec_jax import configuration
from m6rec_jax.pipeline.registration import task_info

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(
    file for file in (ROOT / "gin_configs" / "data").glob("*/*.gin") if file.parent.name != "any"
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path / "nowhere"))
    yield
    gin.clear_config()


KINDS = {
    "texts": {
        "film_reviews_sentiment film_plots_genre film_tones_tone": "classification",
        "chitchat_infilling film_tones_tone_in_words": "language",
        "tripadvisor_explanations inspired_replies": "generation",
        "redial_titles": "title_recommendation",
        "redial_retrieval": "item_recommendation",
    },
    "foundation": {"film_attributes_infilling film_consensus_generation": "language"},
    "film_viewers": {"film_viewers_ctr": "scoring"},
    "book_crossing": {
        "book_crossing_ctr book_crossing_small_ctr": "scoring",
        "book_crossing_small_leave_one_out_retrieval": "retrieval",
        "book_crossing_small_zero_shot": "likelihood",
    },
    "movielens": {
        "movielens_100k_explanations movielens_100k_queries": "generation",
        "movielens_100k_leave_one_out_retrieval": "retrieval",
        "movielens_100k_unseen_items_retrieval": "retrieval",
    },
}


@pytest.mark.parametrize("module", KINDS)
def test_modules_register_their_tasks(module):
    importlib.import_module(f"tasks.{module}")
    for names, kind in KINDS[module].items():
        for name in names.split():
            assert seqio.get_mixture_or_task(name).name == name
            assert task_info(name).kind == kind


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_example_parses(path):
    """With what its header asks for; its task exists."""
    macros = ["MODEL_DIR = 'x'", "INITIAL_CHECKPOINT_PATH = 'y'"]
    uses = configuration.read_config([path]).uses
    names = ["models/mini"] if "MODEL" in uses else []
    names += ["tuning/option_adapter"] if "INITIAL_OPTIONS" in uses else []
    configuration.parse_config([*(f"gin_configs/{name}.gin" for name in names), path], macros)
    name = configuration.macro("MIXTURE_OR_TASK_NAME", None)
    if name is not None:
        assert seqio.get_mixture_or_task(name).name == name


def test_tasks_is_no_package_of_ours():
    assert not (ROOT / "tasks" / "__init__.py").exists()
