"""The filter against a plain loop, and how wishes of later turns change those before."""

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from m6rec_jax.dialogue.state import USER, DialogueState
from m6rec_jax.dialogue.wishes import ForGroup, Like, Unseen, Values, Years, mask, obeying, updated
from tests.dialogue.films import CATALOGUE, ITEMS, READER

VALUES = sorted(CATALOGUE.spellings)
PLACES = st.integers(0, len(ITEMS) - 1)
SOME = st.frozensets(st.sampled_from(VALUES), min_size=1, max_size=3)
YEARS = st.integers(1915, 2000)
WISHES = st.one_of(
    st.builds(Values, SOME, st.booleans()),
    st.builds(Years, st.just(-math.inf) | YEARS, st.just(math.inf) | YEARS, st.booleans()),
    st.just(ForGroup("children")),
    st.builds(lambda place: Like((place,)), PLACES),
    st.just(Unseen()),
)


def has(item, values):
    spelled = {(column, CATALOGUE.spellings[column, key]) for column, key in values}
    return any(text in item.attributes[column] for column, text in spelled)


def obeys(place, wish, seen):
    """One item at a time."""
    item = ITEMS[place]
    if isinstance(wish, Values):
        return has(item, wish.values) != wish.refused
    if isinstance(wish, Years):
        year = item.attributes["year"]
        if year is None:
            return False
        inside = wish.since <= year <= wish.until
        return inside != wish.outside
    if isinstance(wish, ForGroup):
        group = CATALOGUE.words.groups[wish.name]
        genres = set(item.attributes["genres"])
        wanted = genres & {*group.wanted["genres"]}
        return bool(wanted) and not genres & {*group.unwanted["genres"]}
    if isinstance(wish, Like):
        for column in ("genres", "director", "cast", "country"):
            for value in ITEMS[wish.places[0]].attributes[column]:
                holders = [other for other in ITEMS if value in other.attributes[column]]
                if item in holders and 2 * len(holders) <= len(ITEMS):
                    return True
        return False
    return place not in seen


@given(WISHES, st.sets(PLACES))
def test_a_mask_is_what_a_loop_finds(wish, seen):
    found = [obeys(place, wish, seen) for place in range(len(ITEMS))]
    np.testing.assert_array_equal(mask(wish, CATALOGUE, seen), found)


@given(st.lists(WISHES, max_size=5), st.sets(PLACES), st.sets(PLACES))
def test_what_may_be_recommended_obeys(wishes, excluded, seen):
    found = obeying(CATALOGUE, wishes, excluded, seen)
    assert sorted(map(repr, (*found.kept, *found.dropped))) == sorted(map(repr, wishes))
    allowed = set(np.flatnonzero(found.allowed))
    for place in range(len(ITEMS)):
        good = all(obeys(place, wish, seen) for wish in found.kept) and place not in excluded
        assert (place in allowed) == good
    if len(excluded) < len(ITEMS):
        assert allowed
    # No dropped wish could have been kept with those that matter more.
    if len(found.dropped) == 1 and allowed:
        assert not any(obeys(place, found.dropped[0], seen) for place in allowed)


def test_the_least_important_wish_goes():
    comedy = Values(frozenset({("genres", ("comedy",))}))
    war = Values(frozenset({("genres", ("war",))}))
    twenties = Years(1920, 1929)
    assert obeying(CATALOGUE, [war, twenties], ()).dropped == (twenties,)
    # Of equals what was said last is kept.
    assert obeying(CATALOGUE, [twenties, war], ()).dropped == (war,)
    assert obeying(CATALOGUE, [ForGroup("children"), war], ()).dropped == (war,)
    assert obeying(CATALOGUE, [comedy, twenties], ()).allowed.tolist() == [
        n == 8 for n in range(12)
    ]
    assert obeying(CATALOGUE, [comedy, twenties], [8]).dropped == (twenties,)
    assert not obeying(CATALOGUE, [comedy], range(12)).allowed.any()


def test_later_turns():
    genre = {n: Values(frozenset({("genres", (n,))})) for n in ("comedy", "drama", "war")}
    person = Values(frozenset({("cast", ("tom", "hanks"))}))
    state = updated((), [genre["comedy"], Years(1990, 1999)], adds=False)
    assert state == (genre["comedy"], Years(1990, 1999))
    # Of another column: beside it; of the same one: in its place; "also": beside it.
    state = updated(state, [person], adds=False)
    assert state == (person, genre["comedy"], Years(1990, 1999))
    state = updated(state, [genre["drama"]], adds=False)
    assert state == (genre["drama"], person, Years(1990, 1999))
    state = updated(state, [genre["war"]], adds=True)
    assert state == (genre["war"], genre["drama"], person, Years(1990, 1999))
    # Years replace years; what is refused is no longer wanted, and the other way round.
    state = updated(state, [Values(genre["war"].values, True), Years(1980)], adds=False)
    assert state == (Values(genre["war"].values, True), *(Years(1980), genre["drama"], person))
    state = updated(state, [genre["war"]], adds=False)
    assert state == (genre["war"], Years(1980), person)
    refused = Values(genre["war"].values, True)
    assert updated((refused,), [genre["drama"]], adds=False) == (genre["drama"], refused)
    both = updated((ForGroup("children"), Unseen()), [Like((0,))], adds=False)
    assert both == (Like((0,)), ForGroup("children"), Unseen())
    assert updated(both, [Like((1,))], adds=False)[:1] == (Like((1,)),)
    assert Like((0,)) not in updated(both, [Like((1,))], adds=False)


def test_also_widens_years_and_what_items_are_like() -> None:
    state = updated((Years(1980, 1989), Like((0,))), [Years(1990, 1999), Like((3,))], adds=True)
    assert state == (Years(1980, 1999), Like((0, 3)))
    assert updated((Years(until=1989),), [Years(1995)], adds=True) == ()
    # What both have is narrower.
    narrowed = updated((Years(until=2000),), [Years(1991)], adds=True)
    assert narrowed == (Years(1991, 2000),)


def test_refused_years_hold_beside_others() -> None:
    seventies, eighties = Years(1970, 1979, outside=True), Years(1980, 1989, outside=True)
    assert updated((seventies,), [eighties], adds=False) == (eighties, seventies)
    assert updated((Years(1981),), [eighties], False) == (eighties, Years(1981))
    # What leaves nothing of the other takes its place.
    assert updated((Years(1982, 1985),), [eighties], adds=False) == (eighties,)
    assert updated((eighties,), [Years(1980, 1989)], adds=False) == (Years(1980, 1989),)


def test_a_group_is_withdrawn() -> None:
    state = DialogueState(READER)
    state.hear(USER, "A comedy for my kids, nothing I have seen")
    assert ForGroup("children") in state.wishes
    state.hear(USER, "It is not for children any more")
    assert ForGroup("children") not in state.wishes
    assert Values(frozenset({("genres", ("comedy",))})) in state.wishes
