"""Zero-shot scores of requests, against a direct computation: one forward pass per sentence."""

import json

import gin
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.request_data import open_serving_data
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RequestParser
from tests.engine.teacher_forcing import log_probabilities
from tests.serving import served_films
from tests.serving.served_films import MAX_EVENTS, NOW, S, T, request

pytestmark = pytest.mark.usefixtures("no_gin")

CANDIDATE, ITEM = "{candidate} liked", "likes {item}"


def configure(sentence, counted):
    gin.clear_config()
    gin.bind_parameter("LikelihoodScorer.sentence", sentence)
    gin.bind_parameter("LikelihoodScorer.counted", counted)


def tiny_of(bundle):
    return bundle.model, bundle.variables, bundle.vocabulary


def directly(model, history, before, text, after, counted, task_id=1):
    """Mean of log p(token | history, tokens before) over the tokens of the counted words."""
    vocabulary = model.vocabulary
    ids = vocabulary.encode(before + text + after)
    first, last = len(vocabulary.encode(before)), len(ids) - len(vocabulary.encode(after))
    chosen = range(first, last) if counted == "candidate" else range(last, len(ids))
    log_p = log_probabilities(tiny_of(model), history, ids, (S, T), task_id)
    return float(np.mean([log_p[place, ids[place]] for place in chosen]))


def told(model, asked):
    """(history, texts as scoring has them, texts as the catalogue has them) of each request."""
    data = open_serving_data(model, "plausible")
    parser = RequestParser(data.spec, data.items, data.statistics_names())
    renderer = RequestRenderer(data.template, data.statistics, MAX_EVENTS)
    for row in asked:
        parsed = parser.parse(row)
        text = renderer.render(parsed)
        yield text.history, text.candidates, [data.template.item(i) for i in parsed.candidates]


@pytest.mark.parametrize(
    ("sentence", "counted", "before", "after"),
    [(CANDIDATE, "after", "", " liked"), (ITEM, "candidate", "likes ", "")],
)
def test_scores_equal_a_direct_computation(infer, served_model, sentence, counted, before, after):
    configure(sentence, (counted,))
    asked = [request(number) for number in range(9)]
    found, rejected = infer(asked, "plausible", chunk_size=4)
    assert not rejected
    as_item = sentence == ITEM
    compared = 0
    for row, (history, candidates, items) in zip(found, told(served_model, asked), strict=True):
        expected = [
            directly(served_model, history, before, text, after, counted)
            for text in (items if as_item else candidates)
        ]
        np.testing.assert_allclose(row["mean_log_probabilities"], expected, atol=3e-5)
        scores = row["mean_log_probabilities"]
        assert row["ranking"] == sorted(range(len(scores)), key=lambda i: -scores[i])
        compared += len(scores)
    assert compared > 15


def odds(model, history, text, task_id=1):
    """log p(liked) - log p(disliked) after the candidate's [EOS], at the first unlike token."""
    vocabulary = model.vocabulary
    ids, others = vocabulary.encode("liked"), vocabulary.encode("disliked")
    place = next(i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
    read = [*vocabulary.encode(text), vocabulary.eos_id, *ids[:place]]
    log_p = log_probabilities(tiny_of(model), history, read, (S, T), task_id)
    return float(log_p[len(read), ids[place]] - log_p[len(read), others[place]])


def test_outcomes_of_the_template_are_asked_for_where_nothing_is_said(infer, served_model):
    asked = [request(number) for number in range(5)]
    found, rejected = infer(asked, "plausible", chunk_size=2)
    assert not rejected
    for row, (history, candidates, _) in zip(found, told(served_model, asked), strict=True):
        expected = np.array([odds(served_model, history, text) for text in candidates])
        np.testing.assert_allclose(row["log_odds"], expected, atol=3e-5)
        np.testing.assert_allclose(row["probabilities"], 1 / (1 + np.exp(-expected)), atol=1e-5)
        assert row["ranking"] == sorted(range(len(expected)), key=lambda i: -row["log_odds"][i])
    gin.bind_parameter("PlattScaling.scale", 2.0)
    gin.bind_parameter("PlattScaling.offset", -0.5)
    calibrated, _ = infer(asked, "plausible", "calibrated")
    for row, plain in zip(calibrated, found, strict=True):
        expected = 1 / (1 + np.exp(0.5 - 2.0 * np.array(plain["log_odds"])))
        np.testing.assert_allclose(row["probabilities"], expected, atol=1e-5)


def test_items_need_no_statistics_where_none_are_told(infer):
    """The catalogue's words, as `{item}` has them, tell no statistics; scoring's need them."""
    configure(ITEM, ("candidate",))
    asked = [{"time": NOW, "user": {"taste": "drama"}, "history": [], "candidates": []}]
    asked[0]["candidates"] = [{"title": "Film Z", "genre": "drama"}, {"title": "Film Z"}, "f1"]
    found, rejected = infer(asked, "plausible")
    assert not found
    assert "genre" in rejected[0]["reason"]
    del asked[0]["candidates"][1]
    found, _ = infer(asked, "plausible", "two")
    assert sorted(found[0]["ranking"]) == [0, 1]


def test_a_trained_task_of_another_kind_can_be_asked(infer):
    """The job is named, as for a foundation; what counts is part of what the output depends on."""
    configure(CANDIDATE, ("after",))
    asked = [request(1), request(2)]
    by_job, _ = infer(asked, "next", "next", job="likelihood")
    by_kind, _ = infer(asked, "plausible", "plausible")
    for a, b in zip(by_job, by_kind, strict=True):
        np.testing.assert_allclose(a["mean_log_probabilities"], b["mean_log_probabilities"])
    configure(CANDIDATE, ("candidate",))
    other, _ = infer(asked, "plausible", "other")
    assert other != by_kind


def test_a_data_set_that_the_model_never_saw(infer, served, served_model):
    """PREPARED brings the columns and the template; the task brings the prompts."""
    configure("{item}", ("candidate",))
    books = str(served / "cache" / served_films.BOOKS_PREPARED)
    asked = [
        {
            "time": NOW,
            "history": [{"item": f"b{n % 4}", "time": 900_000 + n, "value": 5} for n in range(5)],
            "candidates": ["b3", "b0"],
        }
    ]
    found, _ = infer(asked, "plausible", prepared=books)
    history = ["", *(f"liked Book {n % 4}" for n in (2, 3, 4)), ""]  # MAX_EVENTS of five
    expected = [
        directly(served_model, history, "", f"Book {n}, a book", "", "candidate") for n in (3, 0)
    ]
    np.testing.assert_allclose(found[0]["mean_log_probabilities"], expected, atol=3e-5)
    with pytest.raises(ConfigError, match="holds the data set 'books'"):
        infer(asked, "ctr", "scored", prepared=books)


def test_what_cannot_be_scored_is_refused(infer, served, served_model, tmp_path):
    configure(ITEM, ("candidate",))
    spec = json.loads(json.dumps(served_films.SPEC))
    spec["template"]["item"] = "[{title}]"
    run = served_films.copy_run(served / "run", tmp_path / "run", ["plausible"], spec)
    asked = [request(1) | {"candidates": [{"title": "\u200b", "genre": "drama"}]}]
    found, rejected = infer(asked, "plausible", model_dir=run)
    assert not found
    assert "'candidates[0]' cannot be scored" in rejected[0]["reason"]
    configure("this user, as we know, likes {item}", ("candidate",))
    narrow = served_model.likelihood_scorer("plausible", target_length=8)
    assert narrow.question.as_item
    with pytest.raises(ConfigError, match="do not fit the target length 8"):
        narrow.check("Film A")
