"""Every task of a run is served with the data that it was trained on, and with no others."""

import dataclasses

import pytest

from m6rec_jax.engine.index.index_files import open_index
from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.serving.build_index import build_index
from tests.serving import served_films
from tests.serving.served_films import BOOKS, BOOKS_SPEC, ITEMS, request


@pytest.fixture(autouse=True)
def cache(served, monkeypatch):
    monkeypatch.setenv("M6REC_DATA_DIR", str(served / "cache"))


def test_each_task_has_its_own_data(served_model):
    for task, items in (("next", ITEMS), ("titles", ITEMS), ("books_next", BOOKS)):
        data = open_serving_data(served_model, task)
        titled = [dataclasses.replace(item, title=item.attributes["title"]) for item in items]
        assert list(data.items.values()) == titled
    assert served_model.dataset_spec("books_next") == BOOKS_SPEC
    assert served_model.template("books_next").item(BOOKS[0]) == "Book 0, a book"
    assert served_model.template("ctr").item(ITEMS[0]) == "Film A, comedy"
    assert served_model.template("letters") is None


def test_an_index_is_of_the_task_that_is_named(served, served_model, tmp_path):
    for task, items in (("next", ITEMS), ("books_next", BOOKS)):
        build_index(tmp_path / task, served / "run", task=task, progress=False)
        index = open_index(tmp_path / task, served_model.fingerprint(task))
        assert list(index.ids) == [item.id for item in items]


def test_requests_are_told_in_the_words_of_their_task(infer):
    rows = [request(n) for n in range(3)]
    found, _ = infer(rows, "ctr")
    assert [len(row["probabilities"]) for row in found] == [len(r["candidates"]) for r in rows]
    books = [{"time": served_films.NOW, "history": [], "candidates": ["b0", "b3", "f0"]}]
    _, rejected = infer(books, "books_next", "books", job="scoring")
    assert rejected[0]["reason"].startswith("'candidates[2]' is 'f0', which the catalogue does not")


def test_the_tasks_to_choose_from_are_named(served, served_model):
    with pytest.raises(ConfigError, match=r"several tasks; name one: books_next, contents, ctr"):
        open_serving_data(served_model)
    with pytest.raises(ConfigError, match=r"'letters' was trained on no data set"):
        open_serving_data(served_model, "letters")
    books = str(served / "cache" / served_films.BOOKS_PREPARED)
    with pytest.raises(ConfigError, match=r"holds the data set 'books', .* trained on 'films'"):
        open_serving_data(served_model, "ctr", books)


def test_dialogues_are_no_requests(infer, served, tmp_path):
    for task in ("talk_titles", "talk_replies"):
        with pytest.raises(ConfigError, match=f"'{task}' is a task of dialogues .* `m6rec chat"):
            infer([request(0)], task)
    with pytest.raises(ConfigError, match=r"'talk_titles' was trained on no data set of users"):
        build_index(tmp_path / "index", served / "run", task="talk_titles", progress=False)
    with pytest.raises(ConfigError, match=r"not by 'language'; name .*--gin\.JOB=NAME"):
        infer([request(0)], "letters")


def test_data_that_are_not_there(served_model, monkeypatch, tmp_path):
    monkeypatch.setenv("M6REC_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"films\.by_time holds no prepared data"):
        open_serving_data(served_model, "ctr")
