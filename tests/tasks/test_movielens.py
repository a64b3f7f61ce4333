import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.data.dataset.check import check_dataset
from m6rec_jax.data.dataset.reading import Dataset
from m6rec_jax.data.getting import sources
from tasks.films.table import Film, FilmTable, natural_title, normalised_title
from tasks.movielens import source as movielens
from tests.tasks.film_database import write_films

# Titles and years stand in every way that MovieLens-100k writes them.
ITEMS = [
    ("1", "Toy Story", "1995", "Animation Children's Comedy"),
    ("2", "Godfather, The", "1972", "Action Crime Drama"),
    ("3", "Misérables, Les", "1995", "Drama Musical"),
    ("4", "Land Before Time III (1995)", "V", "Animation"),
    ("5", "unkonwn", "unkonwn", "unknown"),
    ("6", "Hate (Haine, La)", "1995", "Drama"),
    ("7", "Sliding Doors", "1998", "Drama Romance"),
]
USERS = [("1", "24", "M", "technician", "85711"), ("2", "53", "F", "other", "94043")]
EVENTS = [("2", "2", "3", "881250949"), ("1", "7", "5", "881250940"), ("1", "1", "1", "881250949")]


def write_raw(folder):
    """Writes the raw files; returns their folders by name."""
    for name, columns, rows in (
        ("item", "item_id:token movie_title:token_seq release_year:token class:token_seq", ITEMS),
        ("user", "user_id:token age:token gender:token occupation:token zip_code:token", USERS),
        ("inter", "user_id:token item_id:token rating:float timestamp:float", EVENTS),
    ):
        lines = ["\t".join(row) + "\n" for row in (columns.split(), *rows)]
        (folder / f"ml-100k.{name}").write_text("".join(lines), encoding="utf-8")
    write_films(
        folder / "movies.db",
        [
            {"Title": "The Godfather", "Year": 1972, "Director": "F. Coppola", "Cast": "Al Pacino"},
            {"Title": "La Haine", "Year": 1995, "Country": "France"},
            {"Title": "Toy Story", "Year": 1996, "Director": "John Lasseter", "Runtime": 80},
            {"Title": "Sliding Doors", "Year": 2008, "Director": "Somebody Else"},
        ],
        [],
    )
    return dict.fromkeys(("ml-100k", "film-table"), folder)


SPEC = Path(movielens.__file__).with_name("dataset.json")


def test_canonical_folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(SPEC, folder)
    counts = movielens.build(write_raw(tmp_path), folder)
    assert counts == {"items with film attributes": 3}
    assert check_dataset(folder).ok
    dataset = Dataset.open(folder)
    items = [item.attributes for item in dataset.item_records]
    assert [(item["title"], item["other_title"], item["year"]) for item in items] == [
        ("Toy Story", None, 1995),
        ("The Godfather", None, 1972),
        ("Les Misérables", None, 1995),
        ("Land Before Time III", None, 1995),
        ("unknown", None, None),
        ("Hate", "La Haine", 1995),
        ("Sliding Doors", None, 1998),
    ]
    assert items[0]["genres"] == ("animation", "children's", "comedy")
    assert items[4]["genres"] == ()
    attributes = {"director": ("F. Coppola",), "cast": ("Al Pacino",), "writer": ()}
    assert items[1].items() >= {**attributes, "runtime": None}.items()
    assert items[1]["genres"] == ("action", "crime", "drama")
    # An original title in brackets finds the film; a year too far off does not.
    assert items[5]["country"] == ("France",)
    assert items[6]["director"] == ()
    assert pq.read_table(folder / "users.parquet").to_pylist()[1] == {
        "user_id": "2",
        "age": 53,
        "gender": "female",
        "occupation": None,
        "zip_code": "94043",
    }
    # The order of the file is kept: ties of time are broken by it.
    events = pq.read_table(folder / "events.parquet").to_pylist()
    assert [event["user_id"] for event in events] == ["2", "1", "1"]
    assert events[0] == {"user_id": "2", "item_id": "2", "timestamp": 881250949, "rating": 3.0}


