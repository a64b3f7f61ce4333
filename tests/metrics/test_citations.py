"""What texts cite: true by construction, and told apart where a pair of value and item is wrong."""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from m6rec_jax.metrics.faithfulness import true_citations
from m6rec_jax.metrics.text_metrics import citations_of
from m6rec_jax.text.format_strings import Template
from m6rec_jax.text.records import Item
from m6rec_jax.text.writing_templates import WritingTemplate, common_values

GENRES, PEOPLE = ("comedy", "film-noir", "war", "war drama"), ("Ann Lee", "Bo", "Cher Fox")
# Names with a full stop, a value and another name in them, and one that is a value itself.
NAMES = ("Mr. Fox (1990)", "War Drama", "War", "Like Bo, With Ann", "Bo", "Fox (1990)")
TEXTS = {
    False: "[By {shared_director}, like {shared_director_in}.][ {shared_genres} again, "
    "like {shared_genres_in}.][ {awards}]",
    True: "[Like {shared_director_in}, by {shared_director}.][ Like {shared_genres_in}: "
    "{shared_genres}.]",
}


def template(name_first=False):
    return WritingTemplate(text=Template.parse(TEXTS[name_first]), liked=Template.parse("{title}"))


def catalogue(rows):
    names = ("title", "genres", "director")
    return [Item(f"i{n}", dict(zip(names, row, strict=True))) for n, row in enumerate(rows)]


def some(values):
    return st.lists(st.sampled_from(values), min_size=1, unique=True).map(tuple)


CATALOGUES = st.tuples(*(st.tuples(st.just(name), some(GENRES), some(PEOPLE)) for name in NAMES))


@given(CATALOGUES.map(catalogue), st.booleans(), st.data())
def test_what_is_put_together_of_what_holds_is_true(items, name_first, data):
    own, liked = template(name_first), data.draw(st.permutations(range(1, len(NAMES))))
    liked = liked[: data.draw(st.integers(1, 5))]
    common = common_values(items, own.shared)
    known = own.liked_items(items[place] for place in liked)
    parts = own.choices(items[0], known, common)
    texts = [" ".join(filter(None, choice)) for choice in itertools.product(*parts)][:50]
    share = true_citations(texts, citations_of(own, items, [liked] * len(texts)))
    assert share == 1.0 if any(texts) else share is None


@given(CATALOGUES.map(catalogue), st.data())
def test_pairs_are_counted_one_by_one(items, data):
    """Against the pairs that texts were written of."""
    liked = data.draw(st.sets(st.sampled_from(range(len(NAMES))), min_size=1))
    texts, told = [], []
    # What no item has is not known as a value.
    people, genres = (
        sorted({value for item in items for value in item.attributes[column]})
        for column in ("director", "genres")
    )
    for _ in range(data.draw(st.integers(1, 4))):
        by, like, genre, other = (
            data.draw(st.sampled_from(of))
            for of in (people, range(len(NAMES)), genres, range(len(NAMES)))
        )
        texts.append(f"By {by}, like {NAMES[like]}. {genre} again, like {NAMES[other]}.")
        told.append(like in liked and by in items[like].attributes["director"])
        told.append(other in liked and genre in items[other].attributes["genres"])
    citations = citations_of(template(), items, [sorted(liked)] * len(texts))
    assert true_citations(texts, citations) == pytest.approx(sum(told) / len(told))


FILMS = catalogue(
    [
        ("Fargo (1996)", ("crime", "comedy"), ("Joel Coen",)),
        ("Heat (1995)", ("crime",), ("Michael Mann",)),
        ("Ali (2001)", ("drama",), ("Michael Mann",)),
    ]
)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("By Michael Mann, like Heat (1995). crime again, like Fargo (1996).", 1.0),
        ("By Michael Mann, like Fargo (1996).", 0.0),  # liked, but not by him
        ("drama, crime again, like Heat (1995).", 0.0),  # one of two
        ("By Michael Mann, like Ali (2001).", 0.0),  # by him, but not liked
        ("By Michael Mann, like Heat (1995). crime again, like Ali (2001).", 0.5),
        ("Simply like Fargo (1996)", 1.0),  # for nothing
        ("crime again", None),
    ],
)
def test_an_item_must_be_liked_and_have_what_it_is_cited_for(text, share):
    citations = citations_of(template(), FILMS, [[0, 1]])
    assert true_citations([text], citations) == share
