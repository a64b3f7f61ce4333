"""Every task of a run is served with the data that it was trained on, and with no others."""

import json
import shutil

import pytest

from m6rec_jax.bank.export import export_prompts
from m6rec_jax.engine.bundle import load_model
from m6rec_jax.engine.index_files import open_index
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.request_data import open_serving_data
from m6rec_jax.serving.build_index import build_index
from tests.serving import served_films
from tests.serving.served_films import BOOKS, BOOKS_SPEC, ITEMS, SPEC, request


@pytest.fixture(autouse=True)
def cache(served, monkeypatch):
    monkeypatch.setenv("M6REC_DATA_DIR", str(served / "cache"))


def old_folder(served, folder, tasks, spec=SPEC, prepared=served_films.PREPARED):
    """A copy of the run as older versions wrote it, with one data set for all tasks."""
    shutil.copytree(served / "run", folder, symlinks=True)
    inference = folder / "inference"
    shutil.rmtree(inference / "datasets")
    (inference / "dataset.json").write_text(json.dumps(spec))
    settings = json.loads((inference / "settings.json").read_text())
    settings |= {"tasks": {name: settings["tasks"][name] for name in tasks}, "prepared": prepared}
    for task in settings["tasks"].values():
        del task["prepared"]
    (inference / "settings.json").write_text(json.dumps(settings))
    return load_model(folder)


def test_each_task_has_its_own_data(served_bundle):
    for task, items in (("next", ITEMS), ("titles", ITEMS), ("books_next", BOOKS)):
        data = open_serving_data(served_bundle, task)
        assert list(data.items.values()) == items
    assert served_bundle.dataset_spec("books_next") == BOOKS_SPEC
    assert served_bundle.template("books_next").item(BOOKS[0]) == "Book 0, a book"
    assert served_bundle.template("ctr").item(ITEMS[0]) == "Film A, comedy"
    assert served_bundle.template("letters") is None


def test_an_index_is_of_the_task_that_is_named(served, served_bundle, tmp_path):
    for task, items in (("next", ITEMS), ("books_next", BOOKS)):
        build_index(tmp_path / task, served / "run", task=task, progress=False)
        index = open_index(tmp_path / task, served_bundle.fingerprint(task))
        assert list(index.ids) == [item.id for item in items]


def test_requests_are_told_in_the_words_of_their_task(infer):
    rows = [request(n) for n in range(3)]
    found, _ = infer(rows, "ctr")
    assert [len(row["probabilities"]) for row in found] == [len(r["candidates"]) for r in rows]
    books = [{"time": served_films.NOW, "behaviours": [], "candidates": ["b0", "b3", "f0"]}]
    _, rejected = infer(books, "books_next", "books", job="scoring")
    assert rejected[0]["reason"].startswith("'candidates[2]' is 'f0', which the catalogue does not")


def test_the_tasks_to_choose_from_are_named(served, served_bundle):
    with pytest.raises(ConfigError, match=r"several tasks; name one: books_next, contents, ctr"):
        open_serving_data(served_bundle)
    with pytest.raises(ConfigError, match=r"'letters' was trained on no data set .* books_next, "):
        open_serving_data(served_bundle, "letters")
    books = str(served / "cache" / served_films.BOOKS_PREPARED)
    with pytest.raises(ConfigError, match=r"holds the data set 'books', .* trained on 'films'"):
        open_serving_data(served_bundle, "ctr", books)


def test_dialogues_are_no_requests(infer, served, tmp_path):
    for task in ("talk_titles", "talk_replies"):
        with pytest.raises(ConfigError, match=f"'{task}' is a task of dialogues .* `m6rec chat"):
            infer([request(0)], task)
    with pytest.raises(ConfigError, match=r"'talk_titles' is a task of dialogues .* `m6rec chat"):
        build_index(tmp_path / "index", served / "run", task="talk_titles", progress=False)
    with pytest.raises(ConfigError, match=r"not by 'language'; name .*--gin\.JOB=NAME"):
        infer([request(0)], "letters")


def test_an_old_folder_of_one_task_is_loaded(served, served_bundle, tmp_path):
    bundle = old_folder(served, tmp_path / "old", ["ctr"])
    assert bundle.settings.tasks["ctr"] == served_bundle.settings.tasks["ctr"]
    assert list(open_serving_data(bundle).items.values()) == ITEMS
    # Indexes that it made stay its own.
    assert bundle.fingerprint() == served_bundle.fingerprint("ctr")
    (prompts,) = export_prompts(tmp_path / "old")
    assert prompts.dataset_spec == SPEC


def test_an_old_folder_of_several_tasks_says_what_to_do(served, tmp_path):
    # Books come first in the alphabet, so all tasks were served with them.
    bundle = old_folder(
        *(served, tmp_path / "old", ["books_next", "ctr", "next"], BOOKS_SPEC),
        prepared=served_films.BOOKS_PREPARED,
    )
    message = r"one data set for all of its tasks \(books_next, ctr, next\), .* that of 'next'.*"
    for prepared in (None, "", str(served / "cache" / served_films.PREPARED)):
        with pytest.raises(ConfigError, match=message + r"Remove MODEL_DIR/inference"):
            open_serving_data(bundle, "next", prepared)
    with pytest.raises(ConfigError, match=message.replace("'next'", "'ctr'")):
        export_prompts(tmp_path / "old", ["ctr"])
    # Who names the data that it has knows which task they are of.
    books = str(served / "cache" / served_films.BOOKS_PREPARED)
    assert list(open_serving_data(bundle, "books_next", books).items.values()) == BOOKS


def test_an_old_folder_of_dialogues_still_talks(served, tmp_path):
    tasks = ["talk_replies", "talk_titles"]
    bundle = old_folder(served, tmp_path / "old", tasks, prepared="talks.by_group")
    assert {own.prepared for own in bundle.settings.tasks.values()} == {"talks.by_group"}


def test_data_that_are_not_there(served_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"films\.by_time holds no prepared data"):
        open_serving_data(served_bundle, "ctr")