# ---- titles


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (
            "Horseman on the Roof, The (Hussard sur le toit, Le)",
            "The Horseman on the Roof (Le Hussard sur le toit)",
        ),
        ("Age d'or, L'", "L'Age d'or"),
        ("Good, the Bad and the Ugly, The", "The Good, the Bad and the Ugly"),
        ("Love,  Actually", "Love, Actually"),
    ],
)
def test_natural_title(title, expected):
    assert natural_title(title) == natural_title(expected) == expected


@given(st.text())
def test_titles_that_are_the_same(title):
    words = normalised_title(title)
    assert words == " ".join(words.split())
    for one, other in (
        ("The Godfather: Part II", "Godfather Part II"),
        ("Léon", "Leon"),
        ("Twelve Monkeys", "12 Monkeys"),
        ("Dumb & Dumber", "Dumb and Dumber"),
        ("M*A*S*H", "MASH"),
        ("Schindler's List", "SCHINDLER’S LIST"),
    ):
        assert normalised_title(one) == normalised_title(other)


# ---- finding films


def film_table(*films):
    return FilmTable([Film(title, year, reviews=reviews) for title, year, reviews in films])


def found(table, title, year):
    film = table.find(title, year)
    return None if film is None else (film.title, film.year)


def test_the_nearest_year_wins_then_the_most_reviewed():
    table = film_table(("Emma", 1996, 1), ("Emma", 1997, 99), ("Emma", 1972, 99), ("Emma", 1996, 5))
    assert table.find("Emma", 1996) == Film("Emma", 1996, reviews=5)
    assert found(table, "Emma", 1997) == ("Emma", 1997)
    assert found(table, "Emma", 1998) == ("Emma", 1997)
    assert found(table, "Emma", 1973) == ("Emma", 1972)
    assert found(table, "Emma", 1974) is None
    assert found(table, "Emma", None) is None


def test_a_part_of_the_title_finds_a_film_when_only_one_fits():
    hope, jedi = "Star Wars: Episode IV – A New Hope", "Star Wars: Episode VI – Return of the Jedi"
    leon, red = "Léon: The Professional", "Three Colours: Red"
    parts = ("Rudolph: The Movie", "Twins: Part One", "Triplets: Part One")
    films = [(hope, 1977), (jedi, 1983), (leon, 1994), (red, 1994), *((t, 1990) for t in parts)]
    table = film_table(*((*film, 1) for film in films))
    for title, year, whole in (
        ("Star Wars", 1977, hope),
        ("Star Wars", 1983, jedi),
        ("Return of the Jedi", 1983, jedi),
        ("Professional, The", 1994, leon),
        ("Three Colors: Red", 1994, red),
    ):
        assert found(table, title, year) == (whole, year)
    # "The Movie" says nothing; a part that two films share says too little.
    assert found(table, "Gilligan's Island: The Movie", 1990) is None
    assert found(table, "Part One", 1990) is None


def test_the_film_table_keeps_the_best_known_of_the_cast(tmp_path):
    one = {"Title": "One", "Year": 1990, "Director": "D, E", "Rating": "R", "Runtime": 90.0}
    one |= {"Cast": "Abe, Bea, Cid, Dan, Eve", "Genre": "A, B"}
    two = {"Title": "Two", "Year": 1991, "Director": "", "Cast": "Bea, Dan, Eve", "Genre": ""}
    three = {"Title": "Three", "Year": 1992, "Cast": "Cid, Eve, , Eve"}
    films = [one, two, three, {"Year": 1992, "Cast": ""}]
    write_films(tmp_path / "movies.db", films, [{"ID": 2, "Reviews": 7, "Meter": 61}])
    one, two, three = FilmTable.load(tmp_path / "movies.db").films
    assert (one.cast, three.cast) == (("Eve", "Bea", "Cid", "Dan"), ("Eve", "Cid"))
    assert (one.director, two.director, one.genre, two.genre) == (("D", "E"), (), ("A", "B"), ())
    assert (one.runtime, one.certificate, two.runtime) == (90, "R", None)
    assert (two.reviews, two.meter, one.meter) == (7, 61, None)


def test_another_template_is_another_version() -> None:
    """Or folders that were built before keep the old wording. Change both together."""
    template = json.loads(SPEC.read_text())["template"]
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
    version = sources.public_datasets()["movielens-100k"].version
    assert (version, digest[:12]) == (6, "808491739a2c")
