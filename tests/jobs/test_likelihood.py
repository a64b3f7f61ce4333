"""Zero-shot scores of requests, against a direct computation: one forward pass per sentence."""

import json

import gin
import numpy as np
import pytest

from m6rec_jax.errors import ConfigError
from m6rec_jax.jobs.resources import open_serving_data
from m6rec_jax.requests.rendering import RequestRenderer
from m6rec_jax.requests.request import RequestParser
from m6rec_jax.text.labels import Contrast
from tests.engine.teacher_forcing import log_probabilities
from tests.serving import served_films
from tests.serving.served_films import MAX_EVENTS, NOW, S, T, request

pytestmark = pytest.mark.usefixtures("no_gin")


def tiny_of(bundle):
    return bundle.model, bundle.variables, bundle.vocabulary


def told(model, asked):
    """History and candidates of each request, as scoring has them."""
    data = open_serving_data(model, "plausible")
    parser = RequestParser(data.spec, data.items, data.statistics_names())
    renderer = RequestRenderer(data.template, data.statistics, MAX_EVENTS)
    for row in asked:
        text = renderer.render(parser.parse(row))
        yield text.history, text.candidates


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
    for row, (history, candidates) in zip(found, told(served_model, asked), strict=True):
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


def test_a_trained_task_of_another_kind_can_be_asked(infer):
    """The job is named, as for a foundation; the labels are part of what the output depends on."""
    asked = [request(1), request(2)]
    by_job, _ = infer(asked, "next", "next", job="likelihood")
    by_kind, _ = infer(asked, "plausible", "plausible")
    for a, b in zip(by_job, by_kind, strict=True):
        np.testing.assert_allclose(a["log_odds"], b["log_odds"])
    gin.bind_parameter("LikelihoodAnswers.contrast", ("disliked", "liked"))
    other, _ = infer(asked, "plausible", "other")
    assert other != by_kind


def test_a_data_set_that_the_model_never_saw(infer, served, served_model):
    """PREPARED brings the columns and the template; the task brings the prompts."""
    gin.bind_parameter("LikelihoodAnswers.contrast", ("liked", "disliked"))
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
    expected = [odds(served_model, history, f"Book {n}") for n in (3, 0)]
    np.testing.assert_allclose(found[0]["log_odds"], expected, atol=3e-5)
    with pytest.raises(ConfigError, match="holds the data set 'books'"):
        infer(asked, "ctr", "scored", prepared=books)


def test_what_cannot_be_scored_is_refused(infer, served, served_model, tmp_path):
    spec = json.loads(json.dumps(served_films.SPEC))
    spec["template"]["candidate"] = "[{title}]"
    run = served_films.copy_run(served / "run", tmp_path / "run", ["plausible"], spec)
    asked = [request(1) | {"candidates": [{"title": "\u200b", "genre": "drama"}]}]
    found, rejected = infer(asked, "plausible", model_dir=run)
    assert not found
    assert "'candidates[0]' cannot be scored" in rejected[0]["reason"]
    labels = Contrast("a a a a a a a liked", "a a a a a a a disliked")
    narrow = served_model.likelihood_scorer(labels, "plausible", target_length=8)
    with pytest.raises(ConfigError, match="do not fit"):
        narrow.check("Film A")
