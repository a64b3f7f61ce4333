"""Every reply is of the grammar, and what it says of an item is true."""

import re

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from m6rec_jax.dialogue.catalogue import DialogueCatalogue
from m6rec_jax.dialogue.replies import ReplyGrammar
from m6rec_jax.dialogue.wishes import ForGroup, Like, Values, Years, obeying
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.metrics.faithfulness import AttributeDictionary
from m6rec_jax.metrics.phrases import phrase_key
from m6rec_jax.text.records import Item
from tests.dialogue.films import CATALOGUE, GRAMMAR, ITEMS, TITLES
from tests.dialogue.test_wishes import PLACES, WISHES

COLUMNS = ("genres", "director", "cast", "country")
# Titles that are put in place of themselves, so that their words are no values.
TITLE = "|".join(map(re.escape, sorted(TITLES, key=len, reverse=True)))
OFFER = re.compile(
    rf"(?:I know no more (?P<missing>.+), only (?P<left>.+?)\. )?"
    rf"(?:How about (?P<a>{TITLE})\?|You could try (?P<b>{TITLE})\.|I recommend (?P<c>{TITLE})\.)"
    rf"(?: It is (?P<said>an? .+)\.)?"
)
DICTIONARY = AttributeDictionary(
    {c: {v for item in ITEMS for v in item.attributes[c]} for c in COLUMNS}, neutral=TITLES
)


def assert_true(place, said):
    """Every value and year that is said is the item's own; `said` begins with an article."""
    item = ITEMS[place]
    assert re.match(r"an [aeiou]|a [^aeiou]", said)
    for mention in DICTIONARY.mentions(said):
        own = {phrase_key(v) for column in mention.values for v in item.attributes[column]}
        assert mention.key in own, (said, item)
    for year in re.findall(r"\b\d{4}\b", said):
        assert int(year) == item.attributes["year"]


@given(st.lists(WISHES, max_size=4), st.sets(PLACES))
def test_offers(wishes, excluded):
    found = obeying(CATALOGUE, wishes, excluded)
    places = [int(place) for place in np.flatnonzero(found.allowed)[:3]]
    offers = GRAMMAR.recommend(places, found)
    if not places:
        assert offers == ["I know no more films, only those that we spoke of."]
        return
    for text in offers:
        offer = OFFER.fullmatch(text)
        assert offer, text
        assert bool(offer["missing"]) == bool(found.dropped)
        title = offer["a"] or offer["b"] or offer["c"]
        if offer["said"]:
            assert_true(next(place for place in places if TITLES[place] == title), offer["said"])


@given(PLACES, st.sampled_from([*COLUMNS, "year"]), st.lists(WISHES, max_size=3))
def test_answers_and_reasons(place, column, wishes):
    for text in GRAMMAR.answer(place, column):
        if "not" in text:
            assert not ITEMS[place].attributes[column]
            continue
        assert text.startswith(f"{TITLES[place]} is ")
        assert_true(place, text[len(TITLES[place]) + 4 : -1])
    for text in GRAMMAR.explain(place, wishes):
        assert f"{TITLES[place]} is " in text or text == "It goes with what you told me."


def wanted(column, *names):
    return Values(frozenset((column, phrase_key(name)) for name in names))


def test_words_of_wishes():
    comedy, hanks = wanted("genres", "comedy"), wanted("cast", "Tom Hanks")
    said = GRAMMAR.wished
    assert said([hanks, comedy, Years(1990, 1999)]) == "comedy films with Tom Hanks from the 1990s"
    assert said([wanted("genres", "war", "drama")]) == "drama or war films"
    assert said([Years(1996)]) == "films newer than 1995"
    assert said([Years(until=1979), ForGroup("children")]) == "films older than 1980 for children"
    assert said([Like((0,)), Values(comedy.values, True), Values(hanks.values, True)]) == (
        "films like Fargo (1996) other than comedy films and films with Tom Hanks"
    )


def test_reasons_are_tied_to_the_wishes():
    found = obeying(CATALOGUE, [wanted("genres", "comedy"), Years(1980, 1989)], ())
    assert GRAMMAR.recommend([4], found)[0] == (
        "How about Big (1988)? It is a comedy film from 1988."
    )
    found = obeying(CATALOGUE, [Like((5,))], [5])
    assert GRAMMAR.recommend([4], found)[0] == (
        "How about Big (1988)? It is a comedy film with Tom Hanks."
    )
    found = obeying(CATALOGUE, [wanted("genres", "horror"), ForGroup("children")], ())
    assert GRAMMAR.recommend([5], found)[0] == (
        "I know no more horror films for children, only films for children. "
        "How about Toy Story (1995)? It is an animation and children's film."
    )
    comedy, for_children = wanted("genres", "comedy"), ForGroup("children")
    assert GRAMMAR.explain(3, [comedy, for_children, wanted("genres", "horror")])[0] == (
        "You asked for horror films, and Alien (1979) is a horror film."
    )
    hanks = frozenset((column, phrase_key("Tom Hanks")) for column in ("director", "cast"))
    assert GRAMMAR.explain(4, [Values(hanks)])[0] == (
        "You asked for films with Tom Hanks, and Big (1988) is a film with Tom Hanks."
    )
    assert GRAMMAR.answer(0, "director") == ["Fargo (1996) is a film by Joel Coen and Ethan Coen."]
    assert GRAMMAR.answer(0, "year") == ["Fargo (1996) is a film from 1996."]
    assert CATALOGUE.last_year == 1996


def test_where_nothing_is_known():
    bare = DialogueCatalogue([Item("a"), Item("b")], ["A", "B"], DialogueWords())
    grammar, found = ReplyGrammar(bare), obeying(bare, [Years(1990)], [0])
    assert grammar.recommend([1], found)[0] == (
        "I know no more items newer than 1989, only other items. How about B?"
    )
    assert grammar.answer(0, "year") == ["That is not known of A.", "I do not know that of A."]
    assert grammar.ask() == ["What would you like? You may name items that you liked."]
