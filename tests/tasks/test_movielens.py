import hashlib
import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m6rec_jax.data import sources
from m6rec_jax.data.check import check_dataset
from m6rec_jax.data.reading import Dataset
from m6rec_jax.errors import DataError
from m6rec_jax.text.records import Item
from tasks.films.table import FILM_COLUMNS, Film, FilmTable, natural_title, normalised_title
from tasks.movielens import source as movielens
from tasks.movielens.source import GENRES, TEMPLATE, read_raw, write_canonical
from tests.tasks.film_database import write_films

# The same rows in both forms. Titles and years stand in every way that MovieLens-100k writes them.
ITEMS = [
    # id, title in u.item, title and year in the package, genres
    ("1", "Toy Story (1995)", "Toy Story", "1995", ["Animation", "Children's", "Comedy"]),
    ("2", "Godfather, The (1972)", "Godfather, The", "1972", ["Action", "Crime", "Drama"]),
    ("3", "Misérables, Les (1995)", "Misérables, Les", "1995", ["Drama", "Musical"]),
    ("4", "Land Before Time III (1995) (V)", "Land Before Time III (1995)", "V", ["Animation"]),
    ("5", "unknown", "unkonwn", "unkonwn", ["unknown"]),
    ("6", "Hate (Haine, La) (1995)", "Hate (Haine, La)", "1995", ["Drama"]),
    ("7", "Sliding Doors (1998) ", "Sliding Doors", "1998", ["Drama", "Romance"]),
]
USERS = [("1", "24", "M", "technician", "85711"), ("2", "53", "F", "other", "94043")]
EVENTS = [("2", "2", "3", "881250949"), ("1", "7", "5", "881250940"), ("1", "1", "1", "881250949")]


def write_grouplens(folder):
    folder.mkdir()
    lines = []
    for identifier, title, *_, genres in ITEMS:
        flags = "|".join("1" if genre in genres else "0" for genre in GENRES)
        lines.append(f"{identifier}|{title}|01-Jan-1995||address|{flags}\n")
    (folder / "u.item").write_text("".join(lines), encoding="latin-1")
    (folder / "u.user").write_text("".join("|".join(user) + "\n" for user in USERS))
    (folder / "u.data").write_text("".join("\t".join(event) + "\n" for event in EVENTS))
    return folder


def write_package(folder):
    folder.mkdir()
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    lines = [
        f"{identifier}\t{title}\t{year}\t{' '.join(genres)}\n"
        for identifier, _, title, year, genres in ITEMS
    ]
    (folder / "ml-100k.item").write_text(header + "".join(lines), encoding="utf-8")
    header = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    lines = ["\t".join(user) + "\n" for user in USERS]
    (folder / "ml-100k.user").write_text(header + "".join(lines))
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    lines = ["\t".join(event) + "\n" for event in EVENTS]
    (folder / "ml-100k.inter").write_text(header + "".join(lines))
    return folder


FILMS = FilmTable(
    [
        Film("The Godfather", 1972, ("Francis Ford Coppola",), cast=("Al Pacino",), reviews=9),
        Film("La Haine", 1995, ("Mathieu Kassovitz",), country=("France",)),
        Film("Toy Story", 1996, ("John Lasseter",), runtime=80),
        Film("Sliding Doors", 2008, ("Somebody Else",)),
    ]
)


def test_both_forms_give_the_same_tables(tmp_path):
    grouplens = read_raw(write_grouplens(tmp_path / "grouplens"))
    package = read_raw(write_package(tmp_path / "package"))
    assert grouplens == package
    assert [item["title"] for item in grouplens.items] == [
        "Toy Story",
        "The Godfather",
        "Les Misérables",
        "Land Before Time III",
        "unknown",
        "Hate",
        "Sliding Doors",
    ]
    assert [item["other_title"] for item in grouplens.items][4:6] == [None, "La Haine"]
    assert [item["year"] for item in grouplens.items] == [1995, 1972, 1995, 1995, None, 1995, 1998]
    assert grouplens.items[0]["genres"] == ["animation", "children's", "comedy"]
    assert grouplens.items[4]["genres"] == []
    assert grouplens.users[1] == {
        "user_id": "2",
        "age": 53,
        "gender": "female",
        "occupation": None,
        "zip_code": "94043",
    }
    # The order of the file is kept: ties of time are broken by it.
    assert [event["user_id"] for event in grouplens.events] == ["2", "1", "1"]


