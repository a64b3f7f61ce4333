"""Titles for requests, against scoring every title of the catalogue by teacher forcing."""

import json

import gin
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError, DataError
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RequestFields, RequestParser
from m6rec_jax.text.records import Item
from tests.engine.teacher_forcing import text_log_probability
from tests.serving import served_films
from tests.serving.served_films import ITEMS, MAX_EVENTS, NOW, SPEC, S, T, request

# Two titles belong to several films.
FILMS = [
    *ITEMS,
    Item("f12", {"title": "Film A", "genre": "horror"}),
    Item("f13", {"title": "Film E", "genre": "comedy"}),
    Item("f14", {"title": "Film E", "genre": "horror"}),
]
TITLES = {item.id: item.attributes["title"] for item in FILMS}
ALL = "TitlesAnswers.k = 12\nTitlesAnswers.max_k = 12\n"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return str(served_films.write_data(tmp_path_factory.mktemp("films") / "data", items=FILMS))


@pytest.fixture(autouse=True)
def configure():
    def parse(text):
        gin.clear_config()
        gin.parse_config(text)

    parse("")
    yield parse
    gin.clear_config()


@pytest.fixture
def recommend(infer, films):
    """Answers requests by writing titles."""

    def run(asked, task="titles", name="out", **changes):
        settings = {"job": "title_recommendation", "prepared": films} | changes
        return infer(asked, task, name, **settings)

    return run


def history_of(bundle, films, asked):
    data = open_serving_data(bundle, "titles", films)
    parser = RequestParser(data.spec, data.items, data.statistics_names(), RequestFields(None))
    renderer = RequestRenderer(data.template, data.statistics, MAX_EVENTS, render_candidates=False)
    return renderer.render(parser.parse(asked)).history


def seen_by(asked, text="{title}"):
    """What a user has seen: by id, or where a film that is told without one is called the same."""
    seen = set(asked.get("exclude", ()))
    for entry in (behaviour["item"] for behaviour in asked["history"]):
        if isinstance(entry, dict):
            called = text.format(**entry)
            seen |= {film.id for film in FILMS if text.format(**film.attributes) == called}
        else:
            seen.add(entry)
    return seen


@pytest.mark.parametrize("task", ["titles", "contents"])
def test_the_likeliest_titles_of_the_catalogue(recommend, configure, served_model, films, task):
    """With as many beams as titles, search equals scoring every title."""
    configure(ALL.replace("12", "15") if task == "contents" else ALL)
    asked = [request(number) for number in range(5)]
    asked[1] |= {"exclude": ["f0", "f13", "unknown"]}
    asked[2]["history"] = [
        {"item": {"title": "Film E", "genre": "drama"}, "time": NOW - 5, "value": 5}
    ]
    if task == "titles":
        asked[3] |= {"about": {"genre": "horror"}}
        asked[4] |= {"about": "f1"}
    prefixes = {"titles": ["", "", "", "horror:", "drama:"], "contents": ["film"] * 5}[task]
    found, _ = recommend(asked, task)
    for row, own, prefix in zip(found, asked, prefixes, strict=True):
        text = "{title}" if task == "titles" else "{title}, {genre}"
        of_id = {item.id: text.format(**item.attributes) for item in FILMS}
        left = [id_ for id_ in of_id if id_ not in seen_by(own, text)]
        history = history_of(served_model, films, own)
        model = served_model.model, served_model.variables, served_model.vocabulary
        scores = {
            title: text_log_probability(model, history, title, (S, T), prefix)
            for title in {of_id[id_] for id_ in left}
        }
        assert set(row["item_ids"]) == set(left)
        assert len(row["item_ids"]) == len(left)
        assert row["titles"] == [of_id[id_] for id_ in row["item_ids"]]
        np.testing.assert_allclose(
            row["log_probabilities"], [scores[title] for title in row["titles"]], rtol=1e-4
        )
        assert row["log_probabilities"] == sorted(row["log_probabilities"], reverse=True)


def test_as_many_titles_as_are_asked_for(recommend, configure):
    configure("TitlesAnswers.k = 2\nTitlesAnswers.max_k = 5\n")
    asked = [request(1) | {"k": k} for k in (None, 1, 5, 6)]
    found, rejected = recommend(asked)
    assert [len(set(row["titles"])) for row in found] == [2, 1, 5]
    assert [row["kind"] for row in rejected] == ["k_too_large"]
    for row in found:
        # All films of each title.
        assert len(row["item_ids"]) >= len(set(row["titles"]))
        assert not set(row["item_ids"]) & seen_by(asked[0])
    configure(ALL + "TitlesAnswers.exclude_seen = False\n")
    (everything,), _ = recommend([request(1)], name="seen")
    assert set(everything["item_ids"]) == set(TITLES)


def test_clear_errors(recommend, configure, served, served_model, films, tmp_path):
    with pytest.raises(ConfigError, match=r"titles or contents of .* 'ctr' writes nothing"):
        recommend([request(0)], "ctr")
    configure("TitlesAnswers.k = 0\n")
    with pytest.raises(ConfigError, match=r"TitlesAnswers\.k = 0"):
        recommend([request(0)])
    configure("")
    with pytest.raises(DataError, match="the catalogue is empty"):
        recommend([request(0)], prepared="")
    # What a title begins with needs a genre, and nobody gives one.
    needy = json.loads(json.dumps(SPEC))
    needy["template"]["writing"]["titles"]["prefix"] = "{genre}:"
    folder = tmp_path / "run"
    served_films.copy_run(served / "run", folder, ["titles"], needy)
    asked = [request(1), request(2) | {"about": {"genre": "drama"}}, request(3) | {"about": "x"}]
    asked.append(request(4) | {"about": {"genre": "drama, " * 20}})
    found, rejected = recommend(asked, name="needy", model_dir=folder)
    assert [row["number"] for row in found] == [2]
    reasons = [row["reason"] for row in rejected]
    assert "'about' does not fit" in reasons[0]
    assert "'about' is 'x', which the catalogue does not have" in reasons[1]
    assert "leaves no room for" in reasons[2]
