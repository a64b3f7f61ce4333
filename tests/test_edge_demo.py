"""The box's demo: titles as people write them, and numpy in place of the model."""

import numpy as np
import pytest

import m6rec_jax
from m6rec_jax.cli import main
from m6rec_jax.edge_demo import MODEL, EdgeDemo, named
from m6rec_jax.errors import ConfigError


@pytest.fixture(scope="module")
def demo():
    return EdgeDemo()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Star Wars", "Star Wars: Episode IV – A New Hope (1977)"),
        ("star wars 1980", "Star Wars: Episode V – The Empire Strikes Back (1980)"),
        ("fly (1958)", "The Fly (1958)"),
        ("amelie", "Amélie (2001)"),
        ("Singing in the rain", "Singin' in the Rain (1952)"),
    ],
)
def test_a_film_is_found_by_what_people_call_it(demo, written, meant):
    assert named(demo.find(written)) == meant


@pytest.mark.parametrize(
    ("written", "near"), [("Aliens Atack", "Aliens in the Attic (2009)"), ("zzzz", "'zzzz'")]
)
def test_what_is_not_found_is_said_with_what_is_near(demo, written, near):
    with pytest.raises(ConfigError, match="no film") as problem:
        demo.find(written)
    assert near in str(problem.value)


def test_numpy_computes_what_the_model_computes(demo):
    """Scores and vectors of the same file by JAX, whose products are rounded to bfloat16."""
    recommender = m6rec_jax.load(MODEL)
    scoring, retrieval = ("film_viewers_ctr", "film_viewers_retrieval")
    ids = list(demo.items)[:40]
    time = demo.last_time + 1000.0
    history = [
        {"item": demo.find(title).id, "time": time - 10 + place, "value": value}
        for place, (title, value) in enumerate([("Alien", 1), ("Titanic", 0), ("Heat", 1)])
    ]
    expected = recommender.score(ids, history=history, time=time, task=scoring)
    scores = demo.score(ids, history, time)
    np.testing.assert_allclose(scores, [one.score for one in expected], atol=0.01)
    assert np.ptp(scores) > 0.2

    found = demo.retrieve(3000, history, time)
    assert len(found) == len(set(found))
    assert not {behaviour["item"] for behaviour in history} & set(found)
    _, vectors = recommender.embed_items(found[:50], task=retrieval)
    places = [demo._well_known[0].index(id_) for id_ in found[:50]]
    np.testing.assert_allclose(demo._well_known[1][places], vectors, atol=0.01)


def test_options_of_the_other_demo_are_refused(capsys):
    assert main(["demo", "--liked", "Alien"]) != 0
    assert "--liked is for `m6rec demo` with --edge" in capsys.readouterr().err
    assert main(["demo", "--edge", "--output", "runs/demo"]) != 0
    assert "--output is for `m6rec demo` without --edge" in capsys.readouterr().err
