"""What turns of a user are read as: every kind of wish, in many words."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from m6rec_jax.dialogue.catalogue import DialogueCatalogue
from m6rec_jax.dialogue.reading import DialogueReader
from m6rec_jax.dialogue.wishes import ForGroup, Like, Unseen, Values, Years
from m6rec_jax.dialogue.words import DialogueWords
from m6rec_jax.errors import ConfigError
from m6rec_jax.metrics.phrases import phrase_key
from m6rec_jax.text.records import Item
from tests.dialogue.films import CATALOGUE, NAMES, READER


def value(column, text):
    return frozenset({(column, phrase_key(text))})


def wanted(*texts, column="genres"):
    return Values(frozenset().union(*(value(column, text) for text in texts)))


def unwanted(text, column="genres"):
    return Values(value(column, text), refused=True)


COMEDY, HORROR = wanted("comedy"), wanted("horror")
HANKS = value("cast", "Tom Hanks") | value("director", "Tom Hanks")
FOR_CHILDREN = value("genres", "children's") | value("genres", "animation")


@pytest.mark.parametrize(
    ("said", "wishes"),
    [
        ("Hello there", ()),
        ("I would like a comedy, please.", (COMEDY,)),
        ("a science fiction movie", (wanted("sci-fi"),)),
        ("comedy or horror", (wanted("comedy", "horror"),)),
        ("a comedy, drama or horror", (wanted("comedy", "drama", "horror"),)),
        (
            "a comedy, with Tom Hanks or Al Pacino",
            (COMEDY, wanted("Tom Hanks", "Al Pacino", column="cast")),
        ),
        # Negation, as far as it reaches.
        ("no horror", (unwanted("horror"),)),
        ("nothing with horror or war", (unwanted("horror"), unwanted("war"))),
        ("I don't want to see any horror. A comedy", (unwanted("horror"), COMEDY)),
        ("a comedy but no comedy", (unwanted("comedy"),)),
        ("no horror. Actually, a horror film", (HORROR,)),
        ("No, a comedy", (COMEDY,)),
        *((f"{no} A comedy", (COMEDY,)) for no in ("No.", "No...", "I don't like it.", "No TV.")),
        ("My wife hates horror, she prefers comedy", (unwanted("horror"), COMEDY)),
        ("I hate horror more than drama", (unwanted("horror"), unwanted("drama"))),
        ("I don't like films ft. Cher", (unwanted("Cher", "cast"),)),
        ("I don't want a horror or a comedy", (unwanted("horror"), unwanted("comedy"))),
        # What is not refused, though a word says no.
        ("I'm not sure, maybe a comedy", (COMEDY,)),
        ("I didn't like Fargo but I want a comedy", (COMEDY,)),
        ("nothing with horror, it's for my kids", (unwanted("horror"), ForGroup("children"))),
        ("A comedy, no horror, from the 90s", (COMEDY, unwanted("horror"), Years(1990, 1999))),
        ("Nothing violent, like Alien", ()),
        ("I hate horror, for example Alien", (unwanted("horror"),)),
        (
            "nothing with Tom Hanks, with Al Pacino",
            (unwanted("Tom Hanks", "cast"), unwanted("Al Pacino", "cast")),
        ),
        ("Anyone but Tom Hanks", (Values(HANKS, True),)),
        # People: of one column where the words say which.
        ("a film by tom hanks", (wanted("Tom Hanks", column="director"),)),
        ("Tom Hanks", (Values(HANKS),)),
        (
            "starring Al Pacino or Tom Hanks",
            (wanted("Al Pacino", "Tom Hanks", column="cast"),),
        ),
        ("what is cher", ()),
        # Years.
        ("films of the 90s", (Years(1990, 1999),)),
        ("between 1980 and 1995", (Years(1980, 1995),)),
        ("the 70s, 80s or 90s", (Years(1970, 1999),)),
        ("not from the 70s or older", (Years(until=1979, outside=True),)),
        ("My wife is in her 30s, a comedy", (COMEDY,)),
        ("Since I loved Fargo, a comedy", (COMEDY,)),
        ("Something to watch after work, from the 90s", (Years(1990, 1999),)),
        ("Fargo was fine. Not older than 20 years", ()),
        ("I liked Fargo. Something newer than that one", (Years(1997),)),
        ("between 1890 and 1900", (Years(1890, 1900),)),
        ("before 1980 or after 1990", ()),
        ("after 1980 and before about 1990", (Years(1981, 1989),)),
        ("from 1990 and after work a comedy", (COMEDY, Years(1990, 1990))),
        ("1995 or newer", (Years(1995),)),
        ("not from the 90s", (Years(1990, 1999, outside=True),)),
        ("newer than 1980 and older than 1990", (Years(1981, 1989),)),
        # No year is newer and older: any is.
        ("something old or something new", ()),
        ("something new", (Years(1987),)),
        ("newer than Big", (Years(1989),)),
        ("older than Heat (1995)", (Years(until=1994),)),
        # For somebody; not seen; like another.
        ("something for my kids", (ForGroup("children"),)),
        ("something I haven't seen with Tom Hanks", (Unseen(), wanted("Tom Hanks", column="cast"))),
        ("like Fargo", (Like((0,)),)),
        ("like Fargo or Alien but funny", (Like((0, 3)), COMEDY)),
        ("similar to Toy Story but not animated", (Like((5,)), unwanted("animation"))),
        ("It looks like we watched Fargo", ()),
        (f"I like Fargo ({'1' * 5000})", ()),  # more digits than Python reads
        ("I also like Fargo", ()),
        ("A comedy, I don't care which", (COMEDY,)),
        ("A comedy from the 90s, never mind the year", (COMEDY, Years(1990, 1999))),
    ],
)  # fmt: skip
def test_wishes(said, wishes):
    assert READER.read(said).wishes == wishes


# The first line is of words that the rule was made for; the others were worded once it was there.
@pytest.mark.parametrize(
    "said",
    [
        *(
            "for kids",
            "My niece of six is visiting",
            "for a six-year-old",
            "my grandson",
            "she is 6",
        ),
        *("Our nephew, who is five, wants a film", "what do eight year olds like?"),
        *("My boss's daughter comes, a girl of nine", "My brother is seven and bored"),
        *("My nine year old nephew", "Something that grandchildren watch", "he's 4"),
        *("I am watching a film with someone aged three", "a movie for ages 4 to 8"),
        *("My kids are 14 and 6", "a girl, 6 years old", "My kids are 13, 9 and 5"),
        *("she turns 6 tomorrow", "He is 6 what do you suggest"),
        *("our granddaughter turns eleven", "for an 18 months old", "a film for my 7yo"),
    ],
)
def test_relations_and_ages_are_for_children(said):
    assert READER.read(said).wishes == (ForGroup("children"),)


def bare_reader(names, words):
    return DialogueReader(DialogueCatalogue([Item("")] * len(names), names, words))


@pytest.mark.parametrize(
    ("said", "wishes"),
    [
        ("My niece is nineteen", ()),
        ("a comedy for my 25-year-old son", (COMEDY,)),
        ("a ten-year-old comedy", (COMEDY,)),
        ("a ten year old film", (Years(until=1986),)),
        ("who is in Fargo?", ()),
        ("my daughter is one of those who love horror", (ForGroup("children"), HORROR)),
        ("nothing for my niece of six", (Values(FOR_CHILDREN, True),)),
    ],
)
def test_ages_of_others_are_not(said, wishes):
    assert READER.read(said).wishes == wishes


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("i loved toy story", {5}),  # several words: in any case
        ("big is fine, heat too", set()),  # one word: with its own capitals
        ("Big is fine", {4}),
        ("I liked Heat", {1, 2}),
        ("I liked Heat (1986)", {2}),
        ("1900 is long", {11}),
        ("films from 1900", set()),
        ("I like Fargo from 1996 and 1900", {0, 11}),
    ],
)
def test_names(said, named):
    assert set(READER.read(said).named) == named


MISSPELT = bare_reader(
    ["Toy Story", "Star Wars", "Pride and Prejudice", "Othello", "Big", "Something Wild"],
    DialogueWords(),
)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("I liked Toy Storry and star war.", {0, 1}),
        ("pride and prejudise was great", {2}),
        ("Have you seen Otello? Or 'Toy Story'?", {0, 3}),
        ("Hello! Something newer, please", set()),
        ("otello", set()),
        ("I loved something, it was wild", set()),
    ],
)
def test_misspelt_titles_are_meant(said, named):
    assert set(MISSPELT.read(MISSPELT.corrected(said)).named) == named


@given(
    st.sampled_from(NAMES), st.sampled_from(["I liked {}.", "{} was great", "like {}, but newer"])
)
def test_a_title_as_it_is_written_stays(name, said):
    said = said.format(name)
    assert READER.corrected(said) == said


def test_what_is_compared_with_the_last_item():
    assert READER.read("something newer", [3]).wishes == (Years(1980),)
    assert READER.read("newer than that", [3, 4]).wishes == (Years(1989),)
    # Nothing is newer than the last year.
    assert READER.read("not that old", [0]).wishes == (Years(1996),)
    assert READER.read("older", [3, 4]).wishes == (Years(until=1978),)
    assert READER.read("I saw it before", [3]).wishes == ()


def test_questions_and_thanks():
    assert READER.read("Who directed Fargo?").asked == "director"
    # A digit of another script is no year.
    assert READER.read("Who directed Fargo (፩)?").asked == "director"
    assert READER.read("when was it made?").asked == "year"
    assert READER.read("Why?").acts == {"why"}
    assert READER.read("Thanks, bye").acts == {"thanks", "bye"}
    assert READER.read("also comedies").adds
    assert READER.read("never mind, surprise me").clears


@pytest.mark.parametrize(
    ("said", "liked"),
    [
        ("I hated Fargo but loved Heat", {1, 2}),
        ("I hated Fargo and Heat", set()),
        ("Since I loved Fargo, a comedy", {0}),
        ("Something I haven't seen. I loved Fargo", {0}),
        ("I haven't seen Fargo", set()),
    ],
)
def test_what_is_liked(said, liked):
    assert set(READER.read(said).liked) == liked


GENRES = sorted(text for v, text in CATALOGUE.spellings.items() if v[0] == "genres")
DECADES = [1920, 1970, 1980, 1990]


@given(
    st.sampled_from(GENRES),
    st.sampled_from([None, *GENRES]),
    st.sampled_from([None, *DECADES]),
    st.sampled_from(["Show me {} films{}{}.", "i want a {} movie{}{}", "Any {} film{}{}?"]),
)
def test_what_is_said_is_read(genre, refused, decade, phrase):
    """A wish, told in words, is the wish that is read."""
    refused = None if refused == genre else refused
    no = f", but no {refused}" if refused else ""
    years = f" from the {decade}s" if decade else ""
    wishes = [wanted(genre)]
    wishes += [unwanted(refused)] if refused else []
    wishes += [Years(decade, decade + 9)] if decade else []
    assert list(READER.read(phrase.format(genre, years, no)).wishes) == wishes


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"attributes": {"genres": {"syas": ""}}}, "syas"),
        ({"attributes": {"genres": {"says": "{item}"}}}, "{value}"),
        ({"also_called": "movie"}, "also_called"),
        ({"groups": {"kids": {"says": "{item}"}}}, "wanted"),
    ],
)
def test_wrong_words_are_named(words, named):
    with pytest.raises(ConfigError, match=named):
        DialogueWords(**words)


WORDS = (
    *("not", "no", ",", ".", "or", "and", "newer than", "like", "the", "90s", "1995", "(", ")"),
    *("comedy", "kids", "Fargo", "Tom Hanks", "with", "too", "é"),
)


@given(st.lists(st.sampled_from(WORDS)))
def test_nothing_breaks_it(words):
    reading = READER.read(" ".join(words), [0])
    assert all(0 <= place < len(NAMES) for place in reading.named)
