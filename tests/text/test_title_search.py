"""Titles of the packed model's catalogue are found as people write them."""

import difflib
import io
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.text.title_search import SURE, TitleSearch

PACKED = Path(__file__).parents[2] / "m6rec_jax" / "edge_model" / "films.m6rec"


@pytest.fixture(scope="module")
def films():
    with zipfile.ZipFile(PACKED) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/catalogue.parquet"))
        table = pq.read_table(io.BytesIO(archive.read(name)))
    records = table["attributes"].to_pylist()
    return (
        [record["title"] for record in records],
        [record["year"] for record in records],
        table["train_count"].to_pylist(),
    )


@pytest.fixture(scope="module")
def search(films):
    return TitleSearch(*films)


@pytest.mark.parametrize(
    ("written", "title", "year"),
    [
        ("Star Wars", "Star Wars: Episode IV – A New Hope", 1977),
        ("star wars 1999", "Star Wars: Episode I – The Phantom Menace", 1999),
        ("empire strikes back", "Star Wars: Episode V – The Empire Strikes Back", 1980),
        ("toy storry", "Toy Story", 1995),
        ("Matrix, The", "The Matrix", 1999),
        ("godfather part 2", "The Godfather Part II", 1974),
        ("shawshank", "The Shawshank Redemption", 1994),
        ("blade runer", "Blade Runner", 1982),
        ("amelie", "Amélie", 2001),
        ("spiderman", "Spider-Man", 2002),
        ("2001", "2001: A Space Odyssey", 1968),
        ("psycho 1998", "Psycho", 1998),
        ("the thing (1982)", "The Thing", 1982),
        ("singing in the rain", "Singin' in the Rain", 1952),
    ],
)
def test_misspelt_and_shortened_titles_are_found(films, search, written, title, year):
    titles, years, _ = films
    (place,) = search.find(written, k=1, at_least=SURE)
    assert (titles[place], years[place]) == (title, year)


@pytest.mark.parametrize("written", ["Aliens 2", "Gone with the Wind", "zzzz", "?!", "", "  "])
def test_a_film_that_is_not_there_is_none(search, written):
    assert search.find(written, at_least=SURE) == []


def test_titles_with_years_in_brackets_and_ties_by_place():
    search = TitleSearch(["Fly, The (1986)", "Fly, The (1958)", "..."])
    assert search.find("the fly") == [0, 1]
    assert search.find("fly 1958") == [1, 0]
    assert search.find("...") == [2]
    assert TitleSearch([]).find("fly") == []


WORDS = st.text("abcdefghij", min_size=3, max_size=9)
TITLES = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(" ".join), min_size=1, unique=True)


@given(titles=TITLES, data=st.data())
def test_a_title_as_it_is_written_is_first(titles, data):
    place = data.draw(st.integers(0, len(titles) - 1))
    assert TitleSearch(titles).find(titles[place].upper())[0] == place


@given(titles=TITLES, data=st.data())
def test_what_is_found_is_as_good_as_the_likest_whole_title(titles, data):
    query = data.draw(WORDS)
    ratios = [difflib.SequenceMatcher(None, query, title).ratio() for title in titles]
    if max(ratios) >= SURE:
        assert TitleSearch(titles).find(query, at_least=SURE)
