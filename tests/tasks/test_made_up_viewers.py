"""Made-up viewers: the same from the same seed, and with tastes that counting finds again."""

import itertools
from collections import Counter

import numpy as np
import pytest

from m6rec_jax.metrics.classification import auc
from tasks.film_viewers.source import fame, make_viewers, people
from tasks.films.table import Film

GENRES = [f"Genre {n}" for n in range(12)]


@pytest.fixture(scope="module")
def films():
    rng = np.random.default_rng(0)
    return tuple(
        Film(
            title=f"Film {n}",
            year=int(rng.integers(1950, 2015)),
            director=(f"Director {rng.integers(60)}",),
            cast=tuple(f"Actor {a}" for a in rng.choice(90, 3, replace=False)),
            country=(f"Country {rng.integers(4)}",),
            genre=tuple(GENRES[g] for g in rng.choice(12, rng.integers(1, 4), replace=False)),
            reviews=int(rng.exponential(40)),
            awards="Won 2 Oscars." if n % 50 == 0 else None,
            meter=int(rng.integers(101)),
        )
        for n in range(600)
    )


def test_a_viewer_depends_on_the_seed_and_its_number_alone(films):
    all_of_them = list(make_viewers(films, 30, seed=3))
    assert all_of_them == list(make_viewers(films, 30, seed=3))
    assert all_of_them[:50] == list(make_viewers(films, 9, seed=3))[:50]
    assert all_of_them != list(make_viewers(films, 30, seed=4))
    for _, own in itertools.groupby(all_of_them, key=lambda one: one.viewer):
        watched = list(own)
        assert len({one.film for one in watched}) == len(watched) >= 12
        times = [one.time for one in watched]
        assert times == sorted(set(times))
    assert 0.4 < np.mean([one.liked for one in all_of_them]) < 0.6


def test_tastes_are_found_by_counting_and_fame_by_what_is_watched(films):
    known = fame(films)
    watched = list(make_viewers(films, 200, seed=0))
    times = Counter(one.film for one in watched)
    famous = np.argsort(-known)
    assert sum(times[i] for i in famous[:100]) > 2 * sum(times[i] for i in famous[-100:])
    labels, by_taste, by_fame = [], [], []
    for _, group in itertools.groupby(watched, key=lambda one: one.viewer):
        likes = Counter()
        for place, one in enumerate(group):
            values = (*films[one.film].genre, *people(films[one.film]))
            if place >= 12:  # something can be counted before
                labels.append(one.liked)
                by_taste.append(np.mean([likes[value] for value in values]))
                by_fame.append(known[one.film])
            likes.update(dict.fromkeys(values, 2 * one.liked - 1))
    found, guessed = (auc(np.array(labels), np.array(scores)) for scores in (by_taste, by_fame))
    assert found > max(0.6, guessed + 0.05)