def test_canonical_folder(tmp_path):
    raw = read_raw(write_package(tmp_path / "raw"))
    folder = tmp_path / "toy-movies"
    folder.mkdir()
    said = write_canonical(raw, FILMS, folder, "toy-movies")
    assert said == (
        "toy-movies: 2 users, 7 items, 3 events; film attributes for 3 items, 66.67% of the events"
    )
    assert check_dataset(folder).ok
    dataset = Dataset.open(folder)
    assert dataset.spec.name == "toy-movies"
    assert dataset.spec.label.at_least == 4
    assert dataset.item_records[1] == Item(
        "2",
        {
            "title": "The Godfather",
            "other_title": None,
            "year": 1972,
            "genres": ("action", "crime", "drama"),
            "director": ("Francis Ford Coppola",),
            "writer": (),
            "cast": ("Al Pacino",),
            "country": (),
            "language": (),
            "runtime": None,
            "certificate": None,
            "awards": None,
        },
    )
    # An original title in brackets finds the film; a year too far off does not.
    assert dataset.item_records[5].attributes["country"] == ("France",)
    assert dataset.item_records[6].attributes["director"] == ()
    assert pq.read_table(folder / "events.parquet").to_pylist()[0] == {
        "user_id": "2",
        "item_id": "2",
        "timestamp": 881250949,
        "rating": 3.0,
    }


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("u.data", "\t3\t", "\t", r"u\.data, line 1: 3 columns, not 4"),
        ("u.user", "1|24", "1|24|9", r"u\.user, line 1: 6 columns, not 5"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path, name, old, new, message):
    folder = write_grouplens(tmp_path / "raw")
    path = folder / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_raw(folder)


def test_an_unexpected_header_and_an_empty_folder(tmp_path):
    folder = write_package(tmp_path / "raw")
    path = folder / "ml-100k.inter"
    path.write_text(path.read_text().replace("rating", "stars"))
    with pytest.raises(DataError, match=r"ml-100k\.inter: the header is"):
        read_raw(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has neither u\.data nor ml-100k\.inter"):
        read_raw(tmp_path / "empty")


# ---- titles


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Godfather, The", "The Godfather"),
        ("Beautiful Mind, A", "A Beautiful Mind"),
        (
            "Horseman on the Roof, The (Hussard sur le toit, Le)",
            "The Horseman on the Roof (Le Hussard sur le toit)",
        ),
        ("Age d'or, L'", "L'Age d'or"),
        ("Good, the Bad and the Ugly, The", "The Good, the Bad and the Ugly"),
        ("Fargo", "Fargo"),
        ("Love,  Actually", "Love, Actually"),
        ("I, Robot", "I, Robot"),
    ],
)
def test_natural_title(title, expected):
    assert natural_title(title) == expected
    assert natural_title(expected) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Godfather: Part II", "Godfather Part II"),
        ("Léon", "Leon"),
        ("Twelve Monkeys", "12 Monkeys"),
        ("Dumb & Dumber", "Dumb and Dumber"),
        ("M*A*S*H", "MASH"),
        ("Schindler's List", "SCHINDLER’S LIST"),
    ],
)
def test_titles_that_are_the_same(one, other):
    assert normalised_title(one) == normalised_title(other)


def test_titles_that_are_not_the_same():
    assert normalised_title("A") == "a"
    assert normalised_title("The The") == "the"
    assert normalised_title("Alien") != normalised_title("Aliens")
    assert normalised_title("東京物語") != ""


@given(st.text())
def test_any_title_can_be_normalised_and_looked_up(title):
    words = normalised_title(title)
    assert words == " ".join(words.split())
    FILMS.find(title, 1995)


@given(st.lists(st.sampled_from(["Big", "Red", "Sea", "&", "Two", "É"]), min_size=1))
def test_an_article_may_stand_before_or_behind(words):
    title = " ".join(words)
    assert natural_title(f"{title}, The") == f"The {title}"
    assert normalised_title(f"The {title}") == normalised_title(title)


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
    table = film_table(
        ("Star Wars: Episode IV – A New Hope", 1977, 1),
        ("Star Wars: Episode VI – Return of the Jedi", 1983, 1),
        ("Three Colours: Red", 1994, 1),
        ("Léon: The Professional", 1994, 1),
        ("Rudolph: The Movie", 1998, 1),
        ("Twins: Part One", 1990, 1),
        ("Triplets: Part One", 1990, 1),
    )
    assert found(table, "Star Wars", 1977) == ("Star Wars: Episode IV – A New Hope", 1977)
    assert found(table, "Star Wars", 1983) == ("Star Wars: Episode VI – Return of the Jedi", 1983)
    assert found(table, "Return of the Jedi", 1983)[1] == 1983
    assert found(table, "Professional, The", 1994) == ("Léon: The Professional", 1994)
    assert found(table, "Three Colors: Red", 1994) == ("Three Colours: Red", 1994)
    # "The Movie" says nothing; a part that two films share says too little.
    assert found(table, "Gilligan's Island: The Movie", 1998) is None
    assert found(table, "Part One", 1990) is None


def test_either_title_of_a_pair_finds_the_film():
    table = film_table(("La Haine", 1995, 1), ("Cold Fever", 1995, 1))
    assert found(table, "Hate (Haine, La)", 1995) == ("La Haine", 1995)
    assert found(table, "Á köldum klaka (Cold Fever)", 1994) == ("Cold Fever", 1995)


def test_the_film_table_keeps_the_best_known_of_the_cast(tmp_path):
    write_films(
        tmp_path / "movies.db",
        [
            {
                **{"Title": "One", "Year": 1990, "Director": "D, E", "Language": "", "Rating": "R"},
                **{"Cast": "Abe, Bea, Cid, Dan, Eve", "Country": "France", "Runtime": 90.0},
                "Genre": "A, B",
            },
            {
                **{"Title": "Two", "Year": 1991, "Director": "", "Writer": "W", "Country": ""},
                **{"Cast": "Bea, Dan, Eve", "Awards": "Won 1 Oscar.", "Genre": ""},
            },
            {"Title": "Three", "Year": 1992, "Writer": "W", "Cast": "Cid, Eve, , Eve"},
            {"Year": 1992, "Cast": ""},
        ],
        [{"ID": 2, "Reviews": 7, "Meter": 61}],
    )
    table = FilmTable.load(tmp_path / "movies.db")
    one, two, three = table.films
    assert one.cast == ("Eve", "Bea", "Cid", "Dan")
    assert one.director == ("D", "E")
    assert (one.genre, two.genre, three.genre) == (("A", "B"), (), ())
    assert (one.runtime, one.certificate, one.country, one.language) == (90, "R", ("France",), ())
    assert (two.reviews, two.meter, one.meter) == (7, 61, None)
    assert (two.awards, two.runtime, two.director) == ("Won 1 Oscar.", None, ())
    assert three.cast == ("Eve", "Cid")


def test_a_file_that_is_not_the_film_table(tmp_path):
    (tmp_path / "movies.db").write_text("no database at all, but long enough to be read as one")
    with pytest.raises(DataError, match=r"movies\.db is not the film table"):
        FilmTable.load(tmp_path / "movies.db")
    with pytest.raises(DataError, match="is not the film table"):
        FilmTable.load(tmp_path / "missing.db")


# ---- the real thing


@pytest.mark.needs_network
def test_movielens_100k():
    try:
        folder = sources.fetch("movielens-100k", progress=False)
    except DataError as error:
        pytest.skip(str(error))
    report = check_dataset(folder)
    assert report.num_rows == {"users": 943, "items": 1682, "events": 100_000}
    assert {problem.kind for problem in report.problems} == {"not_sorted"}
    dataset = Dataset.open(folder)
    assert dataset.spec.provenance["film_attributes"]["percent_of_events"] > 91
    attributes = dataset.item_records[126].attributes
    assert attributes["title"] == "The Godfather"
    assert attributes["director"] == ("Francis Ford Coppola",)
    assert set(attributes) == set(movielens.ITEM_COLUMNS) >= set(FILM_COLUMNS)
    events = dataset.events()
    assert events.slice(0, 1).to_pylist() == [
        {
            "row": 0,
            "user_index": 195,
            "item_index": 241,
            "time": 881250949.0,
            "value": 3.0,
            "user_id": "196",
            "item_id": "242",
        }
    ]
    labels = dataset.spec.label.labels(events.column("value").to_numpy())
    assert labels.sum() == 55_375


def test_another_template_is_another_version() -> None:
    """Or folders that were built before keep the old wording. Change both together."""
    digest = hashlib.sha256(json.dumps(TEMPLATE, sort_keys=True).encode()).hexdigest()
    assert (movielens.DATASET.version, digest[:12]) == (6, "808491739a2c")
